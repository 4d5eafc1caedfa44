"""To GGUF, which llama.cpp, Ollama and LM Studio run.

llama.cpp fixes the graph of an architecture in its own code, so a file can only say what that graph reads:

- ``bert``: absolute positions, dense GELU blocks.
- ``nomic-bert``: rotary, dense SwiGLU blocks without biases.
- ``nomic-bert-moe``: rotary, GELU blocks, experts weighted by raw router probabilities in every n-th layer.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from moembed.embedder import Embedder
from moembed.export.gguf.graph import as_graph
from moembed.export.gguf.vocabulary import add_vocabulary
from moembed.families import bert, nomic
from moembed.files import unfinished
from moembed.folder.parts import Parts
from moembed.types import UserError
from moembed.weights.compress_vocabulary import with_whole_vocabulary

if TYPE_CHECKING:
    from gguf import GGUFWriter

Kind = Literal["f32", "f16", "bf16", "q8_0"]

_FILE_TYPE = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16", "q8_0": "MOSTLY_Q8_0"}
_BLOCK = 32  # values of a row that share a scale in Q8_0
_EXACT = ("position.", "token_type.", ".router.")  # small matrices; in the router, rounding changes experts
_PROBE = [
    "Moles dig tunnels under the meadow.",
    "What does an owl hunt at night?",
    "def read(path): return open(path).read()",
    "Der Zug nach Hamburg fährt um sieben Uhr ab.",
    "La bibliothèque est fermée le dimanche.",
    "El precio del café subió un 12 % en marzo.",
    "Сколько весит взрослый кит?",
    "東京の天気は晴れです。",
]


def export_gguf(parts: Parts, out: Path, kind: Kind, fold_expert_bias: bool = False) -> dict[str, Any]:
    """Write a GGUF file.

    Args:
        kind: the type of the matrices; vectors, positions and routers stay in fp32, and in a ``q8_0`` file
            the matrices of attention are f16.
        fold_expert_bias: move every shared expert bias to a place the graph reads (see `graph.fold`);
            without it these biases are lost, for the graph knows none.

    Returns:
        Facts: path, architecture, type, tensors, bytes, context_length, what became of the expert bias
        (``none``, ``dropped`` or ``folded``), and the mean and least cosine, on a few texts and in fp32,
        between the vectors of this model and of the graph.

    Raises:
        UserError: what the graph cannot express, all of it in one sentence; a tokenizer llama.cpp does not
            have; widths that Q8_0 cannot block; the disk is full or not writable.
    """
    try:
        import gguf
    except ImportError:
        raise UserError("GGUF needs the library gguf: pip install 'moembed[gguf]'") from None

    if parts.truncate_dim:
        warnings.warn(
            f"the file gives vectors of {parts.spec.width} coordinates: cut them to the first "
            f"{parts.truncate_dim}, as this model does, and scale them to length 1",
            stacklevel=2,
        )
    parts = with_whole_vocabulary(parts, "GGUF")
    parts = replace(parts, state={name: tensor.cpu().float() for name, tensor in parts.state.items()})
    architecture, graph = as_graph(parts, fold_expert_bias)
    widths = (graph.spec.width, graph.spec.layers[0].ffn.width)
    if kind == "q8_0" and any(width % _BLOCK for width in widths):
        raise UserError(
            f"q8_0 needs widths that are multiples of {_BLOCK}, this model has {widths[0]} and {widths[1]}; "
            "choose f16 or bf16"
        )
    writer = gguf.GGUFWriter(None, architecture)
    _add_config(writer, graph, kind)
    add_vocabulary(writer, graph.tokenizer.backend, graph.spec.vocab_size)
    for name, array, exact in _tensors(graph, architecture):
        # beside Q8_0 matrices llama.cpp rounds the activations too, which short texts feel most in attention
        rounded = "F16" if kind == "q8_0" and ".attn_" in name else kind.upper()
        dtype = gguf.GGMLQuantizationType["F32" if exact else rounded]
        writer.add_tensor(name, gguf.quantize(array, dtype), raw_dtype=dtype)
    with unfinished(out) as fresh:
        writer.write_header_to_file(fresh)
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    cosine_B = (_vectors(parts) * _vectors(graph)).sum(1)
    biased = any(name.endswith(".ffn.bias_D") and tensor.any() for name, tensor in parts.state.items())
    return {
        "path": str(out),
        "architecture": architecture,
        "type": kind,
        "tensors": sum(len(tensors) for tensors in writer.tensors),
        "bytes": out.stat().st_size,
        "context_length": graph.tokenizer.max_length,
        "expert_bias": "none" if not biased else "folded" if fold_expert_bias else "dropped",
        "mean_cosine": float(cosine_B.mean()),
        "min_cosine": float(cosine_B.min()),
    }


def _vectors(parts: Parts) -> np.ndarray:
    parts = replace(parts, truncate_dim=None)  # the file gives whole vectors
    return Embedder(parts).eval().vectors(_PROBE, prompt="").array


def _add_config(writer: GGUFWriter, graph: Parts, kind: Kind) -> None:
    import gguf

    spec = graph.spec
    layer = spec.layers[0]  # all are alike, but for the experts: as_graph refuses others
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_file_type(gguf.LlamaFileType[_FILE_TYPE[kind]])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_context_length(graph.tokenizer.max_length)
    writer.add_embedding_length(spec.width)
    writer.add_block_count(spec.num_layers)
    writer.add_feed_forward_length(layer.ffn.width)
    writer.add_head_count(layer.attention.num_heads)
    writer.add_layer_norm_eps(layer.norm.eps)
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType[graph.pooling.name.upper()])
    writer.add_token_type_count(
        max(spec.embeddings.token_types, 1)
    )  # a count of 0 is refused, a missing table not
    if rope := layer.attention.rope:
        writer.add_rope_freq_base(rope.base)
    if moe := spec.moe:
        writer.add_expert_count(moe.num_experts)
        writer.add_expert_used_count(moe.router.top_k)
        # the Nomic layout has let pass only 1, 1 + n, 1 + 2n ...
        writer.add_moe_every_n_layers((*spec.moe_layers, spec.num_layers + 1)[1] - 1)


def _tensors(graph: Parts, architecture: str) -> Iterator[tuple[str, np.ndarray, bool]]:
    """Name, values and whether they stay in fp32, of every tensor.

    The gguf package knows how checkpoints name theirs, so our names go by way of the family's table.
    """
    import gguf

    spec = graph.spec
    code = next(code for code, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    known = gguf.get_tensor_name_map(code, spec.num_layers)
    table = (bert if architecture == "bert" else nomic).names(spec)
    for ours, tensor in graph.state.items():
        if ours == "position.weight" and (rows := spec.embeddings.positions):
            # the graph counts from 0 and wants one row per position
            tensor = tensor[rows.offset :][: graph.tokenizer.max_length]
        stacked = tensor.ndim == 3  # experts keep an axis of their own
        pieces = [tensor] if stacked else table[ours].write(tensor)
        for theirs, piece in zip(table[ours].names, pieces, strict=True):
            name = known.get_name(theirs, (".weight", ".bias"))
            assert name, theirs
            exact = piece.ndim == 1 or any(part in ours for part in _EXACT)
            yield name + ".weight" * stacked, piece.contiguous().numpy(), exact
