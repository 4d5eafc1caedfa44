"""Every family from a random checkpoint of transformers: encoded, written, upcycled, trained, exported.

``pytest -rP tests/families/test_conformance.py`` prints the largest differences that docs/families.md shows.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer as Backend
from torch import Tensor, nn

from conftest import TEXTS, complete, randomise, save_tokenizer
from moembed.embedder import Embedder
from moembed.export.gguf.graph import as_graph
from moembed.export.nomic import to_nomic
from moembed.export.onnx.computed import require_computed
from moembed.families.registry import FAMILIES
from moembed.folder.read import read_folder
from moembed.packing import offsets, pack
from moembed.runs.inspect import describe
from moembed.types import TruncationWarning, UserError
from moembed.weights.upcycle import UpcycleConfig, upcycle
from tiny_configs import CONFIGS, ENCODERS

EQUAL = 1e-5  # fp32 on two orders of summation; states are of order 1
ROWS = [[7, 8, 9, 10, 11, 12, 13, 14, 15], [100], [20, 21, 22, 20], [30, 31, 32, 33]]
LONG = "the owl hunts and the mole digs " * 8
CLASSES = {
    "bert": "BertModel",
    "roberta": "RobertaModel",
    "xlm-roberta": "XLMRobertaModel",
    "camembert": "CamembertModel",
    "data2vec-text": "Data2VecTextModel",
    "distilbert": "DistilBertModel",
    "mpnet": "MPNetModel",
    "modernbert": "ModernBertModel",
    "new": "GteModel",  # the tensors have the same names, and its scaled angles are those of "linear"
    "gte": "GteModel",
    "jina_embeddings_v3": "JinaEmbeddingsV3Model",
    "nomic_bert": "NomicBertModel",
    "eurobert": "EuroBertModel",
    "llama": "LlamaModel",
    "mistral": "MistralModel",
    "qwen2": "Qwen2Model",
    "qwen3": "Qwen3Model",
    "gemma": "GemmaModel",
    "gemma3_text": "Gemma3TextModel",
    "t5": "T5EncoderModel",
    "mt5": "MT5EncoderModel",
}
NAMES = [name for name in FAMILIES if name != "moembed"]
BERTS = {"bert", "roberta", "xlm-roberta", "camembert", "data2vec-text"}
RUN_IN_ONNX = {"distilbert", "mpnet", "modernbert", "new", "jina_embeddings_v3", "gemma3_text", "t5"}
EXPORTED = {  # who runs a model of the family as it was read, and upcycled
    "onnx": (set(NAMES), set(NAMES)),
    "gguf": (BERTS - {"camembert"} | {"distilbert", "jina_embeddings_v3", "nomic_bert"}, set()),
    "nomic": ({"jina_embeddings_v3", "nomic_bert"}, {"nomic_bert"}),
}


def transformers_values(name: str) -> dict[str, Any]:
    """The config as transformers says it."""
    values = {key: value for key, value in (CONFIGS | ENCODERS)[name].items() if key != "model_type"}
    values |= {"pad_token_id": 0} if name != "mpnet" else {}
    if name == "new":
        theta, factor = values.pop("rope_theta"), values.pop("rope_scaling")["factor"]
        linear = {"rope_type": "linear", "rope_theta": theta * factor, "factor": factor ** (2 / 8)}
        values |= {"rope_parameters": linear, "type_vocab_size": 2}
    if name in ("modernbert", "eurobert"):
        values |= {f"{key}_token_id": 2 for key in ("cls", "sep", "bos", "eos", "mask")}
    return values


class Checkpoint:
    """``folder`` as it is published, and ``model``, what transformers makes of ``native``, its own layout."""

    def __init__(self, name: str, place: Path, backend: Backend) -> None:
        cls = getattr(transformers, CLASSES[name])
        self.name, self.native = name, place / "native"
        config = cls.config_class(**transformers_values(name))
        self.model: Any = cls(config).eval()
        randomise(self.model, seed=0)
        self.model.save_pretrained(self.native)
        save_tokenizer(self.native, backend)
        complete(self.native)
        self.folder = self.native
        if name == "new":
            self.folder = place / "published"
            shutil.copytree(self.native, self.folder)
            (self.folder / "config.json").write_text(json.dumps(ENCODERS["new"]))
        self.ours = Embedder.from_pretrained(self.folder, device="cpu")

    def theirs(self, folder: Path | None = None) -> SentenceTransformer:
        folder = folder or self.native
        model = SentenceTransformer(str(folder), device="cpu")
        if self.name == "qwen2":  # transformers puts a tokenizer of its own in the place of the stored one
            model[0].processor = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
        return model


@pytest.fixture(scope="module")
def checkpoint(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, backend: Backend
) -> Checkpoint:
    return Checkpoint(request.param, tmp_path_factory.mktemp(request.param), backend)


every_family = pytest.mark.parametrize("checkpoint", NAMES, indirect=True, scope="module")


@torch.no_grad()
def our_states(model: Embedder) -> list[list[Tensor]]:
    """``states[depth][i]`` of text i, from one packed batch."""
    batch, last = pack(ROWS), model.encoder.spec.num_layers
    hidden, _ = model.encoder(batch.token_T, batch.length_B, range(last + 1))
    ends, places = offsets(batch.length_B), batch.restore_B.tolist()
    return [[hidden[depth][ends[i] : ends[i + 1]] for i in places] for depth in range(last + 1)]


@torch.no_grad()
def their_states(model: Any) -> list[list[Tensor]]:
    """The same from transformers, from one padded batch; the last alone went through a final norm there."""
    base: Any = model.encoder if hasattr(model, "shared") else model.base_model
    longest = max(map(len, ROWS))
    token_BS = torch.tensor([row + [0] * (longest - len(row)) for row in ROWS])
    real_BS = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in ROWS])
    output = base(input_ids=token_BS, attention_mask=real_BS, output_hidden_states=True)
    found = (getattr(base, key, None) for key in ("final_norm", "norm", "final_layer_norm"))
    final: nn.Module = next((norm for norm in found if norm is not None), nn.Identity())
    states = [*map(final, output.hidden_states[:-1]), output.last_hidden_state]
    return [[states_BSD[i, : len(row)] for i, row in enumerate(ROWS)] for states_BSD in states]


def distance(ours: Any, theirs: Any) -> float:
    if isinstance(ours, list):
        return max(distance(*pair) for pair in zip(ours, theirs, strict=True))
    return float(np.abs(np.asarray(ours) - np.asarray(theirs)).max())


def test_the_table_has_every_family() -> None:
    assert set(NAMES) == set(CLASSES) == set(CONFIGS | ENCODERS)


@every_family
def test_states_and_vectors_equal_transformers(checkpoint: Checkpoint) -> None:
    ours, texts = checkpoint.ours, [text for text in TEXTS if text]
    states = distance(our_states(ours), their_states(checkpoint.model))
    theirs = checkpoint.theirs()
    expected = theirs.encode(texts, normalize_embeddings=True)
    together, alone = ours.encode(texts), np.concatenate([ours.encode([text]) for text in texts])
    vectors = max(distance(found, expected) for found in (together, alone))
    limit = ours.tokenizer.max_length
    theirs.max_seq_length = limit
    with pytest.warns(TruncationWarning, match=f"cut at {limit} tokens"):
        cut = distance(ours.encode([LONG]), theirs.encode([LONG], normalize_embeddings=True))
    print(f"| `{checkpoint.name}` | {states:.1e} | {max(vectors, cut):.1e} |")
    assert max(states, vectors, cut) <= EQUAL


@every_family
def test_what_is_saved_is_the_same_model_everywhere(checkpoint: Checkpoint, tmp_path: Path) -> None:
    checkpoint.ours.save_pretrained(tmp_path / "again")
    again = Embedder.from_pretrained(tmp_path / "again", device="cpu")
    assert again.encoder.spec == checkpoint.ours.encoder.spec
    state, expected = again.encoder.state_dict(), checkpoint.ours.encoder.state_dict()
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())
    facts = describe(tmp_path / "again")
    assert (facts["family"], facts["experts"]) == (checkpoint.name, "none (dense)")
    if checkpoint.name == "modernbert":
        assert facts["attention"] == "all tokens; at most 3 away in the layers [1, 2]"
    # written anew, without what the config said before
    parts = replace(checkpoint.ours.parts(), source={"model_type": checkpoint.name})
    fresh = Embedder(parts).eval()
    fresh.save_pretrained(tmp_path / "fresh")
    assert Embedder.from_pretrained(tmp_path / "fresh", device="cpu").encoder.spec == again.encoder.spec
    if checkpoint.name in ("modernbert", "eurobert"):  # by default, padding is beyond this vocabulary
        file = tmp_path / "fresh" / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"pad_token_id": 0}))
    if checkpoint.folder == checkpoint.native:
        texts = [text for text in TEXTS if text]
        expected_BM = again.encode(texts)
        found = checkpoint.theirs(tmp_path / "fresh").encode(texts, normalize_embeddings=True)
        assert distance(found, expected_BM) <= EQUAL


@every_family
def test_upcycling_keeps_the_vectors_and_a_step_of_training_moves_them(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    parts = read_folder(checkpoint.folder)
    spec, state = upcycle(parts.spec, parts.state, UpcycleConfig(num_experts=4))
    model = Embedder(replace(parts, spec=spec, state=state)).eval()
    dense = checkpoint.ours.encode(TEXTS)
    assert distance(model.encode(TEXTS), dense) <= EQUAL
    model.save_pretrained(tmp_path / "experts")
    again = Embedder.from_pretrained(tmp_path / "experts", device="cpu")
    assert distance(again.encode(TEXTS), dense) <= EQUAL
    assert describe(tmp_path / "experts")["experts"] == "4, 2 per token"
    if checkpoint.name in ("mpnet", "modernbert", "gemma3_text"):  # their spec is written field by field
        theirs = checkpoint.theirs(tmp_path / "experts").encode([text for text in TEXTS if text])
        assert distance(theirs, again.encode([text for text in TEXTS if text])) <= EQUAL

    # one step, through every tensor
    again.train()
    batch = again.tokenizer.batch([text for text in TEXTS if text])
    encoded = again(batch)
    goal_BM = torch.linspace(-1, 1, encoded.vector_BM.numel()).view_as(encoded.vector_BM)
    (encoded.vector_BM * goal_BM).sum().backward()
    untouched = [name for name, p in again.encoder.named_parameters() if p.grad is None]
    assert untouched == []
    assert all(torch.isfinite(p.grad).all() for p in again.encoder.parameters() if p.grad is not None)
    torch.optim.SGD(again.parameters(), lr=0.1).step()
    assert distance(again.eval().encode(TEXTS), dense) > 100 * EQUAL


@every_family
def test_exports_run_the_model_or_say_why_not(checkpoint: Checkpoint, tmp_path: Path) -> None:
    parts = read_folder(checkpoint.folder)
    spec, state = upcycle(parts.spec, parts.state, UpcycleConfig(num_experts=4))
    for experts, some in enumerate((parts, replace(parts, spec=spec, state=state))):
        ways = {
            "onnx": lambda some=some: require_computed(some.spec),
            "gguf": lambda some=some: as_graph(some, False),
            "nomic": lambda some=some: to_nomic(some),
        }
        for format, export in ways.items():
            if checkpoint.name in EXPORTED[format][experts]:
                export()
                continue
            with pytest.raises(UserError) as error:
                export()
            assert "\n" not in str(error.value)
            assert "it has" in str(error.value)
    if checkpoint.name in RUN_IN_ONNX:
        pytest.importorskip("onnxruntime")
        from moembed.export.onnx.export import export_onnx

        assert export_onnx(parts, tmp_path / "onnx")["max_error"] <= EQUAL


@pytest.mark.parametrize(
    ("name", "code", "is_copied"),
    [
        ("new", "Alibaba-NLP/new-impl--modeling.NewModel", True),
        ("gte", "modeling_hf_alibaba_nlp_gte.GteModel", True),
        ("eurobert", "modeling_eurobert.EuroBertModel", True),
        ("nomic_bert", "nomic-ai/nomic-bert-2048--modeling_hf_nomic_bert.NomicBertModel", True),
        ("nomic_bert", "modeling.OtherModel", False),
        ("xlm-roberta", "jinaai/xlm-roberta-flash-implementation--modeling_lora.XLMRobertaLoRA", False),
        ("llama", "modeling_llama_bidirectional.LlamaBidirectionalModel", False),
    ],
)
def test_code_beside_the_weights_is_refused_unless_we_are_its_copy(
    name: str, code: str, is_copied: bool
) -> None:
    from moembed.families.registry import family_of

    values = (CONFIGS | ENCODERS)[name] | {"auto_map": {"AutoModel": code}}
    if is_copied:
        assert family_of(values).name == name
        return
    with pytest.raises(UserError, match=f"'{name}' but brings code of its own .*, which is not run"):
        family_of(values)
