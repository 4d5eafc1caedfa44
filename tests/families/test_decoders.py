"""Language models read as encoders: every hidden state equals that of transformers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from conftest import randomise
from moembed.families.registry import FAMILIES
from moembed.folder.read import read_config
from moembed.folder.tensors import read_state
from moembed.model.encoder import Encoder
from moembed.packing import offsets, pack
from moembed.types import UserError
from tiny_configs import CLASSES, CONFIGS

# fp32 on two orders of summation, by the size of the states: those of Gemma reach 17, and with AMX two orders
# are 2e-5 apart there, as far as either is from float64
EQUAL = 1e-5
ROWS = [[7, 8, 9, 10, 11, 12, 13, 14, 15], [100], [20, 21, 22, 20], [30, 31, 32, 33]]
LLAMA3 = {"rope_type": "llama3", "rope_theta": 1000.0, "factor": 8.0, "low_freq_factor": 1.0}
LLAMA3 |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 16}
YARN = {"rope_type": "yarn", "rope_theta": 1000.0, "factor": 4.0, "original_max_position_embeddings": 10}
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in CONFIGS),
    ("llama", {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 4, "is_causal": False}),
    ("llama", {"head_dim": 8, "rope_parameters": LLAMA3}),
    ("llama", {"rope_parameters": YARN, "hidden_act": "gelu_new"}),
    ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 100.0}}),
    ("mistral", {"sliding_window": None}),
    ("mistral", {"is_causal": False}),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1}),
    ("qwen3", {"is_causal": False, "attention_bias": True}),
    ("gemma", {"is_causal": False, "attention_bias": True}),
    ("gemma3_text", {"use_bidirectional_attention": True, "sliding_window": 4}),
    ("t5", {"feed_forward_proj": "gated-gelu", "relative_attention_num_buckets": 8}),
    (
        "t5",
        {"feed_forward_proj": "gated-silu", "relative_attention_max_distance": 4}
        | {"relative_attention_num_buckets": 8},
    ),
]

Saved = Callable[..., "tuple[Path, Any]"]


@pytest.fixture
def saved(tmp_path: Path) -> Saved:
    """``saved("llama", head_dim=8)``: a random transformers model and the folder it is saved in."""

    def make(name: str, architecture: str | None = None, **changes: Any) -> tuple[Path, nn.Module]:
        cls = getattr(transformers, architecture or CLASSES[name])
        values = {key: value for key, value in (CONFIGS[name] | changes).items() if key != "model_type"}
        config = cls.config_class(**values, pad_token_id=0, attn_implementation="eager")
        model = cls(config).eval()
        randomise(model, seed=0)
        model.save_pretrained(tmp_path / "folder")
        return tmp_path / "folder", model

    return make


def read(folder: Path) -> Encoder:
    spec = read_config(folder)
    encoder = Encoder(spec)
    family = FAMILIES[json.loads((folder / "config.json").read_text())["model_type"]]
    encoder.load_state_dict(read_state(folder, spec, family))
    return encoder.eval()


@torch.no_grad()
def our_states(encoder: Encoder) -> list[list[Tensor]]:
    """``states[depth][i]`` of text i, from one packed batch."""
    batch, last = pack(ROWS), encoder.spec.num_layers
    hidden, _ = encoder(batch.token_T, batch.length_B, range(last + 1))
    ends = offsets(batch.length_B)
    places = batch.restore_B.tolist()
    return [[hidden[depth][ends[i] : ends[i + 1]] for i in places] for depth in range(last + 1)]


@torch.no_grad()
def their_states(model: Any) -> list[list[Tensor]]:
    """The same from transformers, from one batch that is padded on the left; all but the last unnormed."""
    longest = max(map(len, ROWS))
    token_BS = torch.tensor([[0] * (longest - len(row)) + row for row in ROWS])
    real_BS = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in ROWS])
    t5 = hasattr(model, "shared")
    base = model.encoder if t5 else model.base_model
    places = {} if t5 else {"position_ids": (real_BS.cumsum(1) - 1).clamp(min=0)}
    output = base(input_ids=token_BS, attention_mask=real_BS, output_hidden_states=True, **places)
    final = base.final_layer_norm if t5 else base.norm
    states = [*map(final, output.hidden_states[:-1]), output.hidden_states[-1]]
    return [[states_BSD[i, longest - len(row) :] for i, row in enumerate(ROWS)] for states_BSD in states]


def assert_equal_states(found: list[list[Tensor]], expected: list[list[Tensor]]) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        for our_SD, their_SD in zip(ours, theirs, strict=True):
            size = max(1.0, their_SD.abs().max().item())
            torch.testing.assert_close(our_SD, their_SD, rtol=0.0, atol=EQUAL * size)


@pytest.mark.parametrize(("name", "changes"), VARIANTS)
def test_every_hidden_state_equals_transformers(name: str, changes: dict[str, Any], saved: Saved) -> None:
    folder, model = saved(name, **changes)
    values = json.loads((folder / "config.json").read_text())
    encoder = read(folder)
    assert_equal_states(our_states(encoder), their_states(model))
    # and the config that is written says the same, in whole to transformers too
    again = FAMILIES[name].write_config(encoder.spec)
    assert FAMILIES[name].read_config(json.loads(json.dumps(again))) == encoder.spec
    theirs = type(model.config)(**(values | again))
    theirs._attn_implementation = "eager"
    copy = type(model)(theirs).eval()
    copy.load_state_dict(model.state_dict())
    assert_equal_states(their_states(copy), their_states(model))


@pytest.mark.parametrize(
    ("name", "architecture"),
    [
        ("llama", "LlamaForCausalLM"),
        ("qwen3", "Qwen3ForSequenceClassification"),
        ("gemma3_text", "Gemma3ForCausalLM"),
        ("t5", "T5Model"),
        ("t5", "T5ForConditionalGeneration"),
    ],
)
def test_a_whole_language_model_reads_as_its_base(name: str, architecture: str, saved: Saved) -> None:
    folder, model = saved(name, architecture)
    assert_equal_states(our_states(read(folder)), their_states(model))


@pytest.mark.parametrize("key", ["older", "today"])
def test_rotary_keys_of_today_and_of_before_mean_the_same(key: str) -> None:
    scaling = {key: value for key, value in LLAMA3.items() if key not in ("rope_theta", "rope_type")}
    older = {"rope_theta": 1000.0, "rope_scaling": {"type": "llama3", **scaling}}
    values = {key: value for key, value in CONFIGS["llama"].items() if key != "rope_parameters"}
    told = older if key == "older" else {"rope_parameters": LLAMA3}
    found = FAMILIES["llama"].read_config(values | told).layers[0].attention.rope
    expected = FAMILIES["llama"].read_config(values | {"rope_parameters": LLAMA3}).layers[0].attention.rope
    assert found == expected
    assert found is not None
    assert found.bands is not None


@pytest.mark.parametrize(
    ("name", "changes", "complaint"),
    [
        ("llama", {"rope_parameters": {"rope_type": "longrope"}}, "rope_type 'longrope' is not supported"),
        ("llama", {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_type 'dynamic'"),
        ("qwen2", {"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5"),
        ("llama", {"hidden_act": "mish"}, "activation 'mish'"),
        ("llama", {"num_key_value_heads": 3}, "num_heads 4 is not a multiple of num_kv_heads 3"),
        ("qwen3", {"layer_types": ["linear_attention"] * 3}, "layer_types"),
        ("qwen3", {"layer_types": ["sliding_attention"] * 3}, "sliding_window None"),
        ("gemma3_text", {"layer_types": ["full_attention"]}, "layer_types"),
        ("gemma3_text", {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping 50.0"),
        ("gemma3_text", {"is_causal": False}, "say use_bidirectional_attention true"),
        ("gemma", {"use_bidirectional_attention": True}, "say is_causal false"),
        ("t5", {"feed_forward_proj": "gated-mish"}, "activation 'mish'"),
        ("t5", {"relative_attention_num_buckets": 6}, "buckets 6 is not a multiple of 4"),
    ],
)
def test_what_cannot_be_computed_is_one_sentence(
    name: str, changes: dict[str, Any], complaint: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIGS[name] | changes))
    with pytest.raises(UserError) as error:
        read_config(tmp_path)
    assert complaint in str(error.value)
    assert "\n" not in str(error.value)
