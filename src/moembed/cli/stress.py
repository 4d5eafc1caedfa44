"""`moembed stress`: what a model cannot do, asked without data."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from moembed.cli.options import AllowPickle, Dtype, Json, Seed, connect, load_model, when_interrupted
from moembed.compare.formatting import difference, estimate
from moembed.console import print_json, print_table, progress_bar, say
from moembed.files import require_writable, write_json
from moembed.types import UserError

if TYPE_CHECKING:
    from moembed.evaluation.beir import RetrievalTask
    from moembed.stress.capacity import CapacityGuess
    from moembed.stress.invariance import InvarianceScores
    from moembed.stress.limit import LimitScores
    from moembed.stress.long_context import LongScore, LongScores
    from moembed.stress.noise import NoiseScores
    from moembed.stress.subject import Subject
    from moembed.stress.suite import PartResult
    from moembed.stress.tables import TableScores

PUBLISHED = Path("eval") / "limit-small"


def stress(
    models: Annotated[
        list[str],
        typer.Argument(help="Folders, hub ids (owner/name@revision), minilm, http://host:port, bm25."),
    ],
    only: Annotated[
        str | None,
        typer.Option(help="Some of limit, capacity, long, invariance, noise, tables; default: all."),
    ] = None,
    people: Annotated[int, typer.Option(min=3, help="limit: documents of the fresh instance.")] = 46,
    queries: Annotated[int, typer.Option(min=1, help="limit: most queries of the fresh instance.")] = 1000,
    save: Annotated[
        Path | None, typer.Option(help="limit: write the fresh instance to this folder, in BEIR layout.")
    ] = None,
    lengths: Annotated[
        str | None,
        typer.Option(help="long: tokens, as 256,8192; default: 256 … 8192 as far as the model reads."),
    ] = None,
    task: Annotated[
        Path | None,
        typer.Option(help="noise: a BEIR-layout folder; default: docstrings of Python's library."),
    ] = None,
    seed: Seed = 0,
    dtype: Dtype = "auto",
    allow_pickle: AllowPickle = False,
    out: Annotated[Path | None, typer.Option(help="Also write the JSON result to this file.")] = None,
    json_: Json = False,
) -> None:
    """Stress tests that need no data: LIMIT, capacity, long documents, invariances, typos and cut documents,
    tables written as text.

    Where MOEMBED_DATA names a folder with `eval/limit-small`, that published LIMIT is asked too.

    Example: `moembed stress minilm bm25 --only limit,noise`
    """
    from moembed.client.connection import is_url
    from moembed.evaluation.beir import load_task, save_task
    from moembed.folder.bases import locate_base
    from moembed.stress.limit import limit_task
    from moembed.stress.suite import PARTS, Settings
    from moembed.stress.suite import stress as run

    if len(set(models)) < len(models):
        raise UserError("a model is named twice")
    for name in set(models) - {"bm25"}:
        if is_url(name):
            connect(name, dtype).close()
            continue
        locate_base(name, allow_pickle=allow_pickle)  # what is not there is said before anything is computed
    parts = _chosen(only, PARTS) if only is not None else list(PARTS)
    if out:
        require_writable(out)
    fresh = limit_task(people, queries, seed)
    if save and save.exists():
        raise UserError(f"{save} already exists: choose another folder")
    if save:
        save_task(fresh, save)
    settings = Settings(
        limit_tasks=[*_published(), fresh],
        lengths=_numbers(lengths) if lengths else None,
        noise_task=load_task(task) if task else None,
        seed=seed,
    )
    kept = "nothing is kept; --only takes some of the tests, and a single model is done sooner"
    with when_interrupted(lambda: kept):
        result = run(_subjects(models, dtype, allow_pickle), parts, settings, progress_bar)
    plain = {part: found.to_json() for part, found in result.items()}
    if json_:
        print_json(plain)
    else:
        for part, found in result.items():
            SHOW[part](found)
    if out:
        write_json(out, plain)


def _chosen(only: str, known: Collection[str]) -> list[str]:
    """The names of a comma-separated list, in the order of ``known``."""
    named = {name.strip() for name in only.split(",")} - {""}
    if unknown := sorted(named - set(known)):
        raise UserError(f"--only {unknown[0]!r} is none of {', '.join(known)}")
    if not named:
        raise UserError(f"--only names nothing: choose of {', '.join(known)}")
    return [name for name in known if name in named]


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"--lengths {text!r} is not a list of whole numbers such as 256,512") from None


def _published() -> list[RetrievalTask]:
    from moembed.evaluation.beir import load_task

    folder = Path(os.environ.get("MOEMBED_DATA", "")) / PUBLISHED
    return [load_task(folder)] if "MOEMBED_DATA" in os.environ and folder.is_dir() else []


def _subjects(models: list[str], dtype: str, allow_pickle: bool) -> Iterator[Subject]:
    from moembed.client.connection import is_url
    from moembed.stress.subject import Subject

    for name in models:
        if is_url(name):
            with connect(name, dtype) as served:
                yield Subject(name, served)
        else:
            yield Subject(name, None if name == "bm25" else load_model(name, dtype, allow_pickle))


def _show_limit(found: PartResult) -> None:
    for task, facts in found.facts["tasks"].items():
        systems: dict[str, LimitScores] = {name: by_task[task] for name, by_task in found.systems.items()}
        rows = [[name, *map(estimate, of.metrics.values())] for name, of in systems.items()]
        chance = ["a random order", *(f"{value:.3f}" for value in facts["chance"].values())]
        title = f"{task}: {facts['queries']:,} queries, {facts['documents']:,} documents, 2 answer each query"
        print_table(title, ["LIMIT", *facts["chance"]], [*rows, chance])
        for name, of in systems.items():
            _say_cut(name, of.truncated, of.limit, task)


def _show_capacity(found: PartResult) -> None:
    points = found.facts["points"]
    print_table(
        "capacity",
        ["dimensions", *(str(point["dim"]) for point in points)],
        [["documents they hold", *(str(point["held"]) for point in points)]],
    )
    guess: CapacityGuess
    for name, guess in found.systems.items():
        fitted = "too few points for a fit"
        if guess.value is not None and guess.low is not None and guess.high is not None:
            fitted = f"the cubic fit says {_about(guess.value)}, "
            fitted += f"without one of its points {_about(guess.low)} to {_about(guess.high)}"
            if guess.high > 10 * max(guess.low, 0):
                fitted += ", too wide to tell"
        print(f"{name}, {guess.dim} dimensions: {fitted}; the published fit {_about(guess.published)}")


def _about(count: float) -> str:
    return f"{float(f'{count:.2g}'):,.0f}"


def _show_long(found: PartResult) -> None:
    depths = [f"at {depth:.0%}" for depth in found.facts["depths"]]
    of: LongScores
    for kind in ("passkey", "needle"):
        rows = []
        for name, of in found.systems.items():
            scores: list[LongScore] = getattr(of, kind)
            for start in range(0, len(scores), len(depths)):
                cells = scores[start : start + len(depths)]
                note = f", cut at {of.limit}" if sum(cell.truncated for cell in cells) else ""
                rows.append([f"{name}, {cells[0].length:,} {of.unit}{note}", *map(estimate, cells)])
        title = f"{kind}: questions whose document comes first, by the place of the answer in it"
        print_table(title, [f"chance {found.facts['chance']:.2f}", *depths], rows)
    for name, of in found.systems.items():
        truncated = sum(cell.truncated for cell in (*of.passkey, *of.needle))
        _say_cut(name, truncated, of.limit, "the long documents")
        if of.skipped:
            skipped = ", ".join(f"{length:,}" for length in of.skipped)
            say(f"note: {name} reads {of.limit:,} tokens; not asked: {skipped} (--lengths asks)")


def _show_invariance(found: PartResult) -> None:
    of: InvarianceScores
    for name, of in found.systems.items():
        print_table(
            f"{name}, {of.dtype}: alone or beside other texts",
            ["", "largest difference", "lowest cosine"],
            [[what, f"{c.max_difference:.1e}", f"{c.min_cosine:.6f}"] for what, c in of.company.items()],
        )
        verdict = "within" if of.steady else "BEYOND"
        print(f"{name}: {verdict} the {of.tolerance:g} that rounding explains in {of.dtype}")
        print_table(
            f"{name}: cosines between casings",
            ["", *next(iter(of.casing.values()))],
            [[what, *(f"{v:.3f}" for v in values.values())] for what, values in of.casing.items()],
        )


def _show_noise(found: PartResult) -> None:
    rows: dict[str, list[str]] = {}
    of: NoiseScores
    for of in found.systems.values():
        variants = {f"typos in {float(rate):.0%} of words": v for rate, v in of.typos.items()}
        variants |= {f"{float(kept):.0%} of each document": v for kept, v in of.kept.items()}
        rows.setdefault("clean", []).extend([estimate(of.clean), ""])
        for what, variant in variants.items():
            rows.setdefault(what, []).extend([estimate(variant), difference(variant.difference)])
    facts = found.facts
    print_table(
        f"noise: {facts['metric']} on {facts['task']}, {facts['queries']:,} queries",
        ["", *(head for name in found.systems for head in (name, "difference"))],
        [[what, *cells] for what, cells in rows.items()],
    )
    for name, of in found.systems.items():
        _say_cut(name, of.truncated, of.limit, facts["task"])


def _show_tables(found: PartResult) -> None:
    rows: dict[str, list[str]] = {}
    systems: dict[str, TableScores] = found.systems
    for of in systems.values():
        for what, score in of.properties.items():
            rows.setdefault(what, []).append(estimate(score))
        for what, score in of.mcv.items():
            rows.setdefault(f"{what}, MCV", []).append(estimate(score))
    title = f"tables: {found.facts['tables']} of them as text, {found.facts['orders']} orders of each"
    print_table(title, ["", *systems], [[what, *cells] for what, cells in rows.items()])
    for name, of in systems.items():
        say(f"note: {name} was asked about tables of {of.rows} rows, which it reads whole")
        _say_cut(name, of.truncated, of.limit, "tables")


def _say_cut(name: str, count: int, limit: int | None, what: str) -> None:
    if count:
        say(f"note: {name} cut {count:,} texts of {what} at {limit:,} tokens")


SHOW = {
    "limit": _show_limit,
    "capacity": _show_capacity,
    "long": _show_long,
    "invariance": _show_invariance,
    "noise": _show_noise,
    "tables": _show_tables,
}
