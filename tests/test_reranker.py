"""Rerankers: scores equal those of transformers and of CrossEncoder; every family, every cut."""

from __future__ import annotations

import json
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import processors
from torch import nn

from conftest import MakeModel, randomise, save_tokenizer
from moembed.families.flat import FlatMoE
from moembed.folder.reranker import fresh_reranker
from moembed.inference.pairs import kept_lengths, pair_rows
from moembed.moe.router import RouterConfig
from moembed.packing import pack
from moembed.reranker import Ranked, Reranker
from moembed.types import TruncationWarning, UserError
from tiny_configs import CONFIGS, ENCODERS

QUERY = "what does a mole eat?"
DOCUMENTS = [
    "moles eat worms",
    "",
    "an owl hunts voles at night",
    "the meadow is wide and the night is long, and the owl is patient, and the mole digs under the meadow",
    "worms",
]
CLASSES = {
    "bert": "Bert", "roberta": "Roberta", "xlm-roberta": "XLMRoberta", "camembert": "Camembert",
    "data2vec-text": "Data2VecText", "mpnet": "MPNet", "distilbert": "DistilBert", "modernbert": "ModernBert",
    "gte": "Gte", "nomic_bert": "NomicBert", "eurobert": "EuroBert", "llama": "Llama", "mistral": "Mistral",
    "qwen2": "Qwen2", "qwen3": "Qwen3",
}  # fmt: skip
# transformers gives this one a tokenizer of its own, whatever the folder holds
OWN_TOKENIZER = "qwen2"
CHANGES: dict[str, dict[str, Any]] = {
    "eurobert": {"classifier_pooling": "mean"},
    "gte": {"type_vocab_size": 2},
    "modernbert": {"classifier_pooling": "mean", "classifier_bias": True},
}


@pytest.fixture(scope="module")
def pair_backend(backend: Backend) -> Backend:
    """With types, as BERT has them: 0 for the query and 1 for the document."""
    made = Backend.from_str(backend.to_str())
    special = [("[CLS]", 2), ("[SEP]", 3)]
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=special
    )
    return made


def make_folder(path: Path, kind: str, backend: Backend, labels: int = 1, **changes: Any) -> nn.Module:
    """A random reranker of transformers, saved with its tokenizer, and token types where it has any."""
    import transformers

    values = (ENCODERS | CONFIGS)[kind] | {"num_labels": labels, "pad_token_id": 0} | CHANGES.get(kind, {})
    values = {key: value for key, value in values.items() if key != "model_type"} | changes
    config = getattr(transformers, CLASSES[kind] + "Config")(**values)
    model: nn.Module = getattr(transformers, CLASSES[kind] + "ForSequenceClassification")(config).eval()
    randomise(model, 3)
    model.save_pretrained(path)  # type: ignore[operator]
    save_tokenizer(path, backend)
    types = kind in ("bert", "gte", "nomic_bert")
    names = ["input_ids", "attention_mask", *(["token_type_ids"] if types else [])]
    edit(path / "tokenizer_config.json", model_input_names=names, model_max_length=32)
    return model


def edit(file: Path, **changes: Any) -> None:
    values = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(values | changes))


def theirs(path: Path) -> np.ndarray:
    """What sentence-transformers makes of a folder."""
    from sentence_transformers import CrossEncoder

    model = CrossEncoder(str(path), device="cpu")
    return np.array(model.predict([(QUERY, text) for text in DOCUMENTS]))


