"""GGUF files hold what llama.cpp's graphs read, and the graphs compute our model: measured in our own terms.

That llama.cpp itself agrees is shown in ``interop_llamacpp``.
"""

from __future__ import annotations

from base64 import b64encode
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFReader, TokenType
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Regex, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend
from torch import Tensor

from conftest import SPECIAL, TEXTS, MakeModel
from moembed.embedder import Embedder
from moembed.export.gguf.export import export_gguf
from moembed.export.gguf.graph import as_graph, fold
from moembed.export.gguf.vocabulary import add_vocabulary
from moembed.families.flat import FlatMoE
from moembed.folder.parts import Parts
from moembed.model.block import LayerSpec
from moembed.moe.router import RouterConfig
from moembed.types import UserError

RAW = RouterConfig(top_k=2, normalize=None)
EXPERTS = {"position": "rope", "moe": FlatMoE(layers=(1, 3), num_experts=4, bias="shared", router=RAW)}
GATED = {"position": "rope", "gated": True, "activation": "silu", "ffn_bias": False}


def moe_with(**changes: Any) -> dict[str, Any]:
    moe = EXPERTS["moe"]
    assert isinstance(moe, FlatMoE)
    return EXPERTS | {"moe": moe.model_copy(update=changes)}


def fields(reader: GGUFReader, prefix: str = "") -> dict[str, Any]:
    return {name: field.contents() for name, field in reader.fields.items() if name.startswith(prefix)}


def arrays(reader: GGUFReader) -> dict[str, np.ndarray]:
    return {tensor.name: tensor.data for tensor in reader.tensors}


# ---- what the file says -----------------------------------------------------------------------------------


def test_a_nomic_moe_is_written_tensor_by_tensor(make_model: MakeModel, tmp_path: Path) -> None:
    parts = make_model(norm_eps=1e-3, rope_base=77.0, **EXPERTS).parts()
    facts = export_gguf(parts, tmp_path / "model.gguf", "f32")
    reader = GGUFReader(tmp_path / "model.gguf")
    assert fields(reader, "general.architecture") == {"general.architecture": "nomic-bert-moe"}
    assert fields(reader, "nomic-bert-moe.") == {
        "nomic-bert-moe.context_length": 32,
        "nomic-bert-moe.embedding_length": 16,
        "nomic-bert-moe.block_count": 4,
        "nomic-bert-moe.feed_forward_length": 24,
        "nomic-bert-moe.attention.head_count": 2,
        "nomic-bert-moe.attention.layer_norm_epsilon": pytest.approx(1e-3),
        "nomic-bert-moe.attention.causal": False,
        "nomic-bert-moe.pooling_type": gguf.PoolingType.MEAN,
        "nomic-bert-moe.rope.freq_base": 77.0,
        "nomic-bert-moe.expert_count": 4,
        "nomic-bert-moe.expert_used_count": 2,
        "nomic-bert-moe.moe_every_n_layers": 2,
    }
    state = parts.state
    expected: dict[str, Tensor] = {
        "token_embd.weight": state["word.weight"],
        "token_types.weight": state["token_type.weight"],
    }
    for part in ("weight", "bias"):
        expected[f"token_embd_norm.{part}"] = state[f"norm.{part}"]
        for i in range(4):
            ours, theirs = f"layers.{i}", f"blk.{i}"
            expected |= {
                f"{theirs}.attn_qkv.{part}": state[f"{ours}.attention.qkv.{part}"],
                f"{theirs}.attn_output.{part}": state[f"{ours}.attention.out.{part}"],
                f"{theirs}.attn_output_norm.{part}": state[f"{ours}.attention_norm.{part}"],
                f"{theirs}.layer_output_norm.{part}": state[f"{ours}.ffn_norm.{part}"],
            }
        for i in (0, 2):
            expected[f"blk.{i}.ffn_up.{part}"] = state[f"layers.{i}.ffn.up.{part}"]
            expected[f"blk.{i}.ffn_down.{part}"] = state[f"layers.{i}.ffn.down.{part}"]
    for i in (1, 3):
        expected[f"blk.{i}.ffn_gate_inp.weight"] = state[f"layers.{i}.ffn.router.weight_ED"]
        expected[f"blk.{i}.ffn_up_exps.weight"] = state[f"layers.{i}.ffn.up_EFD"]
        expected[f"blk.{i}.ffn_down_exps.weight"] = state[f"layers.{i}.ffn.down_EDF"]
    found = arrays(reader)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        np.testing.assert_array_equal(found[name], tensor.numpy(), err_msg=name)
    assert facts["tensors"] == len(expected)
    assert facts["bytes"] == (tmp_path / "model.gguf").stat().st_size
    assert [path.name for path in tmp_path.iterdir()] == ["model.gguf"]


