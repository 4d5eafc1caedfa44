"""Hard negatives against their definition, pair by pair, and a run that is cut off anywhere."""

from __future__ import annotations

import errno
import json
import os
from collections import Counter
from itertools import chain

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from toys import Row, ToyModel, killed_after, read_jsonl, write_jsonl

from conftest import Run
from moembed.data.sources import SourceConfig, load_source
from moembed.search import mine as room
from moembed.search.exact import pair_scores
from moembed.search.mine import MineConfig, mine
from moembed.search.negatives import RULES, bounds
from moembed.search.teacher import ModelTeacher
from moembed.types import UserError

ROWS = [
    {"query": f"query {i % 17}", "document": f"document {i * 7 % 23}", "language": "en", "source": "s"}
    for i in range(40)
]
EASY = {"negatives": 3, "depth": 12, "rules": ("max:1",)}


@pytest.fixture
def pairs(tmp_path) -> SourceConfig:
    return SourceConfig(path=write_jsonl(tmp_path / "pairs.jsonl", ROWS))


def run_mine(pairs: SourceConfig, out, model: ToyModel | None = None, **options):
    named = {name: options.pop(name) for name in ("cache", "overwrite", "corpus") if name in options}
    return mine(pairs, out, ModelTeacher(model or ToyModel()), MineConfig(**(EASY | options)), **named)


def score(query: str, document: str) -> float:
    both = [ToyModel().vectors([text]).array for text in (query, document)]
    return float(pair_scores(*both)[0])


def by_definition(rows: list[Row], depth: int, negatives: int, rules: tuple[str, ...]) -> list[Row]:
    mined = []
    for row in rows:
        own = {other["document"] for other in rows if other["query"] == row["query"]}
        documents = dict.fromkeys(other["document"] for other in rows)
        nearest = sorted(documents, key=lambda text, query=row["query"]: -score(query, text))[:depth]
        positive = score(row["query"], row["document"])
        bound = bounds(rules, np.array([positive]))[0]
        chosen = [
            text for text in nearest if text not in own and np.float32(score(row["query"], text)) < bound
        ]
        mined += [row | {"negatives": chosen[:negatives]}] if chosen else []
    return mined


@pytest.mark.parametrize("rules", [(), ("relative:0.95",), ("margin:0.05",), ("max:0.3", "relative:1")])
def test_negatives_are_what_the_definition_says(pairs, tmp_path, rules):
    summary = run_mine(pairs, tmp_path / "out.jsonl", rules=rules)
    wanted = by_definition(ROWS, 12, 3, rules)
    mined = read_jsonl(tmp_path / "out.jsonl")
    assert mined == wanted
    assert (summary.pairs, summary.documents, summary.written) == (40, 23, len(wanted))
    assert summary.dropped == {"too few negatives": 40 - len(wanted), "query cap": 0}
    assert summary.mean_negatives == sum(len(row["negatives"]) for row in mined) / len(mined)
    positive = [score(row["query"], row["document"]) for row in mined]
    negative = [score(row["query"], text) for row in mined for text in row["negatives"]]
    assert summary.positive_scores[0.5] == pytest.approx(np.median(positive), abs=1e-4)
    assert summary.negative_scores[0.95] == pytest.approx(np.quantile(negative, 0.95), abs=1e-4)


@given(st.floats(-1, 1), st.sampled_from([("relative:0.95",), ("margin:0.05",), ("relative:1", "max:0.8")]))
def test_every_rule_bounds_a_negative_below_its_positive(positive, rules):
    assert bounds(rules, np.array([positive]))[0] <= positive


def test_the_rules_by_numbers():
    positive_Q = np.array([0.8, 0.4, -0.2])
    np.testing.assert_allclose(bounds(("relative:0.95",), positive_Q), [0.76, 0.38, -0.2])
    np.testing.assert_allclose(bounds(("margin:0.05",), positive_Q), [0.75, 0.35, -0.25])
    np.testing.assert_allclose(bounds(("max:0.7",), positive_Q), [0.7, 0.7, 0.7])
    np.testing.assert_allclose(
        bounds(("max:0.7", "relative:0.95", "margin:0.1"), positive_Q), [0.7, 0.3, -0.3]
    )
    assert bounds((), positive_Q).tolist() == [np.inf] * 3
    assert set(RULES) == {"relative", "margin", "max"}


