"""The consistency filter against its definition, pair by pair, and a run that is cut off anywhere."""

from __future__ import annotations

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import Row, ToyModel, contents, killed_after, read_jsonl, write_jsonl

from conftest import Run
from moembed.data.sources import SourceConfig
from moembed.search import filter as room
from moembed.search.exact import pair_scores
from moembed.search.filter import FilterConfig, filter_pairs
from moembed.search.teacher import ModelTeacher
from moembed.types import UserError

ROWS = [
    {"query": f"query {i % 17}", "document": f"document {i * 7 % 23}", "language": ["en", "de", "sw"][i % 3]}
    for i in range(40)
]


@pytest.fixture
def pairs(tmp_path) -> SourceConfig:
    return SourceConfig(path=write_jsonl(tmp_path / "pairs.jsonl", ROWS))


def run_filter(pairs: SourceConfig, out, model: ToyModel | None = None, **options):
    named = {name: options.pop(name) for name in ("cache", "overwrite") if name in options}
    return filter_pairs(pairs, out, ModelTeacher(model or ToyModel()), FilterConfig(**options), **named)


def by_definition(rows: list[Row], k: int, vectors: dict[str, list[float]] | None = None) -> list[Row]:
    def score(query: str, document: str) -> float:
        model = ToyModel(vectors)
        both = [model.vectors([text]).array for text in (query, document)]
        return float(pair_scores(*both)[0])

    kept = []
    for row in rows:
        own = {other["document"] for other in rows if other["query"] == row["query"]}
        rivals = {other["document"] for other in rows} - own
        bar = score(row["query"], row["document"])
        kept += [row] if sum(score(row["query"], rival) > bar for rival in rivals) < k else []
    return kept


def test_what_stays_is_what_the_definition_says(pairs, tmp_path):
    for k in (1, 2, 5):
        summary = run_filter(pairs, tmp_path / f"{k}.jsonl", k=k)
        wanted = by_definition(ROWS, k)
        assert read_jsonl(tmp_path / f"{k}.jsonl") == wanted
        assert (summary.pairs, summary.kept, summary.blocks) == (40, len(wanted), 1)
        assert summary.kept_at[k] == len(wanted) / 40
        assert sum(kept for kept, _ in summary.languages.values()) == summary.kept
        assert {name: rows for name, (_, rows) in summary.languages.items()} == {"en": 14, "de": 13, "sw": 13}


# Few directions, so that scores tie; few texts, so that queries and documents repeat.
_vectors = st.lists(st.sampled_from([0.0, 1.0, -1.0]), min_size=8, max_size=8)
_rows = st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from("stuvwxyz")), min_size=3, max_size=14)


@settings(max_examples=30)
@given(_rows, st.lists(_vectors, min_size=12, max_size=12), st.sampled_from([1, 2]))
def test_ties_and_copies_follow_the_definition(tmp_path_factory, rows, drawn, k):
    folder = tmp_path_factory.mktemp("filter")
    vectors = dict(zip("abcdstuvwxyz", drawn, strict=True))
    pairs = [{"query": query, "document": document} for query, document in rows]
    source = SourceConfig(path=write_jsonl(folder / "pairs.jsonl", pairs))
    kept = by_definition(pairs, k, vectors)
    if not kept:
        with pytest.raises(UserError, match="no pair stays"):
            run_filter(source, folder / "out.jsonl", ToyModel(vectors), k=k)
        assert not (folder / "out.jsonl").exists()
        return
    run_filter(source, folder / "out.jsonl", ToyModel(vectors), k=k)
    assert read_jsonl(folder / "out.jsonl") == kept


