"""The ONNX graph against the model it was made from, run by onnxruntime."""

from __future__ import annotations

import errno
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from safetensors.torch import load_file
from tokenizers import Tokenizer as Backend

from conftest import TEXTS, HfFolder, MakeModel, Run
from moembed.embedder import Embedder
from moembed.export.onnx import export as onnx_folder
from moembed.export.onnx.encoder import build
from moembed.export.onnx.export import export_onnx, run_rows
from moembed.families.flat import FlatMoE
from moembed.folder.parts import Parts
from moembed.folder.quantized import FILE, stored_bits
from moembed.folder.read import read_folder
from moembed.model.head import ACTIVATIONS, Dense, HeadConfig, Normalize
from moembed.model.pooling import POOLING, PoolingConfig
from moembed.moe.router import RouterConfig
from moembed.packing import pack
from moembed.runs.quantize import QuantizePlan, quantize_model
from moembed.tokenizer import Tokenizer
from moembed.types import UserError
from moembed.weights.upcycle import UpcycleConfig, upcycle

PLAIN = sorted(m for m in POOLING if not (PoolingConfig(m).learns or PoolingConfig(m).per_token))

Rows = Sequence[Sequence[int]]


def session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    onnx.checker.check_model(model, full_check=True)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options)


def feed(rows: Rows, left: bool = False, pad: int = 0) -> dict[str, np.ndarray]:
    length = max(map(len, rows))
    token_BS = np.full((len(rows), length), pad, dtype=np.int64)
    mask_BS = np.zeros_like(token_BS)
    for row, tokens, mask in zip(rows, token_BS, mask_BS, strict=True):
        place = slice(length - len(row), None) if left else slice(len(row))
        tokens[place], mask[place] = row, 1
    return {"input_ids": token_BS, "attention_mask": mask_BS}


def vectors(
    running: onnxruntime.InferenceSession, rows: Rows, left: bool = False, pad: int = 0
) -> np.ndarray:
    return running.run(["sentence_embedding"], feed(rows, left, pad))[0]


def expected(model: Embedder, rows: Rows) -> np.ndarray:
    with torch.inference_mode():
        return model(pack(rows)).vector_BM.numpy()


# ---- fp32: the same vectors --------------------------------------------------------------------------------

routers = st.builds(
    RouterConfig, top_k=st.integers(1, 3), normalize=st.sampled_from([None, 1.0, 2.0]), jitter=st.just(0.1)
)
moes = st.builds(
    FlatMoE,
    layers=st.sampled_from([(1,), (0, 1)]),
    num_experts=st.integers(3, 6),
    num_shared_experts=st.integers(0, 2),
    shared_weight=st.sampled_from(["sum", "mean"]),
    bias=st.sampled_from(["each", "shared", "none"]),
    router=routers,
)
architectures = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 99),
        "pooling": st.sampled_from(PLAIN),
        "num_layers": st.just(2),
        "activation": st.sampled_from(["gelu", "gelu_tanh", "relu", "silu"]),
        "gated": st.booleans(),
        "attention_bias": st.booleans(),
        "ffn_bias": st.booleans(),
        "norm": st.sampled_from(["pre", "post"]),
        "position": st.sampled_from(["absolute", "rope"]),
        "position_offset": st.integers(0, 2),
        "num_token_types": st.integers(0, 2),
        "moe": st.none() | moes,
    }
)
token_rows = st.lists(st.lists(st.integers(0, 80), min_size=1, max_size=20), min_size=1, max_size=5)


@settings(max_examples=40)
@given(architecture=architectures, rows=token_rows, left=st.booleans())
def test_vectors_are_the_models_whatever_the_architecture(
    make_model: MakeModel, architecture: dict[str, object], rows: Rows, left: bool
) -> None:
    model = make_model(**architecture)
    found = vectors(session(build(model.parts())), rows, left)
    np.testing.assert_allclose(found, expected(model, rows), atol=1e-5)