@pytest.mark.parametrize(
    "rule", ["relativ:0.9", "relative", "relative:x", "relative:1.1", "max:nan", "margin:-1"]
)
def test_rules_that_make_no_sense_are_refused(rule):
    with pytest.raises(UserError, match=rule):
        bounds((rule,), np.array([0.5]))


def test_no_document_of_a_query_is_ever_its_negative(pairs, tmp_path):
    run_mine(pairs, tmp_path / "out.jsonl", rules=(), depth=23, negatives=23)
    for row in read_jsonl(tmp_path / "out.jsonl"):
        own = {other["document"] for other in ROWS if other["query"] == row["query"]}
        assert not own & set(row["negatives"])
        assert len(row["negatives"]) == len(set(row["negatives"])) == 23 - len(own)


def test_the_caps_and_the_least_number(pairs, tmp_path):
    run_mine(pairs, tmp_path / "capped.jsonl", per_document_cap=2)
    served = Counter(chain.from_iterable(row["negatives"] for row in read_jsonl(tmp_path / "capped.jsonl")))
    assert max(served.values()) == 2
    summary = run_mine(pairs, tmp_path / "once.jsonl", per_query_cap=1)
    assert [row["query"] for row in read_jsonl(tmp_path / "once.jsonl")] == [f"query {i}" for i in range(17)]
    assert summary.dropped["query cap"] == 40 - 17
    summary = run_mine(pairs, tmp_path / "many.jsonl", per_document_cap=2, min_negatives=3)
    mined = read_jsonl(tmp_path / "many.jsonl")
    assert {len(row["negatives"]) for row in mined} == {3}
    assert summary.dropped["too few negatives"] == 40 - len(mined) > 0
    assert run_mine(pairs, tmp_path / "none.jsonl", rules=("max:-1",), min_negatives=0).written == 40


def test_skip_top_leaves_the_nearest_out(pairs, tmp_path):
    run_mine(pairs, tmp_path / "all.jsonl", negatives=5)
    run_mine(pairs, tmp_path / "rest.jsonl", skip_top=2)
    everything, rest = read_jsonl(tmp_path / "all.jsonl"), read_jsonl(tmp_path / "rest.jsonl")
    assert [row["negatives"][2:] for row in everything] == [row["negatives"] for row in rest]


def test_a_random_choice_depends_on_the_seed_alone(pairs, tmp_path, monkeypatch):
    run_mine(pairs, tmp_path / "a.jsonl", sample="random")
    run_mine(pairs, tmp_path / "other.jsonl", sample="random", seed=1)
    run_mine(pairs, tmp_path / "all.jsonl", negatives=12)
    monkeypatch.setattr(room, "_PAIRS", 7)
    run_mine(pairs, tmp_path / "b.jsonl", sample="random")
    a, b, other, everything = (read_jsonl(tmp_path / f"{name}.jsonl") for name in ("a", "b", "other", "all"))
    assert a == b != other
    for row, full in zip(a, everything, strict=True):
        assert [text for text in full["negatives"] if text in row["negatives"]] == row["negatives"]


def test_a_corpus_of_its_own(pairs, tmp_path):
    texts = [f"document {i}" for i in range(5)] + [f"text {i % 9}" for i in range(30)]
    corpus = write_jsonl(tmp_path / "corpus.jsonl", [{"text": text} for text in texts])
    read = SourceConfig(path=corpus, query="text", document="text")
    summary = run_mine(pairs, tmp_path / "out.jsonl", corpus=read, rules=())
    assert summary.documents == 14
    for row in read_jsonl(tmp_path / "out.jsonl"):
        assert set(row["negatives"]) <= set(texts)
        own = {other["document"] for other in ROWS if other["query"] == row["query"]}
        near = sorted(set(texts) - own, key=lambda text, query=row["query"]: -score(query, text))
        assert row["negatives"] == near[:3]