@pytest.mark.parametrize("offset", [0, 2])
def test_bert_positions_start_at_the_first_real_one(
    make_model: MakeModel, tmp_path: Path, offset: int
) -> None:
    parts = make_model(position_offset=offset, pooling="cls").parts()
    assert export_gguf(parts, tmp_path / "bert.gguf", "f16")["architecture"] == "bert"
    reader = GGUFReader(tmp_path / "bert.gguf")
    found, values = arrays(reader), fields(reader, "bert.")
    np.testing.assert_array_equal(found["position_embd.weight"], parts.state["position.weight"][offset:])
    assert values["bert.context_length"] == 32 - offset
    assert values["bert.pooling_type"] == gguf.PoolingType.CLS
    assert "bert.rope.freq_base" not in values
    three = parts.state["layers.0.attention.qkv.bias"].chunk(3)
    for name, bias in zip("qkv", three, strict=True):
        np.testing.assert_array_equal(found[f"blk.0.attn_{name}.bias"], bias)


def test_a_model_that_reads_less_than_its_table_holds_writes_the_rows_it_reads(
    make_model: MakeModel, tmp_path: Path
) -> None:
    model = make_model()
    model.tokenizer.max_length = 8
    assert export_gguf(model.parts(), tmp_path / "a.gguf", "f32")["context_length"] == 8
    assert len(arrays(GGUFReader(tmp_path / "a.gguf"))["position_embd.weight"]) == 8


def test_gated_blocks_keep_gate_and_value_apart(make_model: MakeModel, tmp_path: Path) -> None:
    parts = make_model(**GATED).parts()
    assert export_gguf(parts, tmp_path / "a.gguf", "f32")["architecture"] == "nomic-bert"
    found = arrays(GGUFReader(tmp_path / "a.gguf"))
    np.testing.assert_array_equal(found["blk.2.ffn_gate.weight"], parts.state["layers.2.ffn.gate.weight"])
    np.testing.assert_array_equal(found["blk.2.ffn_up.weight"], parts.state["layers.2.ffn.up.weight"])


@pytest.mark.parametrize(
    ("kind", "error"), [("f16", 2.0**-11), ("bf16", 2.0**-8), ("q8_0", 1 / 127)]
)  # half a step, relative to the largest of a block
def test_matrices_are_rounded_and_the_rest_is_not(
    make_model: MakeModel, tmp_path: Path, kind: Any, error: float
) -> None:
    parts = make_model(width=32, ffn_width=64, **EXPERTS).parts()
    export_gguf(parts, tmp_path / "a.gguf", kind)
    for tensor in GGUFReader(tmp_path / "a.gguf").tensors:
        small = len(tensor.shape) == 1 or "ffn_gate_inp" in tensor.name or "token_types" in tensor.name
        matrix = "f16" if kind == "q8_0" and ".attn_" in tensor.name else kind
        assert tensor.tensor_type == GGMLQuantizationType["F32" if small else matrix.upper()], tensor.name
        if tensor.name == "blk.1.ffn_down_exps.weight":
            exact = parts.state["layers.1.ffn.down_EDF"].numpy()
            found = gguf.dequantize(tensor.data, tensor.tensor_type)
            assert 0 < np.abs(found - exact).max() <= error * np.abs(exact).max()


def test_a_bfloat16_model_is_written_too(make_model: MakeModel, tmp_path: Path) -> None:
    parts = make_model(**EXPERTS).parts()
    half = replace(parts, state={name: tensor.bfloat16() for name, tensor in parts.state.items()})
    export_gguf(half, tmp_path / "a.gguf", "f32")
    found = arrays(GGUFReader(tmp_path / "a.gguf"))["token_embd.weight"]
    np.testing.assert_array_equal(found, half.state["word.weight"].float())


# ---- the expert bias --------------------------------------------------------------------------------------


def in_double(parts: Parts, activation: str = "gelu") -> Embedder:
    def change(_: int, layer: LayerSpec) -> LayerSpec:
        return layer.model_copy(update={"ffn": layer.ffn.model_copy(update={"activation": activation})})

    return Embedder(replace(parts, spec=parts.spec.with_layers(change))).double().eval()


def test_a_folded_bias_gives_the_same_vectors(make_model: MakeModel) -> None:
    parts = make_model(**EXPERTS).parts()
    vectors = in_double(parts).encode(TEXTS)
    for fold_bias, close in ((True, True), (False, False)):
        graph = as_graph(parts, fold_bias)[1]
        assert graph.spec.moe is not None
        assert graph.spec.moe.bias == "none"
        found = in_double(graph).encode(TEXTS)
        assert (np.abs(found - vectors).max() < 1e-5) == close  # weights are rounded to fp32 after folding