def test_all_experts_at_once_and_most_of_them_idle(moe_model: Embedder) -> None:
    rows = moe_model.tokenizer.rows(TEXTS)[0]
    running = session(build(moe_model.parts()))
    with torch.inference_mode():
        stats = moe_model(pack(rows)).router
        alone = moe_model(pack([[7]])).router
    assert all(layer.dead_experts == 0 for layer in stats)
    assert all(layer.dead_experts == 2 for layer in alone)
    np.testing.assert_allclose(vectors(running, rows), moe_model.encode(TEXTS), atol=1e-5)
    for token in range(20):
        np.testing.assert_allclose(vectors(running, [[token]]), expected(moe_model, [[token]]), atol=1e-5)


def test_an_expert_computes_its_own_tokens_and_no_padding(moe_model: Embedder) -> None:
    rows = [[5, 6, 7, 8, 9, 10, 11], [12]]
    graph = build(moe_model.parts())
    slices = [node.output for node in graph.graph.node if node.op_type == "Split" and len(node.output) == 4]
    names = [name for of_layer in slices for name in of_layer]
    kind = onnx.TensorProto.FLOAT
    graph.graph.output.extend(onnx.helper.make_tensor_value_info(name, kind, [None, 16]) for name in names)
    sizes = [len(tokens) for tokens in session(graph).run(names, feed(rows))]
    with torch.inference_mode():
        stats = moe_model(pack(rows)).router
    assert sizes == [count for layer in stats for count in layer.count_E.tolist()]
    assert sum(sizes) == 2 * 2 * 8  # layers, experts per token, tokens


def test_padding_is_never_seen(moe_model: Embedder) -> None:
    running = session(build(moe_model.parts()))
    rows = [[5, 6, 7], [8]]
    found = [vectors(running, rows, left, pad) for left in (False, True) for pad in (0, 50)]
    for other in found[1:]:
        np.testing.assert_array_equal(found[0], other)
    (hidden_BSD,) = running.run(["last_hidden_state"], feed(rows))
    assert (hidden_BSD[1, 1:] == 0).all()
    assert (hidden_BSD[1, 0] != 0).all()


@pytest.mark.parametrize("pooling", PLAIN)
def test_a_text_without_tokens_spoils_nothing(make_model: MakeModel, pooling: str) -> None:
    model = make_model(pooling=pooling)
    inputs = {
        "input_ids": np.array([[5, 6], [7, 8]]),
        "attention_mask": np.array([[1, 1], [0, 0]]),
    }
    (found,) = session(build(model.parts())).run(["sentence_embedding"], inputs)
    np.testing.assert_allclose(found[0], expected(model, [[5, 6]])[0], atol=1e-5)
    assert np.isfinite(found).all()


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_dense_layers_behind_pooling(make_model: MakeModel, tmp_path: Path, activation: str) -> None:
    steps = (Dense(32, 12, activation=activation), Normalize(), Dense(12, 12, False, "tanh", residual=True))
    config = HeadConfig((*steps, Dense(12, 8, activation="identity", residual=True), Normalize()))
    generator = torch.Generator().manual_seed(3)
    state = {name: torch.randn(shape, generator=generator) for name, shape in config.shapes().items()}
    parts = replace(make_model(pooling="mean_sqrt_len_tokens+max").parts(), head=config, head_state=state)
    assert export_onnx(parts, tmp_path / "out")["max_error"] < 1e-5
    rows = [[2, 7, 3], [2, 9, 8, 7, 6, 3]]
    running = onnxruntime.InferenceSession(str(tmp_path / "out" / "onnx" / "model.onnx"))
    found = vectors(running, rows)
    assert found.shape == (2, 8)
    assert np.abs(found - expected(Embedder(parts).eval(), rows)).max() < 1e-5


@pytest.mark.parametrize("int8", [False, True])
def test_only_standard_operators(moe_model: Embedder, int8: bool) -> None:
    assert [opset.domain for opset in build(moe_model.parts(), int8).opset_import] == [""]