def test_a_copy_never_displaces_its_twin_and_a_better_text_counts_once(tmp_path):
    vectors = {"q": [1.0, 0], "near": [1, 0.1], "far": [1, 1], "other": [0, 1.0]}
    rows = [{"query": "q", "document": "far"}, {"query": "other", "document": "far"}]
    rows += [{"query": f"near {i}", "document": "near"} for i in range(5)]
    vectors |= {f"near {i}": [1, 0.1] for i in range(5)}
    source = SourceConfig(path=write_jsonl(tmp_path / "pairs.jsonl", rows))
    run_filter(source, tmp_path / "two.jsonl", ToyModel(vectors, dim=2), k=2)
    assert read_jsonl(tmp_path / "two.jsonl") == rows, "five copies of one better document leave it second"
    run_filter(source, tmp_path / "one.jsonl", ToyModel(vectors, dim=2), k=1)
    assert read_jsonl(tmp_path / "one.jsonl") == rows[1:]


def test_blocks_are_even_never_mix_labels_and_follow_the_seed(pairs, tmp_path):
    source = room.load_source(pairs)
    blocks = room._blocks(source, FilterConfig(block=6, by="language"))
    assert sorted(np.concatenate(blocks)) == list(range(40))
    assert {len(set(source.labels("language", rows))) for rows in blocks} == {1}
    assert [len(rows) for rows in blocks] == [5, 5, 4, 5, 4, 4, 5, 4, 4]
    again = room._blocks(source, FilterConfig(block=6, by="language"))
    other = room._blocks(source, FilterConfig(block=6, by="language", seed=1))
    assert all(map(np.array_equal, blocks, again))
    assert not all(map(np.array_equal, blocks, other))
    in_order = room._blocks(source, FilterConfig(block=15, order="file"))
    assert [(rows[0], rows[-1]) for rows in in_order] == [(0, 13), (14, 26), (27, 39)]


def test_a_block_is_filtered_as_if_it_were_alone(pairs, tmp_path):
    summary = run_filter(pairs, tmp_path / "out.jsonl", block=14, order="file")
    blocks = [ROWS[:14], ROWS[14:27], ROWS[27:]]
    assert read_jsonl(tmp_path / "out.jsonl") == [row for block in blocks for row in by_definition(block, 2)]
    assert summary.blocks == 3


# The manifest, then for each of three blocks its vectors and its ranks.
@pytest.mark.parametrize("replaced", [0, 1, 3, 5, 6, 10, 11, 15])
@pytest.mark.parametrize("suffix", [".jsonl.gz", ".parquet"])
def test_a_run_cut_off_anywhere_goes_on_to_the_same_file(pairs, tmp_path, replaced, suffix):
    options = {"block": 14, "by": None}
    whole, broken = tmp_path / f"whole{suffix}", tmp_path / f"broken{suffix}"
    uncut, model = ToyModel(), ToyModel()
    run_filter(pairs, whole, uncut, **options)
    with killed_after(replaced) as tried:
        run_filter(pairs, broken, **options)
    assert not broken.exists()
    run_filter(pairs, broken, model, **options)
    assert broken.read_bytes() == whole.read_bytes()
    finished = sum(path.name.endswith(".keys.npy") for path in tried[:replaced])
    assert model.calls == uncut.calls[finished:], "nothing is embedded again"
    assert [file.name for file in tmp_path.iterdir() if "broken" in file.name] == [broken.name]


def test_blocks_of_other_options_are_refused_by_name(pairs, tmp_path, monkeypatch):
    monkeypatch.setattr(room.Partial, "finish", lambda *rest: None)
    run_filter(pairs, tmp_path / "out.jsonl", block=14)
    for options, complaint in [
        ({"block": 20}, "block was 14 and is 20"),
        ({"block": 14, "seed": 3}, "seed was 0 and is 3"),
        ({"block": 14, "model": ToyModel(name="new")}, "teacher was .*toy.* and is .*new"),
    ]:
        with pytest.raises(UserError, match=complaint):
            run_filter(pairs, tmp_path / "out.jsonl", **options)
    run_filter(pairs, tmp_path / "out.jsonl", block=14, k=5)  # ranks serve every k
    write_jsonl(tmp_path / "pairs.jsonl", ROWS[1:])
    with pytest.raises(UserError, match="inputs was"):
        run_filter(pairs, tmp_path / "out.jsonl", block=14)


