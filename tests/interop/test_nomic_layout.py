"""The published NomicBERT layout in transformers and sentence-transformers: our model, and our values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer as Backend
from transformers import AutoConfig, AutoModel, AutoTokenizer, NomicBertConfig
from transformers import NomicBertModel as TheirNomicBertModel

import published
from moembed import Embedder, UserError
from moembed.interop.nomic_config import NomicConfig
from moembed.interop.nomic_model import NomicBertModel

EQUAL = 1e-5
CHOSEN = [
    "as published",
    "shared and gated",
    "prenorm",
    "normalised: 2",
    "dense, gated, as v1.5",
    "dense, plain",
]
AUTO_MAP = {
    "AutoConfig": "nomic-ai/nomic-bert-2048--configuration_hf_nomic_bert.NomicBertConfig",
    "AutoModel": "nomic-ai/nomic-bert-2048--modeling_hf_nomic_bert.NomicBertModel",
}


def write(folder: Path, backend: Backend, **changes: Any) -> Path:
    values = published.CONFIG | changes
    published.write(folder, values, published.make_tensors(values), backend)
    tokenizer = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]"}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    return folder


@pytest.mark.filterwarnings("ignore::moembed.types.TruncationWarning")
@pytest.mark.parametrize("name", CHOSEN)
@pytest.mark.parametrize("layout", ["published, with code", "saved by us"])
def test_the_vectors_are_ours(
    layout: str, name: str, backend: Backend, texts: list[str], tmp_path: Path
) -> None:
    folder = write(tmp_path / "model", backend, auto_map=AUTO_MAP, **published.VARIANTS[name])
    ours = Embedder.from_pretrained(folder, device="cpu")
    if layout == "saved by us":
        folder = tmp_path / "saved"
        ours.save_pretrained(folder)
    theirs = SentenceTransformer(str(folder), device="cpu")
    assert isinstance(theirs[0].auto_model, NomicBertModel)
    assert np.abs(theirs.encode_query(texts) - ours.encode_query(texts)).max() <= EQUAL

    batch = AutoTokenizer.from_pretrained(folder)(texts[:3], padding=True, return_tensors="pt")
    states = AutoModel.from_pretrained(folder)(**batch).last_hidden_state
    mask = batch["attention_mask"].bool()
    rows = [row[keep].tolist() for row, keep in zip(batch["input_ids"], mask, strict=True)]
    values = json.loads((folder / "config.json").read_text())
    tensors = {key: tensor.numpy() for key, tensor in load_file(folder / "model.safetensors").items()}
    for i, row in enumerate(rows):
        expected = np.stack(published.last_states(values, tensors, row))
        assert np.abs(states[i][mask[i]].detach().numpy() - expected).max() <= EQUAL


@pytest.mark.filterwarnings("ignore::moembed.types.TruncationWarning")
def test_what_they_save_is_the_published_layout(backend: Backend, texts: list[str], tmp_path: Path) -> None:
    folder = write(tmp_path / "model", backend)
    SentenceTransformer(str(folder), device="cpu").save_pretrained(str(tmp_path / "again"))
    stored, written = (load_file(path / "model.safetensors") for path in (folder, tmp_path / "again"))
    assert stored.keys() == written.keys()
    assert all(torch.equal(tensor, written[name]) for name, tensor in stored.items())
    config = json.loads((tmp_path / "again" / "config.json").read_text())
    unsaid = {key for key, value in published.CONFIG.items() if config.get(key) != value}
    assert unsaid <= {"torch_dtype"}
    one, other = (Embedder.from_pretrained(path, device="cpu") for path in (folder, tmp_path / "again"))
    assert np.array_equal(one.encode(texts), other.encode(texts))


def test_half_precision_and_training_mode(backend: Backend, tmp_path: Path) -> None:
    model = AutoModel.from_pretrained(write(tmp_path / "model", backend), dtype=torch.bfloat16)
    kinds = {"router" in name: p.dtype for name, p in model.named_parameters()}
    assert kinds == {True: torch.float32, False: torch.bfloat16}
    assert not model.training


def test_the_model_of_transformers_stays_theirs(tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    model = TheirNomicBertModel(NomicBertConfig(vocab_size=50, **sizes), add_pooling_layer=False)
    model.save_pretrained(tmp_path)
    again = AutoModel.from_pretrained(tmp_path, add_pooling_layer=False)
    assert type(again) is TheirNomicBertModel
    assert type(AutoConfig.from_pretrained(tmp_path)) is NomicBertConfig
    both = json.loads((tmp_path / "config.json").read_text()) | {"n_embd": 16}
    assert type(NomicConfig.from_dict(both)) is NomicBertConfig
    assert type(NomicConfig.from_dict(both | {"num_experts": 4})) is NomicConfig
    ids = torch.arange(9)[None]
    assert torch.equal(again(ids).last_hidden_state, model.eval()(ids).last_hidden_state)


def test_the_config_says_what_transformers_asks(backend: Backend, tmp_path: Path) -> None:
    config = AutoConfig.from_pretrained(write(tmp_path / "model", backend))
    assert isinstance(config, NomicConfig)
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (16, 4, 2)
    assert (config.intermediate_size, config.max_position_embeddings) == (24, 40)


def test_what_does_not_fit_is_one_sentence(backend: Backend, tmp_path: Path) -> None:
    folder = write(tmp_path / "model", backend)
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | {"n_inner": 25}))
    with pytest.raises(UserError, match=r"has shape .* expected"):
        AutoModel.from_pretrained(folder)
    del values["layer_norm_epsilon"]
    (folder / "config.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match="no key 'layer_norm_epsilon'"):
        AutoModel.from_pretrained(folder)