# ---- int8 --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def upcycled(minilm: Path) -> Parts:
    """MiniLM with experts that differ."""
    parts = read_folder(minilm)
    spec, state = upcycle(parts.spec, parts.state, UpcycleConfig(num_experts=4, every=3))
    generator = torch.Generator().manual_seed(0)
    for name, tensor in state.items():
        if name.endswith(("up_EFD", "down_EDF")):
            state[name] = tensor + 0.1 * tensor.std() * torch.randn(tensor.shape, generator=generator)
    return replace(parts, spec=spec, state=state)


def test_int8_of_a_real_model_stays_close(upcycled: Parts) -> None:
    model = Embedder(upcycled).eval()
    rows = model.tokenizer.rows(TEXTS)[0]
    running = session(build(upcycled, int8=True))
    found = vectors(running, rows)
    cosine = (found * model.encode(TEXTS)).sum(-1)
    assert cosine.mean() > 0.99
    assert cosine.min() > 0.97
    assert cosine.max() < 0.99999  # it is int8 indeed
    for row, vector in zip(rows, found, strict=True):  # a scale per token: batch-mates change nothing
        np.testing.assert_allclose(vectors(running, [row])[0], vector, atol=1e-5)


def test_int8_weighs_a_byte_per_weight_but_for_the_router(moe_model: Embedder) -> None:
    graph = build(moe_model.parts(), int8=True).graph
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    matrices = {name for node in graph.node if node.op_type == "MatMulInteger" for name in node.input[1:2]}
    experts = {name for name in types if "_EFD." in name or "_EDF." in name} - {
        name for name in types if name.endswith(".scale")
    }
    assert len(experts) == 2 * 2 * 4
    assert experts < matrices
    assert {types[name] for name in matrices} == {onnx.TensorProto.INT8}
    assert types["layers.1.ffn.router.weight_ED"] == onnx.TensorProto.FLOAT


def test_int8_survives_states_of_zero(make_model: MakeModel) -> None:
    parts = make_model().parts()
    state = {name: torch.zeros_like(tensor) for name, tensor in parts.state.items()}
    found = vectors(session(build(replace(parts, state=state), int8=True)), [[5, 6]])
    np.testing.assert_array_equal(found, 0)


# ---- the folder --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bert", "roberta", "xlm-roberta", "nomic_bert"])
def test_other_peoples_models(hf_folder: HfFolder, tmp_path: Path, kind: str) -> None:
    folder, _ = hf_folder(kind)
    facts = export_onnx(read_folder(folder), tmp_path / "out")
    assert facts["max_error"] < 1e-5
    assert facts["cosine"] > 0.9999


@pytest.mark.parametrize("int8", [False, True])
def test_the_folder_says_what_was_found(moe_model: Embedder, tmp_path: Path, int8: bool) -> None:
    out = tmp_path / "out"
    facts = export_onnx(moe_model.parts(), out, int8)
    file = out / "onnx" / "model.onnx"
    assert facts["bytes"] == file.stat().st_size
    assert (facts["out"], facts["format"], facts["int8"]) == (str(out), "onnx", int8)
    assert (facts["max_error"] > 1e-4) == int8
    rows = moe_model.tokenizer.rows(TEXTS)[0]
    limit = 0.1 if int8 else 1e-5
    np.testing.assert_allclose(run_rows(file, rows), moe_model.encode(TEXTS), atol=limit)