@pytest.mark.filterwarnings("ignore::moembed.types.TruncationWarning")
@pytest.mark.parametrize("kind", sorted(CLASSES.keys() - {OWN_TOKENIZER}))
def test_scores_of_every_family_are_those_of_the_cross_encoder(
    kind: str, tmp_path: Path, pair_backend: Backend
) -> None:
    make_folder(tmp_path / "model", kind, pair_backend)
    model = Reranker.from_pretrained(tmp_path / "model")
    scores = model.scores(QUERY, DOCUMENTS)
    assert scores.dtype == np.float32
    assert np.allclose(scores, theirs(tmp_path / "model"), atol=1e-5)
    assert np.ptp(scores) > 1e-3  # not one number for all

    # written again, in the same layout, it is the same model for both
    model.save_pretrained(tmp_path / "again")
    config = json.loads((tmp_path / "again" / "config.json").read_text())
    assert config["architectures"] == [CLASSES[kind] + "ForSequenceClassification"]
    assert np.array_equal(Reranker.from_pretrained(tmp_path / "again").scores(QUERY, DOCUMENTS), scores)
    assert np.allclose(theirs(tmp_path / "again"), scores, atol=1e-5)


def test_the_logits_are_those_of_transformers(tmp_path: Path, pair_backend: Backend) -> None:
    """Where the two tokenizers differ: of the same tokens."""
    made = make_folder(tmp_path, OWN_TOKENIZER, pair_backend)
    model = Reranker.from_pretrained(tmp_path)
    rows = pair_rows(model.tokenizer, [(QUERY, text) for text in DOCUMENTS[:3]], model.types)
    logits = [made(torch.tensor([row])).logits.item() for row in rows.ids]
    found = model(pack(rows.ids)).vector_BM[:, 0]
    assert torch.allclose(found, torch.tensor(logits), atol=1e-5)


def test_the_activation_is_what_the_checkpoint_says(tmp_path: Path, pair_backend: Backend) -> None:
    make_folder(tmp_path, "bert", pair_backend)
    squashed = Reranker.from_pretrained(tmp_path).scores(QUERY, DOCUMENTS[:3])
    for file, key in (("config.json", "sbert_ce_default_activation_function"),
                      ("config_sentence_transformers.json", "activation_fn")):  # fmt: skip
        before = (tmp_path / file).read_text() if (tmp_path / file).exists() else None
        edit(tmp_path / file, **{key: "torch.nn.modules.linear.Identity"})
        model = Reranker.from_pretrained(tmp_path)
        assert model.activation == "identity"
        raw = model.scores(QUERY, DOCUMENTS[:3])
        assert np.allclose(1 / (1 + np.exp(-raw)), squashed, atol=1e-6)
        (tmp_path / file).write_text(before) if before else (tmp_path / file).unlink()


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("limit", [5, 8, 13, 40])
def test_pairs_are_cut_where_transformers_cuts_them(
    side: str, limit: int, tmp_path: Path, pair_backend: Backend
) -> None:
    make_folder(tmp_path, "bert", pair_backend)
    edit(tmp_path / "tokenizer_config.json", truncation_side=side, model_max_length=limit)
    model = Reranker.from_pretrained(tmp_path)
    found = model.scored(QUERY, DOCUMENTS)
    assert np.allclose(found.array, theirs(tmp_path), atol=1e-5)
    whole = [len(pair_backend.encode(QUERY, text).ids) for text in DOCUMENTS]
    assert found.cut.tolist() == [max(0, length - limit) for length in whole]
    assert found.tokens == sum(min(length, limit) for length in whole)
    if found.cut.any():
        with pytest.warns(TruncationWarning, match=f"pairs of query and text were cut at {limit} tokens"):
            model.scores(QUERY, DOCUMENTS)


@given(st.integers(0, 30), st.integers(0, 30), st.integers(1, 40))
def test_what_is_kept_of_two_texts_is_what_the_library_keeps(
    backend: Backend, one: int, other: int, room: int
) -> None:
    copy = Backend.from_str(backend.to_str())
    copy.enable_truncation(room + 3, strategy="longest_first")
    found = copy.encode("a " * one, "b " * other)
    kept = (found.sequence_ids.count(0), found.sequence_ids.count(1))
    assert kept_lengths(one, other, room) == kept


