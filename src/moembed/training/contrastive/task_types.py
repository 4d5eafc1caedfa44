"""What a source must have for its task, and how much of the mix is retrieval."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from moembed.data.sources import Source
from moembed.training.contrastive.settings import ContrastiveConfig, SourceOptions
from moembed.types import UserError


def require_ranking(config: ContrastiveConfig, tasks: Collection[str]) -> None:
    """
    Args:
        tasks: the task types of all sources.

    Raises:
        UserError: a guide or teachers, and no source whose candidates they could judge.
    """
    if "retrieval" in tasks:
        return
    for key in ("distill", "guide"):
        if getattr(config, key) is not None:
            raise UserError(
                f"{key} judges the candidates of queries, and no source is of task_type retrieval: pairs are "
                f"learned by their scores and labels alone; leave {key} out, or add a source of retrieval"
            )


def task_notes(source: Source, options: SourceOptions, config: ContrastiveConfig) -> list[str]:
    """What is said before training of a source: of its task, and of scores of its candidates.

    Raises:
        UserError: pairs without the score or the label that the loss of the task needs, or all with the same.
    """
    task = options.task_type
    if task == "retrieval":
        return _scores_of_candidates(source, config)
    about = f"source {source.name}: task_type {task}"
    distill = "; distill has no say there" if config.distill else ""
    if task == "sts":
        _require(about, "score", source.count_scores(), len(source))
        return [
            f"note: {source.name}: its pairs are compared by their scores (CoSENT): negatives, masks, "
            f"weights and a guide are of no use to them{distill}"
        ]
    counts = source.count("label")
    missing = counts.pop(None, 0)
    _require(about, "label", (missing, len(counts)), len(source))
    guide = "; the guide has no say there" if config.guide else ""
    labels = f"its {len(counts):,} labels are no negatives"
    return [f"note: {source.name}: texts of one of {labels}{guide}{distill}"]


def _scores_of_candidates(source: Source, config: ContrastiveConfig) -> list[str]:
    """Whether the pairs have the scores that are to be learned, or some that are not.

    Raises:
        UserError: a pair without scores, where no teacher gives them; no hard negatives to be ranked.
    """
    missing, rows, distill = source.count_unscored(), len(source), config.distill
    if distill is None or distill.teachers is not None:
        why = "distill has teachers" if distill else "distill is not set"
        notes = [f"note: {source.name}: its scores are not used, for {why}"] if missing < rows else []
        other = "set distill.candidates=batch"
        return notes + (_ranked(source, other) if distill and distill.candidates == "own" else [])
    if missing:
        raise UserError(
            f"distill has no teachers, so it learns the scores of the data, and {missing:,} of {rows:,} "
            f"pairs of source {source.name} have none: name their column with the option scores of the "
            "source, or name distill.teachers"
        )
    return _ranked(source, "name distill.teachers")


def _ranked(source: Source, other: str) -> list[str]:
    """What is said of pairs whose own candidates are ranked and are one alone.

    Raises:
        UserError: all are.
    """
    ranked, rows = source.count_negatives()[0], len(source)
    if not ranked:
        raise UserError(
            f"distill learns how scores rank a query's document and hard negatives, and source {source.name} "
            f"has no hard negatives: make some with `moembed mine`, or {other}"
        )
    if ranked == rows:
        return []
    return [
        f"note: {source.name}: {rows - ranked:,} of {rows:,} pairs have no hard negative, so there is "
        "nothing to rank in them"
    ]


def _require(about: str, column: str, found: tuple[int, int], rows: int) -> None:
    missing, distinct = found
    if missing:
        raise UserError(
            f"{about} needs a {column} of every pair, and {missing:,} of {rows:,} have none: name their "
            f"column with the option {column} of the source"
        )
    if distinct < 2:
        raise UserError(f"{about} compares pairs of different {column}s, and all pairs have the same")


def fixed_share(weights: Sequence[float], tasks: Sequence[str], share: float | None) -> list[float]:
    """The weights of sources, those of retrieval scaled to be ``share`` of them all; None: as they are.

    Raises:
        UserError: there is nothing but retrieval, or no retrieval.
    """
    if share is None:
        return list(weights)
    retrieval = sum(w for w, task in zip(weights, tasks, strict=True) if task == "retrieval")
    others = sum(weights) - retrieval
    if not retrieval or not any(task != "retrieval" for task in tasks):
        which = "all sources are" if retrieval else "no source is"
        raise UserError(
            f"retrieval_share is {share}, and {which} of task_type retrieval, so there is nothing to share: "
            "leave it out"
        )
    return [
        w * (share / retrieval if task == "retrieval" else (1 - share) / others)
        for w, task in zip(weights, tasks, strict=True)
    ]