def test_the_folder_is_whole_for_others(moe_model: Embedder, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    out = tmp_path / "out"
    export_onnx(moe_model.parts(), out)
    names = {str(file.relative_to(out)) for file in out.rglob("*") if file.is_file()}
    assert names == {
        "1_Pooling/config.json",
        "config.json",
        "config_sentence_transformers.json",
        "modules.json",
        "onnx/model.onnx",
        "sentence_bert_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    settings = json.loads((out / "tokenizer_config.json").read_text())
    assert settings["model_max_length"] == moe_model.tokenizer.max_length
    assert settings["pad_token"] == "[PAD]"
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer(TEXTS)["input_ids"] == moe_model.tokenizer.rows(TEXTS)[0]


@pytest.mark.parametrize("stored", ["short and padded", "without a limit"])
def test_the_folders_own_tokenizer_reads_what_the_model_reads(
    stored: str, hf_folder: HfFolder, tmp_path: Path, texts: list[str]
) -> None:
    folder, _ = hf_folder("roberta")
    backend = Backend.from_file(str(folder / "tokenizer.json"))
    if stored == "short and padded":
        backend.enable_truncation(9)
        backend.enable_padding(length=9)
    backend.save(str(folder / "tokenizer.json"))
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 20}')
    export_onnx(read_folder(folder), tmp_path / "out")

    written = Backend.from_file(str(tmp_path / "out" / "tokenizer.json"))
    running = onnxruntime.InferenceSession(str(tmp_path / "out" / "onnx" / "model.onnx"))
    model = Embedder.from_pretrained(folder, device="cpu")
    for text in [*texts, "the mole digs under the meadow " * 9, "an owl hunts voles at night"]:
        tokens = written.encode(text)
        row = model.tokenizer.rows([text])[0][0]
        assert (tokens.ids, len(row)) == (row, sum(tokens.attention_mask))
        inputs = {"input_ids": [tokens.ids], "attention_mask": [tokens.attention_mask]}
        found = running.run(["sentence_embedding"], inputs)[0]
        assert np.abs(found - expected(model, [row])).max() < 1e-5


def test_a_tokenizer_that_was_written_wrong_is_not_left_behind(
    moe_model: Embedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_limit(folder: Path, tokenizer: Tokenizer) -> None:
        tokenizer.backend.save(str(folder / "tokenizer.json"))

    monkeypatch.setattr(onnx_folder, "write_tokenizer", without_limit)
    with pytest.raises(RuntimeError, match="other tokens than the model's tokenizer"):
        export_onnx(moe_model.parts(), tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(find_spec("fastembed") is None, reason="fastembed is not installed")
def test_fastembed_reads_the_folder(moe_model: Embedder, tmp_path: Path) -> None:
    from fastembed import TextEmbedding
    from fastembed.common.model_description import ModelSource, PoolingType

    export_onnx(moe_model.parts(), tmp_path / "out")
    TextEmbedding.add_custom_model(
        model="moembed/test",
        pooling=PoolingType.DISABLED,
        normalization=False,
        sources=ModelSource(hf="moembed/test"),
        dim=moe_model.dim,
        model_file="onnx/model.onnx",
        output_name="sentence_embedding",
    )
    reader = TextEmbedding("moembed/test", specific_model_path=str(tmp_path / "out"), threads=1)
    np.testing.assert_allclose(np.stack(list(reader.embed(TEXTS))), moe_model.encode(TEXTS), atol=1e-5)


def test_weights_beyond_one_file_lie_beside_it(
    moe_model: Embedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_folder, "ONE_FILE", 0)
    facts = export_onnx(moe_model.parts(), tmp_path / "out")
    assert facts["max_error"] < 1e-5
    assert {file.name for file in (tmp_path / "out" / "onnx").iterdir()} == {"model.onnx", "model.onnx_data"}


def test_bfloat16_weights_are_exported_in_fp32(moe_model: Embedder, tmp_path: Path) -> None:
    parts = moe_model.parts()
    half = replace(parts, state={name: tensor.bfloat16() for name, tensor in parts.state.items()})
    assert export_onnx(half, tmp_path / "out")["max_error"] < 1e-5
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "float32"


# ---- what goes wrong ---------------------------------------------------------------------------------------


def test_expert_choice_is_refused(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model(moe=FlatMoE(layers=(1,), num_experts=4, router=RouterConfig(kind="expert_choice")))
    with pytest.raises(UserError, match=r"moe.router.kind = 'expert_choice' in the layers \[1\]"):
        export_onnx(model.parts(), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_missing_library_is_named(
    moe_model: Embedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"pip install 'moembed\[onnx\]'"):
        export_onnx(moe_model.parts(), tmp_path / "out")


def test_a_full_disk_leaves_what_was_there(
    moe_model: Embedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "kept").touch()

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(onnx, "save_model", full)
    with pytest.raises(UserError, match="No space left on device"):
        export_onnx(moe_model.parts(), tmp_path / "out")
    assert [str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*")] == ["out", "out/kept"]


def test_a_graph_that_is_wrong_is_not_written(
    moe_model: Embedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        onnx_folder,
        "build",
        lambda parts, int8, **options: build(replace(parts, pooling=PoolingConfig("cls")), int8, **options),
    )
    with pytest.raises(RuntimeError, match="nothing was written"):
        export_onnx(moe_model.parts(), tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("width", [16, 144])  # less than a group, and two groups and a part of one
def test_a_quantized_model_keeps_its_bits(make_model: MakeModel, width: int, tmp_path: Path) -> None:
    moe = FlatMoE(layers=(1,), num_experts=4, router=RouterConfig(top_k=2))
    model = make_model(num_layers=3, width=width, ffn_width=200, moe=moe, gated=True)
    model.save_pretrained(tmp_path / "whole")
    (tmp_path / "texts.csv").write_text("text\nowls hunt voles\n")
    plan = QuantizePlan(5.5, score="zd", texts=tmp_path / "texts.csv")
    quantize_model(str(tmp_path / "whole"), tmp_path / "small", plan)
    bits = stored_bits(tmp_path / "small")
    assert set(bits.values()) == {4, 8}
    parts = read_folder(tmp_path / "small")
    facts = export_onnx(parts, tmp_path / "onnx", bits=bits)
    assert facts["max_error"] < 1e-4
    assert facts["matrices_in_few_bits"] == len(bits)
    graph = onnx.load(tmp_path / "onnx" / "onnx" / "model.onnx").graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    stored = load_file(tmp_path / "small" / FILE)
    for name in bits:
        assert constants[name].tobytes() == stored[f"{name}.code"].numpy().tobytes(), name
        np.testing.assert_array_equal(
            constants[f"{name}.scale"].ravel(), stored[f"{name}.scale"].float(), name
        )
    products = sum(node.op_type == "MatMulNBits" for node in graph.node)
    assert products == len(bits) - 1  # all but the table of words


def test_the_command_keeps_the_bits_or_says_that_it_does_not(
    make_model: MakeModel, run: Run, tmp_path: Path
) -> None:
    make_model(num_layers=2).save_pretrained(tmp_path / "whole")
    (tmp_path / "texts.csv").write_text("text\nowls hunt voles\n")
    quantize_model(str(tmp_path / "whole"), tmp_path / "small", QuantizePlan(4, texts=tmp_path / "texts.csv"))
    code, out, _ = run("export", f"{tmp_path}/small", f"{tmp_path}/onnx", "--format=onnx", "--json")
    assert code == 0
    assert json.loads(out)["matrices_in_few_bits"] == len(stored_bits(tmp_path / "small"))
    code, _, err = run("export", f"{tmp_path}/small", f"{tmp_path}/int8", "--format=onnx", "--int8")
    assert code == 0
    assert "in few bits, which --int8 rounds again" in err


def test_an_onnxruntime_without_the_operator_is_named(
    make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("MatMulNBits is not a registered function")

    monkeypatch.setattr(onnxruntime, "InferenceSession", refuse)
    bits = {"word.weight": 8}
    with pytest.raises(UserError, match=r"does not run matrices of 8 bits .* install a newer one"):
        export_onnx(make_model(num_layers=1).parts(), tmp_path / "onnx", bits=bits)
    assert not (tmp_path / "onnx").exists()
