"""What pretraining adds to an embedder and serving leaves behind: the head that guesses words, a decoder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from moembed.files import unfinished
from moembed.folder.tensors import weight_files
from moembed.model.block import Block
from moembed.model.rope import cos_sin
from moembed.model.spec import EncoderSpec
from moembed.packing import offsets, positions
from moembed.types import UserError

HEAD_FILE = "mlm_head.safetensors"
UNREACHABLE = -100.0  # bias of the rows that pad a vocabulary: they are never guessed
_STD = 0.02
_TRANSFORM = "cls.predictions.transform"
_NAMES = {  # in BERT, RoBERTa and NomicBERT checkpoints -> ours
    **{
        f"{theirs}.{part}": f"mlm.{ours}.{part}"
        for ours, names in {
            "dense": (f"{_TRANSFORM}.dense", "lm_head.dense"),
            "norm": (f"{_TRANSFORM}.LayerNorm", f"{_TRANSFORM}.layer_norm", "lm_head.layer_norm"),
        }.items()
        for theirs in names
        for part in ("weight", "bias")
    },
    f"{_TRANSFORM}.LayerNorm.gamma": "mlm.norm.weight",
    f"{_TRANSFORM}.LayerNorm.beta": "mlm.norm.bias",
    **dict.fromkeys(("cls.predictions.bias", "cls.predictions.decoder.bias", "lm_head.bias"), "mlm.bias_V"),
}


class MaskedLMHead(nn.Module):
    """``norm(gelu(dense(h)))``, BERT's transform; the word embeddings and ``bias_V`` turn it into scores."""

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__()
        self.dense = nn.Linear(spec.width, spec.width)
        self.norm = nn.LayerNorm(spec.width, eps=spec.layers[0].norm.eps)
        self.bias_V = nn.Parameter(torch.zeros(spec.vocab_size))

    def forward(self, state_TD: Tensor) -> Tensor:
        return self.norm(F.gelu(self.dense(state_TD)))


class Decoder(nn.Module):
    """One layer that reads a text's vector in the place of its first token, and the rest half hidden.

    To guess the hidden words it needs the vector to hold them. Source: Xiao et al., arXiv 2205.12035,
    with a plain layer in place of its enhanced decoding.
    """

    def __init__(self, spec: EncoderSpec) -> None:
        super().__init__()
        layer = spec.layers[0].model_copy(update={"moe": None, "place": "post", "attention_norm": True})
        self.attention = layer.attention
        self.block = Block(spec.width, layer, 0)

    def forward(self, embedded_TD: Tensor, vector_BD: Tensor, length_B: Sequence[int]) -> Tensor:
        first_B = torch.tensor(offsets(length_B)[:-1], device=embedded_TD.device)
        states_TD = embedded_TD.index_copy(0, first_B, vector_BD.to(embedded_TD.dtype))
        rotation = None
        if self.attention.rope:
            position_T = positions(length_B, states_TD.device)
            rotation = cos_sin(position_T, self.attention.head_size, self.attention.rope)
        decoded_TD, _, _ = self.block(states_TD, length_B, rotation, 0.0, ("packed", "grouped"))
        return decoded_TD


class Heads(nn.Module):
    """The head and, if ``decoder``, the decoder; fresh: normal(0, 0.02) matrices, no bias, unit norms.

    Args:
        pieces: of the tokenizer. Rows of the vocabulary beyond them start, and all but stay, unreachable.
    """

    def __init__(self, spec: EncoderSpec, pieces: int, decoder: bool = False, seed: int = 0) -> None:
        super().__init__()
        self.mlm = MaskedLMHead(spec)
        self.decoder = Decoder(spec) if decoder else None
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if parameter.ndim == 2:
                    parameter.normal_(0, _STD, generator=generator)
                elif "norm" not in name:
                    parameter.zero_()
            self.mlm.bias_V[pieces:] = UNREACHABLE


def read_heads(folder: Path, heads: Heads) -> list[str]:
    """Put what is stored with a base into ``heads``: of an earlier run of ours, else of the checkpoint.

    A bias shorter than the vocabulary leaves the other rows as they are; what ``heads`` lacks is passed over.

    Returns:
        Names of the parameters that were found.

    Raises:
        UserError: a tensor of another shape, a damaged file.
    """
    beside = [folder / HEAD_FILE, *([folder.parent / HEAD_FILE] if folder.name == "model" else [])]
    own = next((file for file in beside if file.is_file()), None)
    parameters, found = dict(heads.named_parameters()), []
    try:
        for file in [own] if own else weight_files(folder):
            with safe_open(file, "pt") as tensors:
                for theirs in tensors.keys():  # noqa: SIM118
                    name = theirs if own else _NAMES.get(theirs, "")
                    if name in parameters:
                        _put(tensors.get_tensor(theirs), name, parameters[name], file)
                        found.append(name)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{folder}: its heads cannot be read ({error})") from None
    return found


def _put(tensor: Tensor, name: str, parameter: nn.Parameter, file: Path) -> None:
    rows = len(tensor) if name == "mlm.bias_V" and tensor.ndim == 1 else len(parameter)
    if tensor.shape != parameter[:rows].shape:
        shapes = f"{tuple(tensor.shape)}, expected {tuple(parameter.shape)}"
        raise UserError(f"{file}: the head's {name!r} has shape {shapes}")
    with torch.no_grad():
        parameter[:rows] = tensor


def write_heads(run: Path, heads: Heads) -> None:
    """Store ``heads`` beside the model of a run, for the next one; whole or not at all."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in heads.state_dict().items()}
    with unfinished(run / HEAD_FILE) as fresh:
        save_file(state, fresh)