def test_rank_threads_and_batches_change_nothing(tmp_path: Path, pair_backend: Backend) -> None:
    make_folder(tmp_path, "bert", pair_backend)
    model = Reranker.from_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TruncationWarning)
        scores = model.scores(QUERY, DOCUMENTS)
        assert np.allclose(model.scores(QUERY, DOCUMENTS, batch_tokens=1), scores, atol=1e-6)
        with ThreadPoolExecutor(4) as threads:
            for found in threads.map(lambda _: model.scores(QUERY, DOCUMENTS), range(8)):
                assert np.array_equal(found, scores)
        order = np.argsort(-scores, kind="stable")
        assert model.rank(QUERY, DOCUMENTS, k=2) == [Ranked(int(i), float(scores[i])) for i in order[:2]]
        assert [hit.index for hit in model.rank(QUERY, DOCUMENTS)] == order.tolist()
    assert model.scores(QUERY, []).shape == (0,)
    same = model.rank(QUERY, ["worms", "worms"])
    assert [hit.index for hit in same] == [0, 1]


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_rounded_scores_are_close(dtype: str, tmp_path: Path, pair_backend: Backend) -> None:
    make_folder(tmp_path, "bert", pair_backend, initializer_range=0.02)
    exact = Reranker.from_pretrained(tmp_path).scores(QUERY, DOCUMENTS[:3])
    rounded = Reranker.from_pretrained(tmp_path, dtype=dtype)
    assert rounded.dtype == dtype
    assert np.allclose(rounded.scores(QUERY, DOCUMENTS[:3]), exact, atol=0.05)


def test_a_mixture_of_experts_is_a_cross_encoder_too(
    tmp_path: Path, make_model: MakeModel, pair_backend: Backend
) -> None:
    """In our own layout, types and mean pooling included."""
    moe = FlatMoE(layers=(1, 3), num_experts=4, router=RouterConfig(top_k=2))
    embedder = make_model(moe=moe)
    embedder.tokenizer.backend.post_processor = pair_backend.post_processor
    embedder.save_pretrained(tmp_path / "base")
    parts = fresh_reranker(tmp_path / "base", pooling="mean", seed=1)
    assert parts.types
    model = Reranker(parts).eval()
    randomise(model, 5)
    model.save_pretrained(tmp_path / "model")
    loaded = Reranker.from_pretrained(tmp_path / "model")
    with pytest.warns(TruncationWarning):
        scores = loaded.scores(QUERY, DOCUMENTS)
    assert loaded.num_parameters(active=True) < loaded.num_parameters()
    assert np.allclose(theirs(tmp_path / "model"), scores, atol=1e-5)


def test_types_tell_query_and_document_apart(tmp_path: Path, pair_backend: Backend) -> None:
    make_folder(tmp_path, "bert", pair_backend)
    told = Reranker.from_pretrained(tmp_path)
    edit(tmp_path / "tokenizer_config.json", model_input_names=["input_ids", "attention_mask"])
    untold = Reranker.from_pretrained(tmp_path)
    assert told.types
    assert not untold.types
    assert not np.allclose(told.scores(QUERY, ["worms"]), untold.scores(QUERY, ["worms"]))
    assert np.allclose(untold.scores(QUERY, DOCUMENTS[:3]), theirs(tmp_path)[:3], atol=1e-5)


def test_a_prompt_stands_before_the_query(tmp_path: Path, pair_backend: Backend) -> None:
    make_folder(tmp_path, "bert", pair_backend)
    plain = Reranker.from_pretrained(tmp_path)
    settings = {"prompts": {"search": "find an owl "}, "default_prompt_name": "search"}
    edit(tmp_path / "config_sentence_transformers.json", model_type="CrossEncoder", **settings)
    edit(tmp_path / "sentence_bert_config.json", transformer_task="sequence-classification")
    model = Reranker.from_pretrained(tmp_path)
    scores = model.scores(QUERY, DOCUMENTS[:3])
    assert np.array_equal(scores, plain.scores("find an owl " + QUERY, DOCUMENTS[:3]))
    model.save_pretrained(tmp_path / "again")
    assert np.array_equal(Reranker.from_pretrained(tmp_path / "again").scores(QUERY, DOCUMENTS[:3]), scores)


