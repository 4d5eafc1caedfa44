"""`moembed align`: a gap closed in finished vectors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from moembed.compare.comparison import compare
from moembed.compare.estimates import Difference, Estimate
from moembed.compare.results import SCORE, Comparison
from moembed.compare.scores import Scores
from moembed.console import say
from moembed.data.sources import iter_rows
from moembed.embedder import Embedder
from moembed.encoding import Bar, TextEncoder, no_bar
from moembed.evaluation.files import Task, load_any
from moembed.evaluation.systems import CachedVectors
from moembed.evaluation.tagged import tagged
from moembed.evaluation.tasks import evaluate
from moembed.files import require_replaceable
from moembed.folder.bases import base_name, read_base
from moembed.inference.languages import detect, known_languages
from moembed.report.card import write_card
from moembed.runs.opened import open_model, require_apart, stored_name
from moembed.runs.system import num_texts
from moembed.search.alignment import GroupMeans, group_means, projection, require_share
from moembed.search.composed import ComposedEncoder, LanguageShift, write_composed
from moembed.search.embed import column_texts
from moembed.types import UserError
from moembed.weights.projection import add_behind

Method = Literal["project", "shift"]
_BLOCK = 4096  # rows that are Python objects at one time
_FEW = 50  # texts of a group whose mean says more of what they are about


@dataclass(frozen=True, slots=True)
class AlignPlan:
    """How a gap is found and closed; `moembed.search.alignment` says what each method does.

    Attributes:
        texts: JSONL, Parquet or CSV of training texts, with the column ``column``.
        by: the column that names the group of each text.
        role: what the texts are embedded for.
        strengths: shares of the gap; of several the one that scores best on ``tasks``, where 0, nothing
            moved, is scored too.
        tasks: for choosing the strength: not those that the result is to be judged by.
        sample: texts of a group, the first ones.
        tag: of all texts, for models that choose experts by it.
    """

    texts: Path
    by: str = "language"
    column: str = "text"
    role: str = "document"
    method: Method = "project"
    strengths: tuple[float, ...] = (1.0,)
    tasks: tuple[Path, ...] = ()
    sample: int = 2000
    tag: str | None = None


@dataclass(frozen=True, slots=True)
class StrengthScore:
    """With so much of the gap closed: the distance of the means that is left on the training texts, and on
    the tasks the mean score, its difference to strength 0, and the score of each."""

    strength: float
    gap: float
    score: Estimate | None = None
    difference: Difference | None = None
    tasks: Mapping[str, Estimate] | None = None


@dataclass(frozen=True, slots=True)
class Aligned:
    """What was written, with which strength, found on how many texts of every group.

    ``truncated``: texts that were longer than the model reads.
    """

    out: str
    method: Method
    strength: float
    groups: dict[str, int]
    parameters: int
    sweep: list[StrengthScore]
    truncated: int


def align(
    model: str, out: str | Path, plan: AlignPlan, overwrite: bool = False, bar: Bar = no_bar
) -> Aligned:
    """Take what sets groups of texts apart out of the vectors of a model, and write the result to ``out``.

    ``project`` writes a whole model with one more linear layer, ``shift`` a folder that names the model and
    finds the language of every text. Static word vectors get such a folder of either method.

    Raises:
        UserError: no groups, groups that are no languages for ``shift``, several strengths and nothing to
            choose by, a model that cannot be read.
    """
    for strength in plan.strengths:
        require_share(strength)
    if len(plan.strengths) != 1 and not plan.tasks:
        raise UserError("several strengths need tasks to choose by: name some with --tasks, or one strength")
    require_replaceable(Path(out), overwrite)
    tasks = [load_any(path) for path in plan.tasks]
    if len({task.name for task in tasks}) < len(tasks):
        raise UserError("two tasks have the same name, which scores go by: rename one of them")
    texts, groups = grouped_texts(plan)
    if plan.method == "shift" and (foreign := sorted(set(groups) - known_languages())):
        raise UserError(
            f"{plan.by} names {foreign[0]!r}, which is no language that can be found in a text (a code such "
            "as de): take the method project, which has to know nothing of a text"
        )
    encoder = open_model(model, plan.role, plan.tag)
    whole = plan.method == "project" and isinstance(encoder, Embedder)
    if not whole:
        require_apart([model], out)
    elif isinstance(encoder, Embedder) and encoder.dim < encoder.full_dim:
        # a layer stands behind the whole vector, before any cut
        say(f"note: {model} cuts its vectors to {encoder.dim} coordinates; all {encoder.full_dim} are kept")
        encoder.dim = encoder.full_dim
    with bar("texts", len(texts)) as advance:
        found = encoder.vectors(texts, role=plan.role, progress=advance)
    vector_NM = found.array
    means = group_means(vector_NM, groups)
    languages = lru_cache(maxsize=None)(_language)  # every strength asks for those of the same texts

    strengths = sorted({0.0, *plan.strengths}) if tasks else list(plan.strengths)
    made = {strength: _aligned(encoder, means, plan.method, strength, languages) for strength in strengths}
    scores = _sweep(encoder, tasks, made, bar)
    compared = _compared(scores) if tasks else None
    sweep = [_entry(strength, compared, made[strength], vector_NM, texts, groups) for strength in strengths]
    asked = [entry for entry in sweep if entry.strength in plan.strengths]
    best = max(asked, key=_score)
    result = made[best.strength]

    if whole:
        assert result.linear
        weight_MM, bias_M = map(torch.from_numpy, (result.linear.weight_DM, result.linear.bias_D))
        Embedder(add_behind(read_base(model), weight_MM, bias_M)).save_pretrained(out)
        write_card(Path(out), str(out), base_name(model))
    else:
        write_composed(Path(out), [stored_name(model)], result)
    counts = {name: groups.count(name) for name in means.names}
    return Aligned(
        str(out), plan.method, best.strength, counts, result.num_parameters(), sweep, found.truncated
    )


def grouped_texts(plan: AlignPlan) -> tuple[list[str], list[str]]:
    """The first texts of every group, each with the name of its group.

    Raises:
        UserError: a row without the text or the group, or a group of a single text.
    """
    texts: list[str] = []
    groups: list[str] = []
    counts: dict[str, int] = {}
    done = 0
    for rows in iter_rows(plan.texts, _BLOCK):
        found = column_texts(rows, plan.column, plan.texts, done)
        names = column_texts(rows, plan.by, plan.texts, done)
        for text, name in zip(found, names, strict=True):
            if counts.get(name, 0) < plan.sample:
                counts[name] = counts.get(name, 0) + 1
                texts.append(text)
                groups.append(name)
        done += len(rows)
    if alone := [name for name, count in counts.items() if count < 2]:
        raise UserError(
            f"{plan.texts} has a single text of {plan.by} {alone[0]!r}, whose mean would be that text: add "
            "texts, or leave it out"
        )
    return texts, groups


def few_texts(aligned: Aligned) -> list[str]:
    """The groups whose mean rests on few texts."""
    return [name for name, count in aligned.groups.items() if count < _FEW]


def unmoved_is_better(aligned: Aligned) -> str | None:
    """The sentence on tasks that are solved best with nothing moved, where that was not asked for."""
    of = {entry.strength: _score(entry) for entry in aligned.sweep}
    if of.get(0.0, 0.0) <= of[aligned.strength]:
        return None
    return (
        f"nothing moved (strength 0) scores {of[0.0]:.3f} on the tasks, above the {of[aligned.strength]:.3f} "
        f"of strength {aligned.strength:g}: the model as it was serves them better"
    )


def _aligned(
    encoder: TextEncoder,
    means: GroupMeans,
    method: Method,
    strength: float,
    language_of: Callable[[str], str | None],
) -> ComposedEncoder:
    if method == "shift":
        moved = LanguageShift(means, strength, lambda texts: [language_of(text) for text in texts])
        return ComposedEncoder([encoder], moved=moved)
    return ComposedEncoder([encoder], linear=projection(means, strength))


def _language(text: str) -> str | None:
    return detect([text])[0]


def _sweep(
    encoder: TextEncoder, tasks: Sequence[Task], made: Mapping[float, ComposedEncoder], bar: Bar
) -> dict[float, dict[str, Scores]]:
    """strength -> task -> scores; every text is embedded once."""
    scores: dict[float, dict[str, Scores]] = {strength: {} for strength in made}
    for task in tasks:
        known = CachedVectors(encoder)
        language = tagged(encoder, task) if isinstance(encoder, Embedder) else nullcontext()
        with bar(task.name, num_texts(task)) as advance, language:
            evaluate(task, known, progress=advance)
            for strength, one in made.items():
                moved = ComposedEncoder([known], moved=one.moved, linear=one.linear)
                scores[strength][task.name] = evaluate(task, moved)
    return scores


def _compared(scores: Mapping[float, dict[str, Scores]]) -> Comparison:
    """All strengths, each against 0."""
    return compare({f"{strength:g}": [by_task] for strength, by_task in scores.items()}, "0")


def _score(entry: StrengthScore) -> float:
    return entry.score.value if entry.score else 0.0


def _entry(
    strength: float,
    compared: Comparison | None,
    made: ComposedEncoder,
    vector_NM: np.ndarray,
    texts: list[str],
    groups: Sequence[str],
) -> StrengthScore:
    gap = group_means(made.transformed(vector_NM, texts), groups).gap
    if compared is None:
        return StrengthScore(strength, gap)
    own = f"{strength:g}"
    return StrengthScore(
        strength,
        gap,
        compared.overall.metrics[own][SCORE],
        compared.overall.differences[own][SCORE] if strength else None,
        {name: cells.metrics[own][cells.main] for name, cells in compared.tasks.items()},
    )