# The manifest, vectors and hashes of queries and documents, three blocks of hits, the file.
@pytest.mark.parametrize("replaced", range(9))
def test_a_run_cut_off_anywhere_goes_on_to_the_same_file(pairs, tmp_path, monkeypatch, replaced):
    whole, broken = tmp_path / "whole.parquet", tmp_path / "broken.parquet"
    uncut, model = ToyModel(), ToyModel()
    monkeypatch.setattr(room, "_QUERIES", 6)
    run_mine(pairs, whole, uncut, per_document_cap=9)
    with killed_after(replaced) as tried:
        run_mine(pairs, broken, per_document_cap=9)
    run_mine(pairs, broken, model, per_document_cap=9)
    assert broken.read_bytes() == whole.read_bytes()
    finished = sum(path.name.endswith(".keys.npy") for path in tried[:replaced])
    assert model.calls == uncut.calls[finished:], "nothing is embedded again"
    assert {file.name for file in tmp_path.iterdir()} == {"pairs.jsonl", whole.name, broken.name}


@pytest.mark.parametrize("name", ["out.parquet", "out.jsonl.gz"])
def test_a_full_disk_is_one_sentence_and_costs_nothing(pairs, tmp_path, monkeypatch, name):
    real, model = os.replace, ToyModel()

    def replace(temporary, path) -> None:
        if path.name == name:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        real(temporary, path)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", replace)
        with pytest.raises(UserError, match=f"cannot write .*{name}.*No space left"):
            run_mine(pairs, tmp_path / name)
    run_mine(pairs, tmp_path / name, model)
    assert model.calls == []
    assert {file.name for file in tmp_path.iterdir()} == {"pairs.jsonl", name}


def test_what_was_found_serves_other_rules_but_no_other_search(pairs, tmp_path):
    with killed_after(6):  # all but the file itself
        run_mine(pairs, tmp_path / "out.jsonl")
    for options, complaint in [
        ({"depth": 15}, "depth was 12 and is 15"),
        ({"engine": "faiss"}, "engine was exact and is faiss"),
        ({"model": ToyModel(name="new")}, "teacher was"),
    ]:
        with pytest.raises(UserError, match=complaint):
            run_mine(pairs, tmp_path / "out.jsonl", **options)
    model = ToyModel()
    run_mine(pairs, tmp_path / "out.jsonl", model, rules=("relative:0.95",))
    assert read_jsonl(tmp_path / "out.jsonl") == by_definition(ROWS, 12, 3, ("relative:0.95",))
    assert model.calls == []


@pytest.mark.parametrize("engine", ["faiss", "faiss:Flat", "faiss:HNSW32", "faiss:IVF2,Flat:nprobe=2"])
def test_faiss_finds_what_the_exact_search_finds(pairs, tmp_path, engine):
    pytest.importorskip("faiss")
    run_mine(pairs, tmp_path / "exact.jsonl")
    run_mine(pairs, tmp_path / "faiss.jsonl", engine=engine)
    assert (tmp_path / "faiss.jsonl").read_bytes() == (tmp_path / "exact.jsonl").read_bytes()


def test_places_that_faiss_leaves_open_are_no_negatives(pairs, tmp_path):
    pytest.importorskip("faiss")
    summary = run_mine(pairs, tmp_path / "out.jsonl", engine="faiss:IVF8,Flat:nprobe=1", negatives=12)
    assert 0 < summary.mean_negatives < 12


