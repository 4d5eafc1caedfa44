"""An index of token vectors: it holds and finds what MaxSim over all rows finds, whatever was changed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toys import ToyModel, write_jsonl

from conftest import MakeModel, Run
from moembed.embedder import Embedder
from moembed.encoding import FULL, TokenVectors, View
from moembed.search.embed import EmbedConfig, embed_file
from moembed.search.fde import FdeConfig
from moembed.search.index import Index
from moembed.search.index_compress import compress_index
from moembed.search.index_file import IndexSummary, delete_rows, index_file
from moembed.search.index_manifest import MULTI_VECTOR, read_manifest
from moembed.search.late_search import maxsim_scores
from moembed.search.stores.push import push_index
from moembed.search.token_parts import as_tokens
from moembed.types import TruncationWarning, UserError
from moembed.weights.pooling import PoolingOptions, change_pooling

FDE = FdeConfig(8, repetitions=2, k_sim=2, d_proj=3, seed=5)
SMALL = EmbedConfig(block_rows=3, model_path="toy", multivector=FDE)


class ToyTokens(ToyModel):
    """A vector of every word, drawn from its hash."""

    per_token = True

    def encode_tokens(
        self,
        texts: Iterable[str],
        *,
        role: str | None = None,
        prompt: str | None = None,
        progress: Any = None,
    ) -> TokenVectors:
        listed = list(texts)
        self.calls.append(listed)
        found = []
        for text in listed:
            drawn = np.array([self._drawn(word) for word in text.split()], np.float32).reshape(-1, self.dim)
            found.append(drawn / np.linalg.norm(drawn, axis=1, keepdims=True))
        return as_tokens(found)

    def space(self, *, role: str | None = None, prompt: str | None = None, view: View = FULL) -> str:
        return f"{self.name}-tokens"


def row(number: int, **more: Any) -> dict[str, Any]:
    words = " ".join(f"w{number * step % 7}" for step in range(1, 2 + number % 4))
    return {"id": f"d{number}", "text": words, "year": 2000 + number, **more}


def put(folder: Path, rows: list[dict[str, Any]], **options: Any) -> IndexSummary:
    write_jsonl(folder / "docs.jsonl", rows)
    model = options.pop("model", None) or ToyTokens()
    config = options.pop("config", SMALL)
    return index_file(model, folder / "docs.jsonl", folder / "i", config, **options)


def assert_finds(path: Path, rows: list[dict[str, Any]], where: str | None = None) -> None:
    """All rows, for every query, with the scores of exact MaxSim over the whole file."""
    model, index = ToyTokens(), Index.open(path)
    asked = ["w1 w3", "w5", "w2 w2 w6 w0"]
    found = index.search(asked, k=len(rows), where=where, model=model)
    for query_TM, hits in zip(model.encode_tokens(asked), found, strict=True):
        score_N = maxsim_scores(query_TM, model.encode_tokens([row["text"] for row in rows]))
        expected = {row["id"]: score for row, score in zip(rows, score_N.tolist(), strict=True)}
        assert {hit.id: pytest.approx(hit.score, abs=1e-6) for hit in hits} == expected
        scores = [hit.score for hit in hits]
        assert scores == sorted(scores, reverse=True)
        assert all(hit.row == next(row for row in rows if row["id"] == hit.id) for hit in hits)


def test_rows_are_added_changed_and_deleted(tmp_path: Path) -> None:
    first = [row(number) for number in range(8)]
    summary = put(tmp_path, first)
    assert (summary.added, summary.new_rows, summary.dim) == (8, 8, FDE.dim)
    assert "repetitions 2" in str(summary)
    assert_finds(tmp_path / "i", first)
    assert_finds(tmp_path / "i", first[3:], where="year >= 2003")

    changed = [*first[:2], {**first[2], "year": 1}, {**first[3], "text": "w9 w1"}, *first[4:], row(8), row(9)]
    model = ToyTokens()
    summary = put(
        tmp_path, changed, model=model, config=EmbedConfig(block_rows=3)
    )  # the encoding of the index
    assert (summary.added, summary.changed, summary.new_rows) == (2, 2, 3)
    assert sorted(text for call in model.calls for text in call) == sorted(
        ["w9 w1", row(8)["text"], row(9)["text"]]
    )
    assert_finds(tmp_path / "i", changed)
    delete_rows(tmp_path / "i", ["d0", "d9", "d4"])
    assert_finds(tmp_path / "i", [one for one in changed if one["id"] not in ("d0", "d9", "d4")])


def test_small_parts_are_merged_and_damaged_ones_made_again(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = []
    for number in range(11):
        rows.append(row(number))
        put(tmp_path, rows, config=EmbedConfig(block_rows=4, multivector=FDE))
    assert Index.open(tmp_path / "i").info()["parts"] < 9
    assert_finds(tmp_path / "i", rows)

    tokens = sorted((tmp_path / "i").glob("*.tokens.npy"))[0]
    whole = tokens.read_bytes()
    tokens.write_bytes(whole[:-4] + b"\0\0\0\1")
    with pytest.raises(UserError, match=r"tokens\.npy is damaged"):
        assert_finds(tmp_path / "i", rows)
    with pytest.warns(UserWarning, match=r"tokens\.npy is damaged .* embedded again"):
        put(tmp_path, rows, config=EmbedConfig(block_rows=4, multivector=FDE))
    assert_finds(tmp_path / "i", rows)


def test_the_encoding_is_in_the_manifest_and_stays_what_it_was(tmp_path: Path) -> None:
    put(tmp_path, [row(1), row(2)])
    manifest = read_manifest(tmp_path / "i")
    assert manifest is not None
    assert (manifest["multivector"], manifest["format_version"]) == (FDE.as_json(), MULTI_VECTOR)
    assert Index.open(tmp_path / "i").info()["multivector"]["seed"] == 5
    other = EmbedConfig(block_rows=3, multivector=FdeConfig(8, repetitions=2, k_sim=2, d_proj=3, seed=6))
    with pytest.raises(UserError, match=r"made with other settings .*multivector"):
        put(tmp_path, [row(1)], config=other)


def test_what_cannot_be_is_one_sentence(tmp_path: Path) -> None:
    put(tmp_path, [row(number) for number in range(4)])
    index, model = Index.open(tmp_path / "i"), ToyTokens()
    vectors = np.ones((1, FDE.dim), np.float32)
    refusals = {
        "searched with texts or token vectors": lambda: index.search(vectors),
        "no cosines to weigh": lambda: index.search("w1", hybrid=True, weight=0.5, model=model),
        "a push takes one vector": lambda: push_index(index, None),  # type: ignore[arg-type]
        "needs a model that makes a vector of every token": lambda: put(tmp_path, [row(1)], model=ToyModel()),
        "takes one vector of a row": lambda: put(tmp_path, [row(1)], engine="qdrant-edge"),
        "codecs are for one vector": lambda: compress_index(tmp_path / "i", "int8"),
        "dim cuts vectors of texts": lambda: put(tmp_path, [row(1)], config=EmbedConfig(dim=4)),
        "'d7' has no token": lambda: put(tmp_path, [row(1), {"id": "d7", "text": " "}]),
    }
    for words, call in refusals.items():
        with pytest.raises(UserError, match=words):
            call()
    assert_finds(tmp_path / "i", [row(number) for number in range(4)])
    (hits,) = index.search("w1 w3", k=2, hybrid=True, model=model)
    assert len(hits) == 2
    shutil.rmtree(tmp_path / "i")
    put(tmp_path, [row(1)], model=ToyModel(), config=EmbedConfig(model_path="toy"))
    with pytest.raises(UserError, match="one vector of each query"):
        Index.open(tmp_path / "i").search(model.encode_tokens(["w1"]))


def test_an_exact_search_scores_all_rows_and_the_other_says_what_chose_some(
    tmp_path: Path, monkeypatch
) -> None:
    rows = [row(number) for number in range(40)]
    put(tmp_path, rows)
    monkeypatch.setattr("moembed.search.late_search.CANDIDATES", 1)
    monkeypatch.setattr("moembed.search.late_search._SHARE", 1)
    monkeypatch.setattr("moembed.search.late_search._BLOCK", 7)
    model, index = ToyTokens(), Index.open(tmp_path / "i")
    # a MUVERA that chooses the rows with the least products, the first ones of equal ones
    monkeypatch.setattr(
        type(index.fde), "queries", lambda fde, tokens: np.zeros((len(tokens), fde.config.dim))
    )
    asked = ["w1 w3", "w5", "w2 w2 w6 w0"]
    documents = model.encode_tokens([one["text"] for one in rows])
    for where, first in ((None, 0), ("year >= 2013", 13)):
        hits = index.search(asked, 3, where=where, model=model, exact=True)
        assert hits.plan.engine == "exact"
        for q, query_TM in enumerate(model.encode_tokens(asked)):
            score_N = maxsim_scores(query_TM, documents)
            np.testing.assert_allclose(hits.score[q], np.sort(score_N[first:])[:-4:-1], atol=1e-6)
            np.testing.assert_allclose(score_N[hits.index[q]], hits.score[q], atol=1e-6)
            assert len({number for number in hits.index[q].tolist() if number >= first}) == 3
        assert index.search(asked, 3, where=where, model=model).plan.engine == "muvera"
    assert index.info()["engine"] == "muvera"


def test_a_file_of_tokens_that_is_cut_while_it_is_read_is_told(tmp_path: Path) -> None:
    put(tmp_path, [row(number) for number in range(3)])
    index, model = Index.open(tmp_path / "i"), ToyTokens()
    index.search("w1 w3", model=model)
    (tokens,) = (tmp_path / "i").glob("*.tokens.npy")
    os.truncate(tokens, 200)  # what was mapped would end the process
    with pytest.raises(UserError, match=r"tokens\.npy is damaged"):
        index.search("w1 w3", model=model)


class CuttingTokens(ToyTokens):
    def encode_tokens(self, texts: Iterable[str], **options: Any) -> TokenVectors:
        return replace(super().encode_tokens(list(texts), **options), truncated=1)


def test_a_question_that_is_cut_is_told(tmp_path: Path) -> None:
    put(tmp_path, [row(number) for number in range(4)])
    with pytest.warns(TruncationWarning, match="1 of 1 questions were longer than the model reads"):
        Index.open(tmp_path / "i").search("w1 w3", model=CuttingTokens())


def test_from_the_command_line(run: Run, make_model: MakeModel, tmp_path: Path) -> None:
    parts = change_pooling(make_model().parts(), PoolingOptions(name="tokens", include_prompt=False))
    Embedder(parts).save_pretrained(tmp_path / "model")
    texts = ["owls hunt voles at night", "moles dig", "worms live long"]
    source = write_jsonl(
        tmp_path / "a.jsonl", [{"_id": f"t{i}", "text": text} for i, text in enumerate(texts)]
    )
    made = ("index", source, "--model", tmp_path / "model", "--out", tmp_path / "i", "--dtype", "float32")
    code, out, err = run(*made, "--multivector", "repetitions=3,k_sim=2")
    assert code == 0, err
    assert "repetitions 3, k_sim 2, d_proj 16" in out
    assert run("index", source, "--out", tmp_path / "i")[0] == 0  # again, with the settings of the index

    code, out, err = run("search", tmp_path / "i", "what do owls hunt?", "--json", "-k", "3")
    assert code == 0, err
    model = Embedder.from_pretrained(tmp_path / "model")
    query, documents = (model.encode_tokens(some, role=role) for some, role in (
        (["what do owls hunt?"], "query"), (texts, "document")
    ))  # fmt: skip
    score_N = maxsim_scores(query[0], documents)
    assert [hit["_id"] for hit in json.loads(out)] == [f"t{i}" for i in np.argsort(-score_N)]
    assert [hit["score"] for hit in json.loads(out)] == pytest.approx(sorted(score_N)[::-1], abs=1e-4)

    code, _, err = run(*made, "--multivector", "planes=3")
    assert (code, "'planes=3' is no setting" in err) == (2, True)
    code, _, err = run(
        "index", source, "--model", "minilm", "--out", tmp_path / "j", "--multivector", "k_sim=3"
    )
    assert (code, "`pooling: tokens`" in err) == (2, True)
    with pytest.raises(UserError, match="needs one vector of a text"):
        embed_file(model, source, tmp_path / "v")


def test_token_vectors_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    put(tmp_path, [row(0), row(1)])
    index = Index.open(tmp_path / "i")
    for exact in (False, True):
        with pytest.raises(UserError, match=r"query token 1 .* NaN"):
            index.search(as_tokens([np.array([[1.0] * 8, [np.nan] * 8], np.float32)]), exact=exact)