def test_what_is_no_reranker_is_refused_by_name(
    tmp_path: Path, pair_backend: Backend, make_model: MakeModel
) -> None:
    make_folder(tmp_path / "labels", "bert", pair_backend, labels=3)
    with pytest.raises(UserError, match="gives 3 numbers for every pair"):
        Reranker.from_pretrained(tmp_path / "labels")

    make_model(family="bert").save_pretrained(tmp_path / "embedder")
    with pytest.raises(UserError, match="only a Transformer alone"):
        Reranker.from_pretrained(tmp_path / "embedder")

    make_folder(tmp_path / "model", "bert", pair_backend)
    config = tmp_path / "model" / "config.json"
    whole = config.read_text()
    for changes, sentence in (
        ({"model_type": "deberta-v2"}, "unknown model_type 'deberta-v2'"),
        ({"architectures": ["BertModel"]}, "this is no reranker: architectures .* names BertModel"),
        ({"auto_map": {"AutoModelForSequenceClassification": "x.Mine"}}, "brings code of its own"),
        (
            {"sentence_transformers": {"activation_fn": "torch.nn.Tanh"}},
            "Tanh.* is not supported",
        ),
    ):
        config.write_text(json.dumps(json.loads(whole) | changes))
        with pytest.raises(UserError, match=sentence):
            Reranker.from_pretrained(tmp_path / "model")
    config.write_text(json.dumps(json.loads(whole) | {"model_type": "t5"}))
    with pytest.raises(UserError):
        Reranker.from_pretrained(tmp_path / "model")


def test_bad_input_is_one_sentence(tmp_path: Path, pair_backend: Backend) -> None:
    make_folder(tmp_path, "bert", pair_backend)
    model = Reranker.from_pretrained(tmp_path)
    with pytest.raises(UserError, match="the query is a int"):
        model.scores(3, ["worms"])  # type: ignore[arg-type]
    with pytest.raises(UserError, match="texts must be a list of strings, not a str"):
        model.scores(QUERY, "worms")
    with pytest.raises(UserError, match="text 1 is not valid Unicode"):
        model.scores(QUERY, ["worms", "\ud800"])
    with pytest.raises(UserError, match=r"the query .* is not valid Unicode"):
        model.scores("\ud800", ["worms"])
    with pytest.raises(UserError, match="text 1 is not valid Unicode"):
        model.scores("{} {}", ["{} {}", "\ud800"])
    with pytest.raises(UserError, match="k must be a whole number"):
        model.rank(QUERY, ["worms"], k=0)
    model.tokenizer.max_length = 3
    with pytest.raises(UserError, match="the special tokens of a pair alone are 3"):
        model.scores(QUERY, ["worms"])


def test_training_and_serving_give_the_same_logits(tmp_path: Path, pair_backend: Backend) -> None:
    """The packed twin that serves, and the module that is trained, with its rows of padding."""
    make_folder(tmp_path, "bert", pair_backend)
    model = Reranker.from_pretrained(tmp_path)
    served = model.scores(QUERY, DOCUMENTS[:3])
    rows = pair_rows(model.tokenizer, [(QUERY, text) for text in DOCUMENTS[:3]], model.types)
    batch = pack(rows.ids, types=rows.types)
    trained = model.train()(batch).vector_BM[:, 0].sigmoid().detach().numpy()
    assert np.allclose(trained, served, atol=1e-6)
    assert torch.is_grad_enabled()


def test_an_activation_that_is_not_known_is_refused(tmp_path: Path, pair_backend: Backend) -> None:
    make_folder(tmp_path, "bert", pair_backend)
    model = Reranker.from_pretrained(tmp_path)
    with pytest.raises(UserError, match="the activation 'none' is not known"):
        model.scores(QUERY, DOCUMENTS[:3], activation="none")