@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.sampled_from([1e-3, 1.0, 30.0]),
    zeros=st.integers(0, 3),
    negative=st.booleans(),
)
def test_folding_is_exact_on_every_state_a_norm_can_give(
    seed: int, size: float, zeros: int, negative: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    gain_D, offset_D, bias_D = torch.randn(3, 12, generator=generator, dtype=torch.float64)
    gain_D = gain_D.abs() + 0.1
    gain_D[0] *= -1 if negative else 1
    gain_D[1 : 1 + zeros] = 0
    bias_D *= size
    shift_D, one_D = fold(gain_D, offset_D, bias_D)
    z_TD = torch.randn(20, 12, generator=generator, dtype=torch.float64)
    h_TD = gain_D * (z_TD - z_TD.mean(1, keepdim=True)) + offset_D
    weight = torch.randn(5, 12, generator=generator, dtype=torch.float64)
    moved = weight - (weight @ shift_D)[:, None] * one_D
    torch.testing.assert_close((h_TD + shift_D) @ moved.T, h_TD @ weight.T, rtol=0, atol=1e-9 * (1 + size))
    centred = (shift_D - shift_D.mean()) - (bias_D - bias_D.mean())
    assert centred.abs().max() < 1e-12 * (1 + size)


def test_the_facts_say_what_became_of_the_bias(make_model: MakeModel, tmp_path: Path) -> None:
    parts = make_model(**EXPERTS).parts()
    dropped = export_gguf(parts, tmp_path / "a.gguf", "f32")
    folded = export_gguf(parts, tmp_path / "a.gguf", "f32", fold_expert_bias=True)
    assert (dropped["expert_bias"], folded["expert_bias"]) == ("dropped", "folded")
    assert dropped["min_cosine"] <= dropped["mean_cosine"] < 0.999
    assert folded["min_cosine"] > 0.9999
    free = export_gguf(make_model(**moe_with(bias="none")).parts(), tmp_path / "a.gguf", "f32", True)
    assert free["expert_bias"] == "none"
    assert free["min_cosine"] > 0.9999


def test_whole_vectors_of_a_model_that_cuts_its_own_are_told(make_model: MakeModel, tmp_path: Path) -> None:
    parts = replace(make_model(**EXPERTS).parts(), truncate_dim=8)
    with pytest.warns(UserWarning, match="coordinates: cut them to the first 8, as this model"):
        export_gguf(parts, tmp_path / "a.gguf", "f32")


# ---- tokenizers -------------------------------------------------------------------------------------------


def vocabulary(backend: Backend, size: int, path: Path) -> dict[str, Any]:
    writer = gguf.GGUFWriter(path, "bert")
    add_vocabulary(writer, backend, size)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return {n.removeprefix("tokenizer.ggml."): v for n, v in fields(GGUFReader(path), "tokenizer.").items()}


def test_wordpieces_are_marked_where_a_word_starts(backend: Backend, tmp_path: Path) -> None:
    values = vocabulary(backend, backend.get_vocab_size() + 1, tmp_path / "a.gguf")
    tokens, kinds = values.pop("tokens"), values.pop("token_type")
    assert values == {
        "model": "bert",
        "pre": "default",
        "bos_token_id": 2,
        "eos_token_id": 3,
        "seperator_token_id": 3,
        "unknown_token_id": 1,
        "padding_token_id": 0,
        "mask_token_id": 4,
        "normalizer.lowercase": True,
        "normalizer.strip_accents": True,
    }
    pieces = backend.get_vocab()
    assert tokens[pieces["mole"]] == "▁mole"
    assert tokens[pieces["##a"]] == "a"
    assert tokens[-1].startswith("[PAD")
    assert kinds[-1] == TokenType.UNUSED
    assert kinds[: len(SPECIAL)] == [TokenType.CONTROL] * len(SPECIAL)
    assert set(kinds[len(SPECIAL) : -1]) == {TokenType.NORMAL}


def test_added_tokens_stay_as_they_are(minilm: Path, tmp_path: Path) -> None:
    backend = Backend.from_file(str(minilm / "tokenizer.json"))
    backend.no_padding()
    backend.add_tokens(["<owl>"])
    values = vocabulary(backend, backend.get_vocab_size(), tmp_path / "a.gguf")
    assert values["tokens"][101:104] == ["[CLS]", "[SEP]", "[MASK]"]
    assert values["token_type"][101:104] == [TokenType.CONTROL] * 3
    assert values["tokens"][-1] == "<owl>"
    assert values["token_type"][-1] == TokenType.USER_DEFINED


def unigram() -> Backend:
    pieces = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁mole", -3.5), ("s", -1.0)]
    made = Backend(models.Unigram(pieces, unk_id=3))
    made.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    made.normalizer = normalizers.Sequence([normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")])
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return made


def test_unigrams_keep_their_scores(tmp_path: Path) -> None:
    values = vocabulary(unigram(), 8, tmp_path / "a.gguf")
    assert values == {
        "model": "t5",
        "pre": "default",
        "tokens": ["<s>", "<pad>", "</s>", "<unk>", "▁mole", "s", "<mask>", "[PAD7]"],
        "scores": [0.0, 0.0, 0.0, 0.0, -3.5, -1.0, -10000.0, -10000.0],
        "token_type": [3, 3, 3, TokenType.UNKNOWN, 1, 1, 3, TokenType.UNUSED],
        "add_bos_token": True,
        "add_eos_token": True,
        "add_space_prefix": True,
        "remove_extra_whitespaces": True,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "seperator_token_id": 2,
        "unknown_token_id": 3,
        "padding_token_id": 1,
        "mask_token_id": 6,
    }


def test_the_character_map_of_sentencepiece_travels(tmp_path: Path) -> None:
    charsmap = bytes([4, 0, 0, 0, 0, 1, 0, 0, 0])  # an empty map in sentencepiece's format
    made = unigram().to_str()
    settings = made.replace('{"type":"Strip","strip_left":true,"strip_right":true}', "MAP")
    settings = settings.replace(
        "MAP", f'{{"type":"Precompiled","precompiled_charsmap":"{b64encode(charsmap).decode()}"}}'
    )
    assert settings != made
    values = vocabulary(Backend.from_str(settings), 8, tmp_path / "a.gguf")
    assert bytes(values["precompiled_charsmap"]) == charsmap


def test_tokenizers_that_llamacpp_lacks_are_refused(backend: Backend, tmp_path: Path) -> None:
    def refused(change: Any, message: str, base: Backend = backend) -> None:
        made = Backend.from_str(base.to_str())
        change(made)
        with pytest.raises(UserError, match=message):
            vocabulary(made, 200, tmp_path / "a.gguf")

    refused(lambda made: setattr(made, "model", models.BPE()), "not BPE")
    refused(lambda made: setattr(made, "normalizer", normalizers.NFC()), "BERT's own")
    refused(lambda made: setattr(made, "normalizer", normalizers.NFC()), "found: NFC", unigram())
    refused(lambda made: setattr(made, "pre_tokenizer", pre_tokenizers.Digits()), "found: Digits", unigram())
    bare = processors.TemplateProcessing(single="$A", special_tokens=[])
    refused(lambda made: setattr(made, "post_processor", bare), "puts 0 around it")
    refused(lambda made: made.add_tokens(["▁mole"]), "'▁mole'")


# ---- refusals ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"moe": FlatMoE(layers=(1,), num_experts=2)}, "absolute positions.*biases inside its experts"),
        (moe_with(layers=(0, 2)), "Nomic layout"),
        (moe_with(router=RouterConfig()), "router.normalize null"),
        (moe_with(num_shared_experts=1, shared_weight="mean"), "shared experts"),
        (EXPERTS | {"gated": True, "activation": "silu", "ffn_bias": False}, "gated experts"),
        (EXPERTS | {"norm": "pre"}, "pre-norm blocks"),
        (EXPERTS | {"pooling": "max"}, r"pooling 'max' \(known: mean, cls\)"),
        (GATED | {"ffn_bias": True}, "biases in gated blocks"),
        (GATED | {"activation": "gelu"}, "activation 'gelu' in gated blocks"),
        ({"activation": "relu"}, "bert graph cannot run this model: it has activation 'relu' in plain"),
        ({"gated": True, "activation": "silu", "ffn_bias": False}, "gated blocks beside absolute"),
        ({"norm": "pre", "activation": "silu"}, "pre-norm blocks; activation"),
    ],
)
def test_what_no_graph_computes_is_refused(
    make_model: MakeModel, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    parts = make_model(**changes).parts()
    with pytest.raises(UserError, match=message):
        export_gguf(parts, tmp_path / "a.gguf", "f32")
    assert not list(tmp_path.iterdir())


def test_q8_0_needs_whole_blocks(make_model: MakeModel, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="multiples of 32, this model has 16 and 24"):
        export_gguf(make_model().parts(), tmp_path / "a.gguf", "q8_0")


def test_a_place_that_cannot_be_written_is_named(make_model: MakeModel, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*file/a\.gguf"):
        export_gguf(make_model().parts(), tmp_path / "file" / "a.gguf", "f32")


def test_an_old_file_stays_until_the_new_one_is_whole(
    make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.gguf").write_text("old")

    def full(self: gguf.GGUFWriter, progress: bool = False) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gguf.GGUFWriter, "write_tensors_to_file", full)
    with pytest.raises(UserError, match="No space left"):
        export_gguf(make_model().parts(), tmp_path / "a.gguf", "f32")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a.gguf", "old")]
