"""Where the pairs of a training recipe lie, in all the forms it may say so."""

from __future__ import annotations

from itertools import islice
from typing import Any

from pydantic import model_validator

from moembed.data.docstrings import collect
from moembed.data.sources import Source, SourceConfig
from moembed.training.contrastive.settings import SourceOptions
from moembed.types import Pair, UserError


class TrainSource(SourceConfig, SourceOptions):
    """Where pairs lie, and how they are trained on.

    ``score`` of ``task_type: sts`` and ``label`` of classification and clustering are columns of these names
    unless others are named.
    """

    @model_validator(mode="before")
    @classmethod
    def _columns_of_the_task(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        task = values.get("task_type")
        column = {"sts": "score", "classification": "label", "clustering": "label"}.get(str(task))
        if column and values.get(column) is None:
            return {**values, column: column}
        return values

    @model_validator(mode="after")
    def _grades_are_used(self) -> TrainSource:
        if self.score and self.task_type != "sts":
            raise ValueError("score names the scores of task_type sts: give task_type too, or leave it out")
        if self.scores and self.task_type != "retrieval":
            raise ValueError(
                f"scores rank a document and hard negatives, and task_type is {self.task_type}: leave one out"
            )
        if self.label and self.task_type not in ("classification", "clustering"):
            raise ValueError(
                "label names the classes of task_type classification or clustering: give that too"
            )
        return self


_OF_COLUMNS = (
    *("query", "document", "title", "prompt", "negative", "language", "group", "score", "label", "scores"),
    *("split", "subset"),
)


def docstring_source(source: SourceConfig) -> Source:
    """The built-in pairs of the installed packages, the demo's training side.

    Raises:
        UserError: an option on columns or splits, which they do not have.
    """
    defaults = {option: type(source).model_fields[option].default for option in _OF_COLUMNS}
    if asked := [option for option, default in defaults.items() if getattr(source, option) != default]:
        raise UserError(
            f"docstrings has neither columns nor splits, so {asked[0]} means nothing: leave it out"
        )
    pairs = (Pair(pair.query, pair.document) for pair in collect().train)
    return Source.from_pairs(source.called, islice(pairs, source.limit))


def each_source(source: Any) -> list[Any]:
    """The sources that an entry with ``each`` stands for, or the entry itself."""
    if not isinstance(source, dict) or not isinstance(words := source.get("each"), list):
        return [source]
    rest = {key: value for key, value in source.items() if key != "each"}
    return [
        {k: v.replace("{}", str(word)) if isinstance(v, str) else v for k, v in rest.items()}
        for word in words
    ]
