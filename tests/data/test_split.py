"""`moembed data split`: no text of one side on another, whatever links the rows."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moembed.data.layouts import plain_rows
from moembed.data.pairs import SourceConfig
from moembed.data.split import SIDES, Blocks, assign, split_file
from moembed.data.text_key import normalize, text_key
from moembed.types import UserError

LONG = "the quick brown fox jumps over the lazy dog while the patient owl watches from a tall old oak tree"
SMALL = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), min_size=10, max_size=60)


def blocks_of(rows, near=None, groups=None):
    blocks = Blocks(near)
    for texts, group in zip(rows, groups or [None] * len(rows), strict=True):
        blocks.add(texts, group)
    return blocks


def components(rows):
    """The slow way: merge sets of texts until nothing changes; the block of every row."""
    sets = [set(map(normalize, texts)) for texts in rows]
    changed = True
    while changed:
        changed = False
        for one in sets:
            for other in sets:
                if one & other and one != other:
                    one |= other
                    other |= one
                    changed = True
    return [frozenset(texts) for texts in sets]


def split(tmp_path, rows, name="split", **options):
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    keys = {"group": None} | {key: options.pop(key) for key in ("group", "bad_rows") if key in options}
    done = split_file(SourceConfig(path=str(pairs), **keys), tmp_path / name, **options)
    sides = {
        side: list(plain_rows(tmp_path / name / f"{side}.jsonl")) if getattr(done, side) else []
        for side in SIDES
    }
    return done, sides


@given(SMALL)
def test_blocks_are_the_connected_rows(numbers):
    rows = [(f"q {a}", f"Q  {b}") for a, b in numbers]
    names, slow = blocks_of(rows).names(), components(rows)
    for i in range(len(rows)):
        assert [names[i] == name for name in names] == [slow[i] == block for block in slow]


@given(SMALL, st.integers(0, 5), st.randoms(use_true_random=False))
def test_no_text_is_on_two_sides_and_the_order_of_rows_changes_nothing(numbers, seed, random):
    rows = [(f"query {a}", f"document {b}") for a, b in numbers]
    shuffled = random.sample(rows, len(rows))

    def sides(rows):
        return assign(blocks_of(rows).names(), 0.2, 0.3, seed)

    try:
        first = sides(rows)
    except UserError:  # all in one block
        with pytest.raises(UserError, match="no row is left for"):
            sides(shuffled)
        return
    of_text: dict[str, set[str]] = {}
    for texts, side in zip(rows, first, strict=True):
        for text in texts:
            of_text.setdefault(text, set()).add(side)
    assert all(len(found) == 1 for found in of_text.values())
    assert first.count("dev") <= round(0.2 * len(rows))
    assert first.count("test") <= round(0.3 * len(rows))
    assert dict(zip(rows, first, strict=True)) == dict(zip(shuffled, sides(shuffled), strict=True))


def test_rows_without_links_are_divided_exactly_and_another_seed_divides_them_otherwise(tmp_path):
    rows = [{"query": f"question {n}", "document": f"answer {n}", "page": n} for n in range(100)]
    done, sides = split(tmp_path, rows, near=None, dev=0.1, test=25)
    assert [len(sides[side]) for side in SIDES] == [65, 10, 25]
    assert (done.rows, done.train, done.dev, done.test, done.blocks) == (100, 65, 10, 25, 100)
    assert sorted((row for side in sides.values() for row in side), key=lambda row: row["page"]) == rows
    for side in sides.values():  # in the order of the file
        assert side == sorted(side, key=lambda row: row["page"])
    assert split(tmp_path, rows, "again", near=None, dev=0.1, test=25)[1] == sides
    assert split(tmp_path, rows, "other", near=None, dev=0.1, test=25, seed=1)[1] != sides
    told = json.loads((tmp_path / "split" / "split.json").read_text())
    assert (told["seed"], told["train"], told["near"], told["test"]) == (0, 65, None, 25)


def test_a_column_of_groups_that_is_not_there_is_told_by_its_option(tmp_path, run):
    (tmp_path / "pairs.jsonl").write_text('{"query": "a", "document": "b"}\n')
    out = tmp_path / "out"
    code, _, err = run("data", "split", tmp_path / "pairs.jsonl", "--out", out, "--group", "author")
    assert code == 2
    assert "no column 'author', only 'query', 'document'; name the columns with --query" in err
    assert "--group" in err


def test_rows_of_a_group_stay_together_and_one_without_a_group_is_told(tmp_path):
    rows = [{"query": f"q{n}", "document": f"d{n}", "author": n % 20} for n in range(200)]
    done, sides = split(tmp_path, [*rows, {"query": "x", "document": "y", "author": None}], group="author")
    authors = [{row["author"] for row in side} - {None} for side in sides.values()]
    assert sum(map(len, authors)) == 20
    assert done.largest_block == 10
    assert "1 rows have no author: only their texts link them to others" in done.notes


def test_nearly_equal_texts_link_their_rows_whatever_their_order():
    rows = [("a question", LONG), ("what?", LONG.replace("dog", "cat")), ("why?", "moles dig tunnels")]
    for order in ([0, 1, 2], [2, 1, 0], [1, 2, 0]):
        names = dict(zip(order, blocks_of([rows[i] for i in order], near=0.8).names(), strict=True))
        assert names[0] == names[1] != names[2]
    exact = blocks_of(rows).names()
    assert len(set(exact)) == 3


def test_a_query_that_is_a_document_of_another_row_links_them():
    names = blocks_of([("how to sort?", "use sorted"), ("sort a list", "How  to sort?"), ("x", "y")]).names()
    assert names[0] == names[1] != names[2]


def test_positives_in_a_list_are_texts_of_their_row(tmp_path):
    rows = [{"query": f"q{n}", "pos": [f"d{n}", f"d{n + 1}"]} for n in range(0, 40, 2)]
    done, _ = split(tmp_path, rows, near=None)
    assert done.blocks == 20
    linked, _ = split(tmp_path, [*rows, {"query": "z", "pos": ["D4", "d8"]}], "linked", near=None)
    assert (linked.blocks, linked.largest_block) == (19, 3)


def test_what_cannot_be_divided_is_refused_and_what_falls_short_is_told(tmp_path):
    chain = [{"query": "the same", "document": f"d{n}"} for n in range(30)]
    with pytest.raises(UserError, match=r"no row is left for test: .* 30 rows into 1 blocks"):
        split(tmp_path, chain, near=None)
    assert not (tmp_path / "split").exists()
    with pytest.raises(UserError, match="would take 30 of 30 rows: leave some to train on"):
        split(tmp_path, chain, dev=20, test=10)
    for share in (-0.1, float("nan"), float("inf")):
        with pytest.raises(UserError, match="is neither a share of the rows below 1 nor a number of rows"):
            split(tmp_path, chain, dev=share)
    rows = [{"query": f"q{n // 4}", "document": f"d{n}"} for n in range(40)]
    done, _ = split(tmp_path, rows, near=None, dev=6, test=0.1)
    assert (done.dev, done.test) == (4, 4)
    assert "dev has 4 rows instead of 6" in done.notes[0]
    assert not any("test has" in note for note in done.notes)


def test_no_file_of_a_side_that_was_not_asked_for(tmp_path):
    rows = [{"query": f"q{n}", "document": f"d{n}"} for n in range(20)]
    done, _ = split(tmp_path, rows, near=None, dev=0, test=5)
    assert done.dev == 0
    assert not (tmp_path / "split" / "dev.jsonl").exists()
    assert len(list(plain_rows(tmp_path / "split" / "test.jsonl"))) == 5


def test_negatives_of_training_rows_that_are_texts_of_another_side_are_told(tmp_path):
    rows = [{"query": f"q{n}", "document": f"d{n}", "negative": f"d{(n + 1) % 50}"} for n in range(50)]
    done, sides = split(tmp_path, rows, near=None, dev=5, test=10)
    held = {text_key(row["document"]) for side in ("dev", "test") for row in sides[side]}
    shown = sum(text_key(row["negative"]) in held for row in sides["train"])
    assert shown
    assert f"{shown} training rows have a hard negative that is a text of dev or test" in done.notes[0]


def test_bad_rows_are_refused_or_left_out(tmp_path):
    rows = [{"query": f"q{n}", "document": f"d{n}"} for n in range(20)]
    rows[3] = {"query": "", "document": "d"}
    with pytest.raises(UserError, match="line 4: column 'query' "):
        split(tmp_path, rows)
    done, sides = split(tmp_path, rows, bad_rows="skip")
    assert (done.rows, done.skipped) == (19, 1)
    assert {"query": "", "document": "d"} not in [row for side in sides.values() for row in side]
    with pytest.raises(UserError, match="no column 'author', only 'query', 'document'"):
        split(tmp_path, rows, group="author", bad_rows="refuse")


def test_the_command(tmp_path, run):
    rows = [{"query": f"q{n}", "document": f"d{n}", "page": n} for n in range(40)]
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["data", "split", str(pairs), "--out", str(tmp_path / "split"), "--near", "1"]
    code, out, err = run(*arguments)
    assert code == 0, err
    assert "32 rows to train, 4 dev, 4 test, from 40 rows in 40 blocks, the largest of 1" in " ".join(
        out.split()
    )
    assert "columns not compared: page (they are kept)" in err
    assert run(*arguments)[0] == 2
    code, out, _ = run(*arguments, "--overwrite", "--json", "--seed", "3")
    assert (code, json.loads(out)["train"]) == (0, 32)


def test_the_rows_that_are_divided_are_not_replaced(tmp_path):
    split(tmp_path, [{"query": f"q{i}", "document": f"d{i}"} for i in range(40)], near=None)
    out = tmp_path / "split"
    for path in (out / "train.jsonl", out / "*.jsonl", out):
        with pytest.raises(UserError, match=r"split holds .*, which is to be divided: choose another folder"):
            split_file(SourceConfig(path=str(path), group=None), out, near=None)
    assert len(list(plain_rows(out / "train.jsonl"))) == 32