def test_a_cache_embeds_a_text_once_for_all_runs(pairs, tmp_path):
    first, second = ToyModel(), ToyModel()
    run_filter(pairs, tmp_path / "a.jsonl", first, block=14, cache=tmp_path / "cache")
    assert len(first.encoded) == len(set(first.encoded)) == 17 + 23
    run_filter(pairs, tmp_path / "b.jsonl", second, k=1, cache=tmp_path / "cache")
    assert second.encoded == []
    assert len(contents(tmp_path / "cache")) > 0


def test_parquet_negatives_and_missing_labels(tmp_path):
    rows = [{"query": "a", "document": "s", "negatives": ["t", "u"]}, {"query": "b", "document": "t"}]
    source = SourceConfig(path=write_jsonl(tmp_path / "pairs.jsonl", [*rows, rows[0]]))
    vectors = {text: np.eye(8)["asbt".index(text) // 2].tolist() for text in "asbt"}
    run_filter(source, tmp_path / "out.parquet", ToyModel(vectors))
    empty = {"language": None, "source": None}
    assert pq.read_table(tmp_path / "out.parquet").to_pylist() == [
        rows[0] | empty, rows[1] | {"negatives": None} | empty, rows[0] | empty,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"k": 40}, "k 40 keeps every pair: no block has more than 40"),
        ({"block": 2}, "k 2 keeps every pair"),
        ({"by": "group"}, "no pair of pairs says its group"),
        (
            {"model": ToyModel({"query 3": [np.nan] * 8})},
            "NaN or infinite numbers of the query of pairs, row 4",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(pairs, tmp_path, options, complaint):
    with pytest.raises(UserError, match=complaint):
        run_filter(pairs, tmp_path / "out.jsonl", **options)
    assert not (tmp_path / "out.jsonl").exists()


def test_outputs_that_cannot_be(pairs, tmp_path):
    with pytest.raises(UserError, match=r"does not end in \.jsonl"):
        run_filter(pairs, tmp_path / "out.txt")
    (tmp_path / "there.jsonl").write_text("mine")
    with pytest.raises(UserError, match="already exists"):
        run_filter(pairs, tmp_path / "there.jsonl")
    run_filter(pairs, tmp_path / "there.jsonl", overwrite=True)
    assert len(read_jsonl(tmp_path / "there.jsonl")) > 1
    (tmp_path / "out.jsonl.partial").mkdir()
    (tmp_path / "out.jsonl.partial" / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="somebody else"):
        run_filter(pairs, tmp_path / "out.jsonl")


def test_the_command(run: Run, pairs, tmp_path, make_model):
    make_model().save_pretrained(tmp_path / "model")
    arguments = (
        "filter",
        pairs.path,
        "--model",
        tmp_path / "model",
        "--by",
        "language",
        "--dtype",
        "float32",
    )
    arguments += ("--cache", tmp_path / "cache")
    code, out, err = run(*arguments, "--out", tmp_path / "kept.jsonl", "--json")
    assert code == 0, err
    answer = json.loads(out)
    assert answer["kept"] == len(read_jsonl(tmp_path / "kept.jsonl")) <= answer["pairs"] == 40
    assert len(list((tmp_path / "cache").iterdir())) == 2, "a space per role"
    code, out, _ = run(*arguments, "--out", tmp_path / "prompted.jsonl", "--query-prompt", "find ")
    assert code == 0
    assert "language" in out
    assert len(list((tmp_path / "cache").iterdir())) == 3, "another prompt, another space"
    for options, words in [
        (("--out", tmp_path / "kept.jsonl"), "already exists"),
        (("--out", tmp_path / "new.jsonl", "--query-column", "question"), "no column 'question'"),
    ]:
        code, out, err = run(*arguments, *options)
        assert (code, out) == (2, "")
        assert words in err
