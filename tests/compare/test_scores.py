from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from moembed.compare import scores as module
from moembed.compare.runs import only, read_runs
from moembed.compare.scores import MAIN, STATISTICS, Scores, load_scores, save_scores, statistic
from moembed.types import UserError

ABOUT = {"system": "moles/ü", "space_id": "abc", "seed": 3}


def retrieval(task: str = "owls", items: int = 5) -> Scores:
    rng = np.random.default_rng(items)
    return Scores(
        task=task,
        kind="retrieval",
        item=[f"q{i}" for i in range(items)],
        language=["de", "", *["en"] * (items - 2)],
        length=np.arange(items),
        values={"ndcg@10": rng.random(items), "recall@10": rng.random(items)},
    )


def sts(items: int = 4) -> Scores:
    value = np.random.default_rng(1).random((items, 2))
    kind = {"spearman": value, "pearson": value}
    return Scores("moles", "sts", list("abcd"), [""] * items, np.arange(items) * 100, kind)


def assert_equal(a: Scores, b: Scores) -> None:
    assert (a.task, a.kind, a.item, a.language) == (b.task, b.kind, b.item, b.language)
    np.testing.assert_array_equal(a.length, b.length)
    assert list(a.values) == list(b.values)
    for metric in a.values:
        np.testing.assert_array_equal(a.values[metric], b.values[metric])


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "new" / "scores.parquet"
    kept = [sts(), retrieval(), retrieval("voles", 3)]
    save_scores(path, kept, ABOUT)
    loaded, about = load_scores(path)
    assert about == ABOUT
    for a, b in zip(kept, loaded, strict=True):
        assert_equal(a, b)
    assert os.listdir(path.parent) == [path.name]


def test_the_columns_of_the_file(tmp_path: Path) -> None:
    save_scores(tmp_path / "s.parquet", [retrieval(), sts()], ABOUT)
    table = pq.read_table(tmp_path / "s.parquet")
    columns = ["task", "kind", "metric", "item", "language", "length", "value", "right"]
    assert table.column_names == columns
    assert table["right"].null_count == 2 * 5


def test_every_kind_of_task_has_a_main_metric_that_can_be_summed_up() -> None:
    assert set(STATISTICS) == {"ap", "spearman", "pearson", "v_measure"}
    pairs = np.array([[1.0, 0.0], [2.0, 1.0]])
    for metric in MAIN.values():
        value = pairs if metric in STATISTICS else pairs[:, 0]
        assert np.isfinite(statistic(metric)(value))


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "s.parquet"
    save_scores(path, [sts()], ABOUT)

    def full(table: pa.Table, where: Path, **options: object) -> None:
        Path(where).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.pq, "write_table", full)
    with pytest.raises(UserError, match=r"cannot write .*s\.parquet: the disk is full"):
        save_scores(path, [retrieval()], ABOUT)
    assert os.listdir(tmp_path) == ["s.parquet"]
    assert load_scores(path)[0][0].task == "moles"


def test_nothing_to_save(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no scores"):
        save_scores(tmp_path / "s.parquet", [], ABOUT)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    whole = tmp_path / "whole.parquet"
    save_scores(whole, [retrieval()], ABOUT)
    with pytest.raises(UserError, match="no such file"):
        load_scores(tmp_path / "none.parquet")
    with pytest.raises(UserError, match="no such file"):
        load_scores(tmp_path)
    for name, content in {
        "cut": whole.read_bytes()[:-20],
        "empty": b"",
        "text": b"task,kind\n",
    }.items():
        (tmp_path / f"{name}.parquet").write_bytes(content)
        with pytest.raises(UserError, match=f"cannot read the scores in .*{name}.parquet") as caught:
            load_scores(tmp_path / f"{name}.parquet")
        assert "\n" not in str(caught.value)
    pq.write_table(pa.table({"query": ["a"]}), tmp_path / "foreign.parquet")
    table = pq.read_table(whole)
    pq.write_table(table.drop_columns("value"), tmp_path / "column.parquet")
    pq.write_table(table.replace_schema_metadata(None), tmp_path / "unmarked.parquet")
    for name in ("foreign", "column", "unmarked"):
        with pytest.raises(UserError, match="is not a file of scores"):
            load_scores(tmp_path / f"{name}.parquet")


def write(path: Path, system: str, *tasks: Scores, space: str | None = None) -> Path:
    save_scores(path, tasks or [retrieval()], {"system": system, "space_id": space, "seed": None})
    return path


def test_runs_are_files_or_folders_of_seeds(tmp_path: Path) -> None:
    one = write(tmp_path / "one.parquet", "dense")
    for seed in range(3):
        write(tmp_path / "moe" / f"{seed}.parquet", "moe", space=f"space{seed}")
    systems = read_runs([str(tmp_path / "moe"), str(one), f"again={one}"])
    assert {name: len(seeds) for name, seeds in systems.items()} == {"moe": 3, "dense": 1, "again": 1}
    assert len(read_runs([f"two={tmp_path}/moe/[12].parquet"])["two"]) == 2
    assert_equal(systems["dense"][0]["owls"], retrieval())


def test_a_folder_of_several_systems_is_refused_unless_it_is_given_a_name(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(tmp_path / f"{name}.parquet", name)
    with pytest.raises(UserError, match=r"several systems \(a, b\)"):
        read_runs([str(tmp_path)])
    assert len(read_runs([f"both={tmp_path}"])["both"]) == 2


def test_runs_that_cannot_be_told_apart(tmp_path: Path) -> None:
    a, b = (write(tmp_path / "runs" / name, "moe", space="same") for name in ("a.parquet", "b.parquet"))
    with pytest.raises(UserError, match="two runs are called moe"):
        read_runs([str(a), str(b)])
    with pytest.raises(UserError, match="of the same model"):
        read_runs([str(tmp_path / "runs")])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no file of scores"):
        read_runs([str(tmp_path / "empty")])


def test_a_path_with_an_equals_sign_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(Path("lr=1.parquet"), "dense")
    assert list(read_runs(["lr=1.parquet"])) == ["dense"]


def test_one_metric_alone() -> None:
    systems = {"a": [{"owls": retrieval(), "moles": sts()}]}
    chosen = only(systems, "recall@10")["a"][0]
    assert list(chosen) == ["owls"]
    assert list(chosen["owls"].values) == ["recall@10"]
    with pytest.raises(
        UserError, match="a was not scored by 'mrr'; it has ndcg@10, pearson, recall@10, spearman"
    ):
        only(systems, "mrr")
