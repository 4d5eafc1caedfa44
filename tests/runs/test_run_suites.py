"""What the suites of `moembed bench` compute and count, on tiny models: equalities, not times."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from conftest import MakeModel, Run
from moembed.embedder import Embedder
from moembed.families.flat import FlatConfig, FlatMoE
from moembed.machine import ROOT
from moembed.model.words.compressors import COMPRESSORS
from moembed.moe.router import RouterConfig
from moembed.runs import bench
from moembed.runs.bench import AloneError, Options, Row, Timing
from moembed.runs.source_tree import source_tree
from moembed.types import Pair, UserError

CPU = Options(repeats=1, quick=True, device="cpu", threads=1)
bench.suites()  # puts the folder of the suites on the path
from benchmarks import filter, gpu, layers, models, peers, runtimes, scale, shared, start, train, words  # noqa: E402


@pytest.fixture
def folder(moe_model: Embedder, tmp_path: Path) -> Path:
    moe_model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def by_contender(rows: Iterator[Row]) -> dict[tuple[str, str], Row]:
    return {(row.question, row.contender): row for row in rows}


# ---- runtimes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["moembed", "onnxruntime", "fastembed", "llama.cpp"])
def test_every_runtime_gives_the_vectors_of_the_model(
    name: str, make_model: MakeModel, tmp_path: Path, texts: list[str]
) -> None:
    runtime = runtimes.RUNTIMES[name]
    if bench.missing(runtime.package):
        pytest.skip(f"{name} is not installed")
    some = [text for text in texts if text]
    model = make_model(family="bert", width=32, num_heads=2)
    model.save_pretrained(tmp_path / "model")
    path = tmp_path / "model"
    if runtime.export:
        path = tmp_path / "exported"
        runtime.export(tmp_path / "model", path, "f32" if name == "llama.cpp" else "float32")
    found = np.asarray(runtime.load(path, "float32", 1)(some))
    found = found / np.linalg.norm(found, axis=1, keepdims=True)
    np.testing.assert_allclose(found, model.encode(some), atol=1e-3)


def test_a_runtime_in_a_process_of_its_own(folder: Path, tmp_path: Path, texts: list[str]) -> None:
    files = runtimes.Files(folder, tmp_path)
    running = runtimes.Running("moembed", files, "float32", texts[:2], 1)
    expected = Embedder.from_pretrained(folder).encode(texts[:2])
    np.testing.assert_allclose(running.vectors(), expected, atol=1e-6)
    timings = runtimes.turns({"ours": running}, "encode", repeats=2, warmup=1)
    assert len(timings["ours"].seconds) == 2
    assert min(timings["ours"].seconds) > 0
    with pytest.raises(AloneError, match="KeyError: 'moles'"):
        running.seconds("moles")
    assert not running._process.is_alive()


def test_a_missing_peer_says_how_to_install_it(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtimes, "missing", lambda package: f"{package} is not installed")
    with pytest.raises(AloneError, match="onnxruntime is not installed"):
        runtimes.Files(folder, tmp_path).of("onnxruntime", "float32")


def test_no_peer_reads_more_than_the_model(moe_model: Embedder) -> None:
    tokenizer = moe_model.tokenizer
    some = ["the mole digs", "the mole digs tunnels under the meadow " * 9]
    short, long = peers.whole(some, tokenizer)
    assert short == some[0]
    (row,), cut = tokenizer.rows([long])
    assert cut == 0
    assert len(row) >= tokenizer.max_length - 1


# ---- shares ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [4, 600])
def test_the_operations_of_a_step_are_those_it_ran(count: int, moe_model: Embedder) -> None:
    """A batch of one chunk is embedded once; GradCache embeds the chunks of a larger one once more, unless it
    keeps their graphs."""
    pairs = [Pair(f"mole {number}", f"mole {number} digs") for number in range(count)]
    step = train.OurStep(moe_model.parts(), pairs)
    step.config = step.config.model_copy(update={"chunk_tokens": 4096})
    assert step() > 0
    rows = [
        *moe_model.rows([pair.query for pair in pairs], role="query")[0],
        *moe_model.rows([pair.document for pair in pairs], role="document")[0],
    ]
    once = models.flops(moe_model.encoder.spec, [len(row) for row in rows])
    # `forwards` counts tokens; attention grows with the square of a length: a thousandth of the whole here
    assert step.flops == pytest.approx(once * (step.forwards + 2), rel=2e-3)
    assert 1 <= step.forwards <= 2
    if count == 4:
        assert step.forwards == 1


def test_a_step_that_does_nothing_but_products_has_the_whole_peak(moe_model: Embedder) -> None:
    pairs = [Pair("mole", "moles dig"), Pair("owl", "owls hunt")]
    ours = {name: train.OurStep(moe_model.parts(), pairs) for name in (train.DENSE, train.EXPERTS)}
    best, work = "matrix product (2048, 2048, 2048)", 2.0 * 2048**3
    timings = {name: Timing((9.0,)) for name in layers.PRODUCTS} | {best: Timing((2.0,))}
    for name, step in ours.items():
        step.flops, step.tokens, step.graded = 3 * work, 3, 2
        timings[name] = Timing((6.0 if name == train.DENSE else 12.0,))
    rows = by_contender(train.told("step", 1, timings, ours))
    assert rows["step: share of the peak", train.DENSE].value == pytest.approx(100)
    assert rows["step: share of the peak", train.EXPERTS].value == pytest.approx(50)
    assert rows["step: share of the peak", train.DENSE].note == "1.50 forward passes"
    assert rows["step, time", train.EXPERTS].ratio == 2
    assert rows["step, time", train.EXPERTS].met is False


def test_what_is_left_beside_a_busy_process() -> None:
    timings = {
        "alone": {shared.DENSE: Timing((1.0,)), shared.EXPERTS: Timing((1.1,))},
        "beside a busy process": {shared.DENSE: Timing((2.0,)), shared.EXPERTS: Timing((4.4,))},
    }
    rows = by_contender(shared.told("texts", 10, timings, cores=2))
    left = "speed that is left beside a busy process"
    assert rows[left, shared.DENSE].value == 50
    assert rows[left, shared.DENSE].met is True
    assert rows[left, shared.EXPERTS].value == 25
    assert rows[left, shared.EXPERTS].met is False
    assert rows["texts, alone, experts over dense", shared.EXPERTS].met is True
    assert rows["texts, beside a busy process, experts over dense", shared.EXPERTS].met is False


def test_a_fresh_process_tells_its_parts(folder: Path, tmp_path: Path, texts: list[str]) -> None:
    one = start.run(folder, {"query": texts[:1], "many": texts}, tmp_path, CPU)
    assert set(one.seconds) == {"import", "load", "query", "many"}
    assert min(one.seconds.values()) > 0
    assert sum(one.seconds.values()) < one.wall
    assert one.peak > 1 << 20


# ---- what needs a GPU, on a CPU ----------------------------------------------------------------------------


def test_the_benchmark_of_a_gpu_runs_on_a_cpu_with_tiny_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = FlatConfig(
        vocab_size=30_522, width=16, num_layers=2, num_heads=2, ffn_width=24, position="rope",
        max_positions=256, norm_eps=1e-5,
        moe=FlatMoE(layers=(1,), num_experts=4, bias="shared", router=RouterConfig(normalize=None)),
    ).spec()  # fmt: skip
    monkeypatch.setattr(layers, "WIDTH", 24)
    monkeypatch.setattr(layers, "HIDDEN", 32)
    sizes = gpu.Sizes(tokens=480, trained=480, product=64, spec=spec, warmup=0, rounds=1)
    rows = list(gpu.measured(CPU, sizes))
    assert {row.question for row in rows if row.target} == set(gpu.TARGETS)
    assert all(row.value and row.value > 0 and not row.note for row in rows)
    assert all(row.met is not None for row in rows if row.target)


def test_the_full_sizes_are_those_of_the_targets() -> None:
    assert (gpu.FULL.tokens, gpu.FULL.spec) == (65_536, models.PUBLISHED)


# ---- another version ---------------------------------------------------------------------------------------


def test_a_source_tree_is_a_folder_or_a_commit() -> None:
    with source_tree(str(ROOT)) as found:
        assert found == ROOT / "src"
    with source_tree(str(ROOT / "src")) as found:
        assert found == ROOT / "src"
    if (ROOT / ".git").exists():
        with source_tree("HEAD") as found:
            assert (found / "moembed" / "__init__.py").is_file()
            assert found != ROOT / "src"
        assert not found.exists()
    with (
        pytest.raises(UserError, match="neither a folder with src/moembed"),
        source_tree("moles"),
    ):
        pass


def test_against_is_refused_where_nothing_reads_it(run: Run) -> None:
    code, _, error = run("bench", "moe", "--against", str(ROOT))
    assert code == 2
    assert error == "error: --against is read by the suite demo alone: name it among the suites\n"


# ---- filter ------------------------------------------------------------------------------------------------


def test_contenders_of_filtered_search_are_asked_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("qdrant_edge")
    monkeypatch.setattr(filter, "ASKED", 6)
    monkeypatch.setattr(filter, "TIMED", 2)
    generator = np.random.default_rng(0)
    drawn = generator.standard_normal((306, 8)).astype(np.float32)
    drawn /= np.linalg.norm(drawn, axis=1, keepdims=True)
    filter.keep(tmp_path, drawn)
    stored = filter.Stored.of(tmp_path, 300)
    assert stored.built.keys() == {"rows", "graph", "graph alone"}
    making = {row.contender: row for row in filter.building(stored) if row.question.startswith("making")}
    assert (making[filter.OURS].peer, making[filter.OURS].target) == (filter.ENGINE, ">= 0.9")
    assert making[filter.OURS].ratio == pytest.approx(stored.built["graph alone"] / stored.built["graph"])
    index = filter.Index.open(stored.index)
    near_N = stored.columns["near"].to_numpy()
    assert (np.diff((drawn[:300] @ drawn[0])[np.argsort(near_N)]) <= 0).all()
    for column, bound in (("spread", 40), ("near", 300)):
        row_K = np.flatnonzero(stored.columns[column].to_numpy() < bound)
        assert len(row_K) == bound
        wanted = row_K[np.argsort(-(drawn[row_K] @ drawn[300]))[:10]]
        found = [
            filter.scan(stored, column, bound, drawn[300]),
            index.search(drawn[300:301], 10, where=f"{column} < {bound}").index[0],
            filter.engine_alone(index, column, bound, drawn[300]),
        ]
        assert [sorted(some.tolist()) for some in found] == [sorted(wanted.tolist())] * 3
    rows = list(filter.asked(stored, index, "spread", 0.1, 1))
    assert [row.contender for row in rows] == [
        filter.SCAN,
        filter.EXACT,
        filter.ENGINE,
        filter.OURS,
        filter.NEW,
        filter.OURS,
    ]
    assert (rows[-1].value, rows[-1].met) == (1.0, True)
    assert rows[-3].target == ">= 5"


def test_what_grows_in_a_straight_line_is_carried_on(monkeypatch: pytest.MonkeyPatch) -> None:
    size_S = np.array([10.0, 20, 40])
    assert scale.line(size_S, 3 + 2 * size_S, 1000) == pytest.approx(2003)
    monkeypatch.setattr(scale, "QUICK", (300, 600))
    rows = list(scale.rows(CPU))
    for size in (300, 600):
        (on_disk,) = [
            row for row in rows if row.question.startswith(f"{size} x") and row.contender == "on disk"
        ]
        assert on_disk.value is not None
        assert on_disk.value > scale.DIM  # a byte for every coordinate, and ids, text and keys beside
    assert sum(row.question.endswith("carried on") for row in rows) == 6


# ---- words -------------------------------------------------------------------------------------------------


def test_every_form_of_a_table_is_looked_up_within_its_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "SHAPES", {"tiny": (4000, 12)})
    monkeypatch.setattr(words, "TOKENS", 20)
    monkeypatch.setattr(words, "RATIO", 0.45)
    found = list(words.rows(CPU))
    assert {row.contender for row in found} == {words.FLOATS, *COMPRESSORS} - {"dpq"}
    for row in found:
        megabytes = float(row.note.removesuffix(" MB"))
        most = {words.FLOATS: 1, "int8": 16 / 48, "int4": 36 / 48}.get(row.contender, 0.45)
        assert megabytes <= round(most * 4000 * 12 * 4 / 1e6, 1)