def test_the_trainer_reads_what_was_mined(pairs, tmp_path):
    for name in ("out.jsonl.zst", "out.parquet"):
        run_mine(pairs, tmp_path / name)
        source = load_source(SourceConfig(path=str(tmp_path / name)))
        assert {len(pair.negatives) for pair in source} == {3}
        assert source.count("language") == {"en": 40}
    assert pq.read_table(tmp_path / "out.parquet").column_names == [
        "query", "document", "negatives", "language", "source",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"depth": 2}, "depth 2 is too small: 3 documents are needed"),
        ({"skip_top": 10}, "depth 12 is too small: 13"),
        ({"engine": "magic"}, "unknown engine 'magic'"),
        ({"engine": "faiss:Magic"}, "FAISS cannot make an index Magic"),
        ({"engine": "faiss:IVF2,Flat:magic=1"}, "FAISS cannot make an index"),
        ({"model": ToyModel({"document 7": [np.nan] * 8})}, "the document of pairs, row 2"),
    ],
)
def test_what_makes_no_sense_is_refused(pairs, tmp_path, options, complaint):
    if "FAISS" in complaint:
        pytest.importorskip("faiss")
    with pytest.raises(UserError, match=complaint):
        run_mine(pairs, tmp_path / "out.jsonl", **options)
    assert not (tmp_path / "out.jsonl").exists()


def test_a_corpus_without_negatives_or_texts_is_refused(pairs, tmp_path):
    for text, complaint in [("", "holds no usable rows"), ('{"text": "lonely"}\n', "one document only")]:
        (tmp_path / "corpus.jsonl").write_text(text)
        corpus = SourceConfig(path=str(tmp_path / "corpus.jsonl"), document="text")
        with pytest.raises(UserError, match=complaint):
            run_mine(pairs, tmp_path / "out.jsonl", corpus=corpus)


def test_the_command(run: Run, pairs, tmp_path, make_model):
    make_model().save_pretrained(tmp_path / "model")
    arguments = ("mine", pairs.path, "--teacher", tmp_path / "model", "--depth", 12, "--negatives", 3)
    code, out, err = run(*arguments, "--rule", "none", "--out", tmp_path / "out.jsonl", "--json")
    assert code == 0, err
    answer = json.loads(out)
    assert (answer["written"], answer["mean_negatives"]) == (40, 3)
    assert answer["negative_scores"]["0.5"] <= 1
    code, out, _ = run(
        *arguments, "--rule", "max:1", "--rule", "relative:1", "--out", tmp_path / "two.parquet"
    )
    assert code == 0
    assert "cosine at" in out
    nothing = ("--rule", "max:-1", "--out", tmp_path / "nothing.jsonl")
    code, out, err = run(*arguments, *nothing)
    assert (code, out) == (2, "")
    assert err == "error: the rule max:-1 leaves no pair with enough negatives\n"
    assert not (tmp_path / "nothing.jsonl").exists()
    corpus = write_jsonl(tmp_path / "corpus.jsonl", [{"body": f"text {i}"} for i in range(5)])
    corpus_options = ("--corpus", corpus, "--corpus-column", "body", "--out", tmp_path / "three.jsonl")
    code, out, err = run(*arguments, *corpus_options, "--rule", "none")
    assert code == 0, err
    assert "5 documents" in out
    for options, words in [
        (("--rule", "near:1"), "unknown rule 'near:1' (known: relative:X, margin:X, max:X)"),
        (("--corpus", corpus), "no column 'text'"),
        (("--depth", 2), "too small"),
    ]:
        code, out, err = run(*arguments, "--out", tmp_path / "new.jsonl", *options)
        assert (code, out) == (2, "")
        assert words in err
        assert err.count("\n") == 1


# ---- texts that are equal, titles, and what pairs had already ----


def mined(tmp_path, rows, corpus=None, **options):
    pairs = SourceConfig(path=write_jsonl(tmp_path / "few.jsonl", rows))
    read = None
    if corpus is not None:
        read = SourceConfig(path=write_jsonl(tmp_path / "corpus.jsonl", corpus), document="text")
    summary = run_mine(
        pairs, tmp_path / "mined.jsonl", corpus=read, overwrite=True, **({"rules": ()} | options)
    )
    return read_jsonl(tmp_path / "mined.jsonl"), summary


