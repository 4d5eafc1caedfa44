"""Checkpoints of other families give transformers' own hidden states, and are written as they were read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModel

from conftest import HfFolder
from moembed.families import bert
from moembed.families.flat import FlatConfig, flatten
from moembed.families.registry import FAMILIES
from moembed.folder.parts import Parts
from moembed.folder.read import read_config, read_folder
from moembed.folder.write import write_folder
from moembed.model.encoder import Encoder
from moembed.packing import offsets, pack
from moembed.types import UserError
from tiny_configs import CONFIGS, ENCODERS

EQUAL = {"rtol": 0.0, "atol": 1e-5}  # fp32 on two orders of summation; states are of order 1
KINDS = ["bert", "roberta", "xlm-roberta", "camembert", "nomic_bert"]
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("bert", {}),
    ("bert", {"hidden_act": "gelu_new", "layer_norm_eps": 1e-3}),
    ("bert", {"hidden_act": "relu", "type_vocab_size": 1, "num_hidden_layers": 3}),
    ("bert", {"hidden_act": "silu", "hidden_size": 24, "num_attention_heads": 3, "intermediate_size": 7}),
    ("roberta", {}),
    ("roberta", {"pad_token_id": 4, "type_vocab_size": 1, "hidden_act": "gelu_new"}),
    ("xlm-roberta", {"num_attention_heads": 4}),
    ("xlm-roberta", {"hidden_act": "relu", "num_hidden_layers": 1}),
    ("camembert", {"hidden_act": "relu"}),
    ("nomic_bert", {}),
    ("nomic_bert", {"hidden_act": "gelu", "type_vocab_size": 1, "layer_norm_eps": 1e-3}),
    (
        "nomic_bert",
        {"rope_parameters": {"rope_type": "default", "rope_theta": 77.0}, "hidden_size": 32, "head_dim": 16},
    ),
]
ROWS = [[7, 8, 9, 10, 11, 12, 13, 14, 15], [100], [20, 21, 22, 20], [30, 31, 32, 33]]
PUBLISHED = {  # config.json as the NomicBERT checkpoints spell it
    "model_type": "nomic_bert", "vocab_size": 130, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_inner": 24,
    "n_positions": 40, "activation_function": "swiglu", "qkv_proj_bias": False, "mlp_fc1_bias": False,
    "mlp_fc2_bias": False, "layer_norm_epsilon": 1e-12, "rotary_emb_base": 1000, "rotary_emb_fraction": 1.0,
    "rotary_emb_interleaved": False, "rotary_emb_scale_base": None, "rotary_scaling_factor": None,
    "type_vocab_size": 2, "prenorm": False, "use_rms_norm": None, "causal": False, "parallel_block": False,
}  # fmt: skip


def encoder_of(parts: Parts) -> Encoder:
    encoder = Encoder(parts.spec)
    encoder.load_state_dict(parts.state)
    return encoder.eval()


@torch.no_grad()
def our_states(folder: Path) -> list[list[Tensor]]:
    """``states[depth][i]`` of text i, from one packed batch."""
    parts = read_folder(folder)
    batch = pack(ROWS)
    hidden, _ = encoder_of(parts)(batch.token_T, batch.length_B, range(parts.spec.num_layers + 1))
    ends = offsets(batch.length_B)
    return [
        [states_TD[ends[place] : ends[place + 1]] for place in batch.restore_B.tolist()]
        for _, states_TD in sorted(hidden.items())
    ]


@torch.no_grad()
def their_states(model: nn.Module) -> list[list[Tensor]]:
    """The same from transformers, from one padded batch."""
    longest, pad = max(map(len, ROWS)), model.config.pad_token_id
    token_BS = torch.tensor([row + [pad] * (longest - len(row)) for row in ROWS])
    real_BS = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in ROWS])
    output = model(input_ids=token_BS, attention_mask=real_BS, output_hidden_states=True)
    assert torch.equal(output.hidden_states[-1], output.last_hidden_state)
    return [[states_BSD[i, : len(row)] for i, row in enumerate(ROWS)] for states_BSD in output.hidden_states]


def assert_equal_states(found: list[list[Tensor]], expected: list[list[Tensor]]) -> None:
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        for our_SD, their_SD in zip(ours, theirs, strict=True):
            torch.testing.assert_close(our_SD, their_SD, **EQUAL)


@pytest.mark.parametrize(("kind", "changes"), VARIANTS)
@pytest.mark.parametrize("seed", [0, 1])
def test_every_hidden_state_equals_transformers(
    kind: str, changes: dict[str, Any], seed: int, hf_folder: HfFolder
) -> None:
    folder, model = hf_folder(kind, seed, **changes)
    assert_equal_states(our_states(folder), their_states(model))


@pytest.mark.parametrize("kind", KINDS)
def test_a_task_heads_checkpoint_reads_as_its_base(kind: str, hf_folder: HfFolder) -> None:
    folder, model = hf_folder(kind, head="ForMaskedLM")
    names = load_file(folder / "model.safetensors")
    assert not any(name.startswith(("embeddings.", "encoder.")) for name in names)
    assert any(name.startswith(("cls.", "lm_head.")) for name in names)
    assert_equal_states(our_states(folder), their_states(model.base_model))


def test_the_first_bert_checkpoints_call_a_norm_gamma_and_beta(hf_folder: HfFolder) -> None:
    folder, model = hf_folder("bert", head="ForMaskedLM")
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    tensors = load_file(folder / "model.safetensors")
    for now, then in old.items():
        tensors = {name.replace(now, then): tensor for name, tensor in tensors.items()}
    save_file(tensors, folder / "model.safetensors")
    assert_equal_states(our_states(folder), their_states(model.base_model))


@pytest.mark.parametrize(("kind", "changes"), VARIANTS)
def test_reading_and_writing_are_inverse(
    kind: str, changes: dict[str, Any], hf_folder: HfFolder, tmp_path: Path
) -> None:
    folder, model = hf_folder(kind, **changes)
    first = read_folder(folder)
    write_folder(tmp_path / "again", first)
    second = read_folder(tmp_path / "again")
    assert second.spec == first.spec
    assert second.state.keys() == first.state.keys()
    assert all(torch.equal(second.state[name], tensor) for name, tensor in first.state.items())
    again = AutoModel.from_pretrained(tmp_path / "again").eval()
    assert type(again) is type(model)
    assert_equal_states(their_states(again), their_states(model))


# ---- NomicBERT, as published ---------------------------------------------------------------------


def with_config(folder: Path, values: dict[str, Any]) -> Path:
    (folder / "config.json").write_text(json.dumps(values))
    return folder


def test_the_published_spelling_means_the_same_model(hf_folder: HfFolder) -> None:
    folder, model = hf_folder("nomic_bert")
    assert_equal_states(our_states(with_config(folder, PUBLISHED)), their_states(model))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"activation_function": "geglu"}, {"gated": True, "activation": "gelu"}),
        ({"activation_function": "swiglu"}, {"gated": True, "activation": "silu"}),
        ({"activation_function": "gelu"}, {"gated": False, "activation": "gelu"}),
        ({"qkv_proj_bias": True}, {"attention_bias": True, "ffn_bias": False}),
        ({"mlp_fc1_bias": True, "mlp_fc2_bias": True}, {"attention_bias": False, "ffn_bias": True}),
        ({"type_vocab_size": 0, "rotary_emb_base": 10000}, {"num_token_types": 0, "rope_base": 10000.0}),
    ],
)
def test_published_options_are_read_and_written_back(
    changes: dict[str, Any], expected: dict[str, Any], tmp_path: Path
) -> None:
    spec = read_config(with_config(tmp_path, PUBLISHED | changes))
    assert flatten(spec, "it").model_dump(include=set(expected)) == expected
    assert read_config(with_config(tmp_path, FAMILIES["nomic_bert"].write_config(spec))) == spec


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("use_rms_norm", True),
        ("causal", True),
        ("parallel_block", True),
        ("rotary_emb_fraction", 0.5),
        ("rotary_emb_fraction", 0.0),
        ("rotary_emb_interleaved", True),
        ("rotary_emb_scale_base", 512.0),
        ("rotary_scaling_factor", 2.0),
        ("mlp_fc1_bias", True),
        ("activation_function", "mish"),
    ],
)
def test_an_option_that_changes_the_values_is_refused(key: str, value: object, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.json: .*not supported") as error:
        read_config(with_config(tmp_path, PUBLISHED | {key: value}))
    assert key in str(error.value)


# ---- what no family can say ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "changes", "complaint"),
    [
        ("bert", {"position_embedding_type": "relative_key"}, "position_embedding_type 'relative_key'"),
        ("bert", {"hidden_act": "mish"}, "activation 'mish' is not supported"),
        ("bert", {"is_decoder": True}, "is_decoder"),
        ("bert", {"hidden_size": 15}, "width 15 is not a multiple of num_heads 2"),
        ("bert", {"hidden_size": "wide"}, "width"),
        ("roberta", {"pad_token_id": None}, "config.json"),
        ("nomic_bert", {"rope_parameters": {"rope_type": "yarn"}}, "rope_type 'yarn' is not supported"),
        ("nomic_bert", {"hidden_act": "relu"}, "hidden_act = 'relu' is not supported"),
        ("nomic_bert", {"num_experts": 8}, "mixes transformers' NomicBERT keys with experts"),
    ],
)
def test_an_unsupported_config_is_one_sentence(
    kind: str, changes: dict[str, Any], complaint: str, hf_folder: HfFolder
) -> None:
    folder, _ = hf_folder(kind)
    values = json.loads((folder / "config.json").read_text())
    with pytest.raises(UserError) as error:
        read_config(with_config(folder, values | changes))
    assert complaint in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["bert", "roberta", "xlm-roberta"])
def test_code_of_its_own_under_a_known_name_is_refused(kind: str, hf_folder: HfFolder) -> None:
    folder, _ = hf_folder(kind)
    values = json.loads((folder / "config.json").read_text()) | {"auto_map": {"AutoModel": "layers.Model"}}
    for read in (read_config, read_folder):
        with pytest.raises(UserError, match=f"'{kind}' but brings code of its own .*, which is not run"):
            read(with_config(folder, values))


@pytest.mark.parametrize("kind", KINDS)
def test_a_missing_key_is_named(kind: str, hf_folder: HfFolder) -> None:
    folder, _ = hf_folder(kind)
    values = json.loads((folder / "config.json").read_text())
    del values["num_hidden_layers"]
    with pytest.raises(UserError, match=r"config\.json has no key 'num_hidden_layers'"):
        read_config(with_config(folder, values))


def test_every_family_writes_the_model_type_it_is_found_by() -> None:
    flat = FlatConfig(vocab_size=9, width=4, num_layers=1, num_heads=1, ffn_width=4)
    own: dict[str, dict[str, Any]] = {name: {"position_offset": 2} for name in bert.CLASSES if name != "bert"}
    own |= {"nomic_bert": {"position": "rope"}}
    for name, family in FAMILIES.items():
        spec = flat.model_copy(update=own.get(name, {})).spec()
        spec = spec if name in (*own, "bert", "moembed") else family.read_config((CONFIGS | ENCODERS)[name])
        written = family.write_config(spec)
        assert written["model_type"] == name
