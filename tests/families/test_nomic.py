"""Published NomicBERT checkpoints give the vectors of an independent reference and are written unchanged."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer as Backend

import published
from moembed.embedder import Embedder
from moembed.folder.read import read_config, read_folder
from moembed.folder.write import write_folder
from moembed.model.encoder import num_parameters
from moembed.packing import pack
from moembed.types import TruncationWarning, UserError
from published import CONFIG, MAX_LENGTH, PROMPTS, V2_SIZE, VARIANTS, make_tensors, token_row

EQUAL = 2e-5  # largest difference of one coordinate of a unit vector: fp32 against float64
Checkpoint = Callable[..., Path]


@pytest.fixture
def checkpoint(tmp_path: Path, backend: Backend) -> Checkpoint:
    """``checkpoint(seed=1, moe_top_k=1)``: a folder in the published layout."""

    def make(seed: int = 0, **changes: Any) -> Path:
        values = CONFIG | changes
        return published.write(tmp_path / "published", values, make_tensors(values, seed), backend)

    return make


def reference(texts: list[str], prompt: str, dim: int | None, backend: Backend, **changes: Any) -> np.ndarray:
    values = CONFIG | changes
    tensors = make_tensors(values)
    rows = [token_row(backend, text, prompt) for text in texts]
    return np.array([published.embedding(values, tensors, row, dim) for row in rows])


# ---- values --------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_vectors_equal_the_reference(
    changes: dict[str, Any], checkpoint: Checkpoint, backend: Backend, texts: list[str]
) -> None:
    model = Embedder.from_pretrained(checkpoint(**changes), device="cpu")
    vectors = model.vectors(texts).array
    assert np.abs(vectors - reference(texts, "", None, backend, **changes)).max() <= EQUAL


@pytest.mark.parametrize("prompt_name", [None, *PROMPTS])
@pytest.mark.parametrize("dim", [None, 5])
def test_prompts_cuts_and_short_vectors_equal_the_reference(
    prompt_name: str | None, dim: int | None, checkpoint: Checkpoint, backend: Backend, texts: list[str]
) -> None:
    """The prompt is part of the mean; a long text keeps both specials; the vector is cut, then normalised."""
    model = Embedder.from_pretrained(checkpoint(), device="cpu")
    prompt = PROMPTS.get(prompt_name or "", "")
    expected = reference(texts, prompt, dim, backend)
    with pytest.warns(TruncationWarning, match=f"cut at {MAX_LENGTH} tokens"):
        vectors = model.encode(texts, prompt_name, dim)
    assert np.abs(vectors - expected).max() <= EQUAL


def test_the_pad_row_is_trained_like_any_other(checkpoint: Checkpoint) -> None:
    model = Embedder.from_pretrained(checkpoint(), device="cpu")
    tensors, pad = make_tensors(CONFIG), CONFIG["pad_token_id"]
    rows = [[2, pad, 9, pad, 3], [pad]]
    with torch.no_grad():
        vectors = model(pack(rows)).vector_BM.numpy()
    expected = [published.embedding(CONFIG, tensors, row) for row in rows]
    assert np.abs(vectors - expected).max() <= EQUAL


@pytest.mark.parametrize(
    "changes",
    [
        {"moe_top_k": 1},
        {"moe_normalize_expert_weights": 1},
        {"moe_normalize_expert_weights": 2},
        {"rotary_emb_base": 37.0},
        {"layer_norm_epsilon": 0.1},
        {"prenorm": True},
    ],
)
def test_the_reference_tells_the_fields_apart(
    changes: dict[str, Any], backend: Backend, texts: list[str]
) -> None:
    """Same tensors, one field changed: what the other tests compare must depend on it."""
    as_published, changed = (reference(texts, "", None, backend, **fields) for fields in ({}, changes))
    assert np.abs(as_published - changed).max() > 100 * EQUAL


# ---- reading and writing -------------------------------------------------------------------------


def assert_same_checkpoint(one: Path, other: Path) -> None:
    assert json.loads((one / "config.json").read_text()) == json.loads((other / "config.json").read_text())
    before, after = (load_file(folder / "model.safetensors") for folder in (one, other))
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert after[name].dtype == tensor.dtype, name
        assert torch.equal(after[name], tensor), name
    settings = "sentence_bert_config.json"
    assert json.loads((one / settings).read_text()) == json.loads((other / settings).read_text())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_reading_and_writing_is_the_identity(
    changes: dict[str, Any], dtype: str, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    folder = checkpoint(torch_dtype=dtype, **changes)
    first = read_folder(folder)
    write_folder(tmp_path / "again", first)
    assert_same_checkpoint(folder, tmp_path / "again")
    second = read_folder(tmp_path / "again")
    assert second.spec == first.spec
    assert second.source == first.source
    assert second.state.keys() == first.state.keys()
    assert all(torch.equal(second.state[name], tensor) for name, tensor in first.state.items())
    assert second.tokenizer.prompts == PROMPTS


def test_a_model_saved_unchanged_is_the_checkpoint_it_came_from(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    folder = checkpoint(auto_map={"AutoModel": "org/code--modeling_hf_nomic_bert.NomicBertModel"})
    Embedder.from_pretrained(folder, device="cpu").save_pretrained(tmp_path / "again")
    assert_same_checkpoint(folder, tmp_path / "again")


def test_saved_in_another_dtype_only_the_dtype_of_the_config_changes(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    folder = checkpoint()
    Embedder.from_pretrained(folder, dtype="bfloat16", device="cpu").save_pretrained(tmp_path / "again")
    values = json.loads((tmp_path / "again" / "config.json").read_text())
    assert values == CONFIG | {"torch_dtype": "bfloat16"}


# ---- size ----------------------------------------------------------------------------------------


def test_the_published_config_has_the_published_number_of_parameters(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | V2_SIZE))
    config = read_config(tmp_path)
    assert config.moe_layers == (1, 3, 5, 7, 9, 11)
    assert num_parameters(config) == 475_292_928
    assert num_parameters(config, active=True) == 305_423_616


# ---- traps ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"moe_every_n_layers": 1}, "moe_every_n_layers = 1 with num_experts = 4 leaves no layer"),
        ({"moe_every_n_layers": 0}, "moe_every_n_layers = 0"),
        ({"expert_choice_router": True}, "expert_choice_router = True is not supported"),
        ({"ffn_div": 2}, "ffn_div = 2 is not supported"),
        ({"moe_impl": "contrastors"}, "moe_impl = 'contrastors' is not supported"),
        ({"num_shared_experts": 2}, "moe_top_k = 2 must be more than num_shared_experts = 2"),
        ({"moe_top_k": 5}, "at most num_experts = 4"),
        ({"activation_function": "geglu"}, "'geglu' with experts"),
        ({"activation_function": "gelu_new"}, "activation_function = 'gelu_new' is not supported"),
        ({"rotary_scaling_factor": 2.0}, "rotary_scaling_factor = 2.0 is not supported"),
        ({"rotary_emb_interleaved": True}, "rotary_emb_interleaved = True"),
        ({"mlp_fc2_bias": False}, "mlp_fc1_bias different from mlp_fc2_bias"),
        ({"num_experts": "many"}, "config.json"),
    ],
)
def test_what_would_be_another_model_is_refused(
    changes: dict[str, Any], complaint: str, checkpoint: Checkpoint
) -> None:
    folder = checkpoint()
    (folder / "config.json").write_text(json.dumps(CONFIG | changes))
    with pytest.raises(UserError) as error:
        Embedder.from_pretrained(folder)
    assert complaint in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("key", ["moe_top_k", "moe_every_n_layers", "layer_norm_epsilon", "rotary_emb_base"])
def test_a_key_that_decides_the_values_must_be_there(key: str, checkpoint: Checkpoint) -> None:
    folder = checkpoint()
    (folder / "config.json").write_text(json.dumps({k: v for k, v in CONFIG.items() if k != key}))
    with pytest.raises(UserError, match=rf"config\.json has no key '{key}'"):
        read_config(folder)


def edit(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


MOE = "encoder.layers.1.mlp"


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda t: t.pop(f"{MOE}.experts.bias"), f"{MOE}.experts.bias' is missing"),
        (lambda t: t.update({f"{MOE}.experts.mlp.v1": torch.ones(96, 16)}), "belong to no part"),
        (
            lambda t: t.update({f"{MOE}.experts.mlp.w2": torch.ones(16, 96)}),
            "shape (16, 96), expected (96, 16)",
        ),
        (lambda t: t.update({f"{MOE}.router.layer.bias": torch.ones(4)}), "router.layer.bias"),
        (lambda t: t[f"{MOE}.experts.mlp.w1"].fill_(torch.nan), "NaN"),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    change: Callable[[dict[str, torch.Tensor]], object], complaint: str, checkpoint: Checkpoint
) -> None:
    folder = checkpoint()
    edit(folder, change)
    with pytest.raises(UserError) as error:
        read_folder(folder)
    assert complaint in str(error.value)


@pytest.mark.parametrize(("stored", "told"), [(0, 4), (4, 0)])
def test_a_config_that_is_wrong_about_having_experts_is_refused(
    stored: int, told: int, checkpoint: Checkpoint
) -> None:
    folder = checkpoint(num_experts=stored)
    (folder / "config.json").write_text(json.dumps(CONFIG | {"num_experts": told}))
    with pytest.raises(UserError, match=r"tensor 'encoder\.layers\.1\.mlp\..* is missing"):
        read_folder(folder)