def test_another_spelling_of_a_positive_is_never_its_negative(tmp_path):
    rows = [
        {"query": "what do owls hunt?", "document": "Owls hunt voles."},
        {"query": "What do OWLS hunt?", "document": "Small rodents."},
    ]
    corpus = [
        {"text": text}
        for text in ("owls  hunt voles. ", "small RODENTS.", "Bees make honey.", "BEES make honey.")
    ]
    found, summary = mined(tmp_path, rows, corpus)
    assert summary.documents == 3
    assert [row["negatives"] for row in found] == [["Bees make honey."]] * 2


def test_a_positive_is_known_with_and_without_its_title(tmp_path):
    corpus = [
        {"title": "Owls", "text": "hunt voles at night"},
        {"title": "Bees", "text": "make honey"},
        {"title": None, "text": "foxes live in dens"},
    ]
    for document in ("Owls hunt voles at night", "hunt voles at night", "About: Owls hunt voles at night"):
        found, _ = mined(tmp_path, [{"query": "q", "document": document}], corpus)
        assert set(found[0]["negatives"]) == {"Bees make honey", "foxes live in dens"}
    plain = [{"text": "hunt voles at night"}, {"text": "make honey"}]
    found, _ = mined(tmp_path, [{"query": "q", "document": "Owls hunt voles at night"}], plain)
    assert found[0]["negatives"] == ["make honey"]


def test_the_text_of_the_query_is_no_negative(tmp_path):
    rows = [{"query": "owls hunt at night", "document": "voles"}]
    corpus = [{"title": "Owls", "text": "Owls hunt  at night"}, {"text": "bees make honey"}]
    found, _ = mined(tmp_path, rows, corpus)
    assert found[0]["negatives"] == ["bees make honey"]


def test_a_beir_folder_is_a_corpus(tmp_path):
    folder = tmp_path / "task"
    (folder / "qrels").mkdir(parents=True)
    write_jsonl(folder / "corpus.jsonl", [{"_id": "1", "title": "Owls", "text": "hunt voles"},
                                          {"_id": "2", "title": "", "text": "bees make honey"}])  # fmt: skip
    write_jsonl(folder / "queries.jsonl", [{"_id": "q", "text": "who hunts?"}])
    (folder / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\nq\t1\t1\n")
    corpus = SourceConfig(path=str(folder), document="text")
    run_mine(SourceConfig(path=str(folder)), tmp_path / "out.jsonl", corpus=corpus, rules=())
    expected = {"query": "who hunts?", "document": "Owls hunt voles", "negatives": ["bees make honey"]}
    assert read_jsonl(tmp_path / "out.jsonl") == [expected]


def test_negatives_that_pairs_have_stay_in_front_or_are_replaced(tmp_path):
    rows = [
        {"query": "q", "document": "owls", "negative": ["Foxes", "OWLS", "a stone"]},
        {"query": "r", "document": "bees"},
        {"query": "s", "document": "foxes"},
    ]
    found, summary = mined(tmp_path, rows)
    assert found[0]["negatives"][:2] == ["Foxes", "a stone"]
    assert sorted(found[0]["negatives"][2:]) == ["bees"]
    assert summary.notes == ["1 pairs bring 3 negatives of their own: they stay, in front of the mined ones"]
    found, summary = mined(tmp_path, rows, own_negatives="replace")
    assert sorted(found[0]["negatives"]) == ["bees", "foxes"]
    assert summary.notes == ["1 pairs bring 3 negatives of their own: the mined ones replace them"]


def test_hints_name_the_options_of_the_command(run: Run, pairs, tmp_path):
    corpus = write_jsonl(
        tmp_path / "corpus.jsonl", [{"title": "Bees", "text": ""}, {"text": "a"}, {"text": "b"}]
    )
    out = ("--out", tmp_path / "out.jsonl")
    teacher = tmp_path / "vectors"
    teacher.mkdir()
    for name in ("queries", "documents"):
        np.save(teacher / f"{name}.npy", np.eye(8, dtype=np.float32))
    code, _, err = run("mine", pairs.path, "--teacher", f"vectors:{teacher}", "--corpus", corpus, *out)
    assert code == 2
    assert err.endswith("column 'text' is empty; correct it, or leave such rows out with --skip-bad-rows\n")
    assert err.count("\n") == 1
