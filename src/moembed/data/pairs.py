"""How a row becomes pairs: the options of a source say what its columns are."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

from pydantic import Field

from moembed.data.columns import (
    GRADES,
    NO_COLUMN,
    ColumnUse,
    as_list,
    is_number,
    like_negatives,
    missing_column,
    negative_column,
)
from moembed.data.files import File, is_pattern
from moembed.data.grades import NEGATIVE_LABELS, label_of, labels_of, score_of, scores_of
from moembed.data.layouts import HF
from moembed.data.provenance import Provenance
from moembed.data.readers import Row, text_problem


class PairRecord(NamedTuple):
    """A pair as a source keeps it."""

    query: str
    document: str
    negatives: Sequence[str] = ()
    language: str | None = None
    group: str | None = None
    score: float | None = None
    label: str | None = None
    negative_labels: Sequence[str] = ()
    scores: Sequence[float] = ()


class SourceConfig(Provenance):
    """A file, pattern, folder or data set of pairs: see `moembed.data.layouts.shards`.

    ``query`` and ``document`` name columns, and so do ``title``, which is put in front of the document,
    and ``prompt``, which is put in front of the query. ``negative`` is how the columns of hard negatives
    begin (see `moembed.data.columns.negative_column`): in each row a text, a list of texts or nothing.
    A row without ``document`` whose ``pos`` is a list is in BGE layout: one pair per text of ``pos``, with
    the texts of ``neg`` as negatives. ``language`` and ``group`` name columns of labels, kept where there
    are any. ``score`` names a column of numbers, ``label`` one of classes: then every row must have one, and
    with ``label`` the column ``negative_labels`` lists the classes of the row's hard negatives. ``scores``
    names a column of lists: a number for the document, or each text of ``pos``, then for each hard negative.

    ``weight`` is the relative number of batches to draw. ``limit`` takes the first good pairs only.
    ``bad_rows`` and ``bad_shards`` say whether a row without usable texts, or a shard that cannot be read to
    its end, stops the run or is skipped and counted (the rows before the break stay). ``name`` is the file's
    unless given; ``split`` and ``subset`` choose from layouts that have them.
    """

    # what a complaint or a note advises; commands that spell their options otherwise replace it
    skip_rows_hint: ClassVar[str] = "set bad_rows=skip to leave such rows out"
    columns_hint: ClassVar[str] = "name the columns with the options query and document of the source"
    negative_hint: ClassVar[str] = "the option negative says how columns of hard negatives begin"
    skip_shards_hint: ClassVar[str] = "bad_shards=skip goes on with the next shard"
    title_hint: ClassVar[str] = "the option title: {} puts it in front of the document"
    prompt_hint: ClassVar[str] = "the option prompt: {} puts it in front of the query"

    path: str = Field(min_length=1)
    name: str = ""
    query: str = "query"
    document: str = "document"
    title: str | None = None
    prompt: str | None = None
    negative: str = Field("negative", min_length=1)
    language: str | None = "language"
    group: str | None = "source"
    score: str | None = None
    label: str | None = None
    scores: str | None = None
    split: str | None = None
    subset: str | None = None
    weight: float = Field(1.0, gt=0, allow_inf_nan=False)
    limit: int | None = Field(None, ge=1)
    bad_rows: Literal["refuse", "skip"] = "refuse"
    bad_shards: Literal["refuse", "skip"] = "refuse"

    @property
    def named(self) -> set[str | None]:
        """The columns that options name."""
        named = {self.query, self.document, self.title, self.prompt, self.language, self.group}
        return named | {self.score, self.label, self.scores, NEGATIVE_LABELS if self.label else None}

    def is_negative(self, column: str) -> bool:
        return column not in self.named and negative_column(column, self.negative) is not None

    def choose(self, columns: Sequence[str]) -> list[str]:
        """Of the columns of a table, those to read; all if one is missing, for the complaint lists them."""
        if not {self.query, self.document} <= set(columns):
            return list(columns)
        return [column for column in columns if column in self.named or self.is_negative(column)]

    @property
    def called(self) -> str:
        """What the source is called: a pattern goes by its folder's name."""
        if self.name:
            return self.name
        parts = self.path.removeprefix(HF).rstrip("/").split("/")
        last = next((part for part in reversed(parts) if not is_pattern(part)), self.path)
        if last in (".", "..", ""):  # which are no names
            return Path(self.path).resolve().name
        return File(None, last).stem

    def advice(self, problem: str) -> str:
        """What to do about a bad row; where a column is missing, leaving out rows would leave none."""
        for option in ("score", "label", "scores"):
            if problem.startswith(f"{NO_COLUMN} {getattr(self, option)!r}"):
                return f"name it with the option {option} of the source"
        return self.columns_hint if problem.startswith(NO_COLUMN) else f"correct it, or {self.skip_rows_hint}"

    def not_found(self, columns: Collection[str]) -> list[str]:
        """A sentence on each option that names columns which no row has."""
        found = []
        for option in sorted({"language", "group"} & self.model_fields_set):
            column = getattr(self, option)
            if column not in (None, type(self).model_fields[option].default, *columns):
                found.append(f"no row has the column {column} that {option} names")
        asked = "negative" in self.model_fields_set and self.negative != "negative"
        if asked and "neg" not in columns and not any(map(self.is_negative, columns)):
            found.append(f"no column of hard negatives begins with {self.negative}, which negative names")
        return found

    def remarks(self, columns: Iterable[str]) -> dict[str, str]:
        """What can be done with columns that are not used, or what follows from not using them."""
        found = {}
        for column in columns:
            if column.lower() in GRADES:
                found[column] = f"every row counts as a positive pair, whatever its {column}"
            elif column == "title" and self.title is None:
                found[column] = self.title_hint.format(column)
            elif column == "prompt" and self.prompt is None:
                found[column] = self.prompt_hint.format(column)
            elif like_negatives(column):
                found[column] = self.negative_hint
        return found


class PairsFile(SourceConfig):
    """A source as commands with options of their own name it: what they advise are these options."""

    skip_rows_hint: ClassVar[str] = "leave such rows out with --skip-bad-rows"
    columns_hint: ClassVar[str] = "name the columns with --query-column and --document-column"
    negative_hint: ClassVar[str] = "hard negatives are read from columns called negative"
    skip_shards_hint: ClassVar[str] = "correct the file, or name the others"
    title_hint: ClassVar[str] = "--title-column {} puts it in front of the document"
    prompt_hint: ClassVar[str] = "--prompt-column {} puts it in front of the query"


class DedupFile(PairsFile):
    columns_hint: ClassVar[str] = "name the columns with --query and --document"


class SplitFile(DedupFile):
    columns_hint: ClassVar[str] = "name the columns with --query, --document and --group"


class CorpusFile(PairsFile):
    columns_hint: ClassVar[str] = "name the column with --corpus-column"


def pairs_of_row(row: Row, config: SourceConfig, use: ColumnUse, quotes: bool) -> list[PairRecord] | str:
    """The pairs of a row, one for each positive, or why it is bad."""
    positives = row_positives(row, config)
    if isinstance(positives, str):
        return positives
    positive, documents = positives
    columns = ["neg"] if positive == "pos" else [column for column in row if config.is_negative(column)]
    try:
        negatives = _negatives(row, config, columns)
        query_front = _front(row, config.prompt, use, quotes)
        document_front = _front(row, config.title, use, quotes)
    except ValueError as error:
        return str(error)
    query = row[config.query]
    for column, text in [(config.query, query), *((positive, d) for d in documents), *negatives]:
        if problem := text_problem(text):
            return f"column {column!r} {problem}"
        use.use(column, text, quotes)
    if not documents:
        return f"column {positive!r} is empty"
    try:
        score = None if config.score is None else score_of(row, config.score)
        label = None if config.label is None else label_of(row, config.label)
        negative_labels = [] if config.label is None else labels_of(row, len(negatives))
        scores: list[float] = []
        if config.scores is not None:
            scores = scores_of(row, config.scores, len(documents), len(negatives))
    except ValueError as error:
        return str(error)
    use.used.update(column for column in (config.score, config.label, config.scores) if column)
    use.used.update([NEGATIVE_LABELS] if config.label else [])
    # columns that are read and happen to be empty in this row
    use.used.update((config.language or "", config.group or ""))
    use.used.update(c for c in columns if c == "neg" or negative_column(c, config.negative) == "texts")
    wrong = [text for _, text in negatives]
    language, group = _label(row, config.language), _label(row, config.group, numbers=True)
    return [
        PairRecord(
            _joined(query_front, query), _joined(document_front, document), wrong, language, group,
            score, label, negative_labels, scores[i : i + 1] + scores[len(documents) :],
        )
        for i, document in enumerate(documents)
    ]  # fmt: skip


def _front(row: Row, column: str | None, use: ColumnUse, quotes: bool) -> str:
    """The text of ``column`` that is put in front of another; "" where there is none.

    Raises:
        ValueError: the row does not have the column, or something else than a text in it.
    """
    if column is None:
        return ""
    if column not in row:
        raise ValueError(missing_column(column, row))
    value = row[column]
    if value is not None and not isinstance(value, str):
        raise ValueError(f"column {column!r} {text_problem(value)}")
    use.use(column, value, quotes)
    return value or ""


def row_positives(row: Row, config: SourceConfig) -> tuple[str, list[Any]] | str:
    """The column of the positives of a row and its texts, not checked yet, or why there is none."""
    column, values = config.document, [row.get(config.document)]
    if config.document not in row and "pos" in row:
        try:
            listed = as_list(row["pos"])
        except ValueError as error:
            return f"column 'pos' {error}"
        if listed is not None:
            column, values = "pos", listed
    for needed in (config.query, column):
        if needed not in row:
            return missing_column(needed, row)
    return column, values


def _negatives(row: Row, config: SourceConfig, columns: Iterable[str]) -> list[tuple[str, Any]]:
    found = []
    for column in columns:
        value = row.get(column)
        if column != "neg" and negative_column(column, config.negative) != "texts" and is_number(value):
            continue
        try:
            listed = as_list(value)
        except ValueError as error:
            raise ValueError(f"column {column!r} {error}") from None
        values = [value] if listed is None else listed
        found += [(column, text) for text in values if text is not None]
    return found


def document_of_row(row: Row, config: SourceConfig, use: ColumnUse, quotes: bool) -> list[PairRecord] | str:
    """The document of a row, as query and document of one pair, or why it is bad."""
    if config.document not in row:
        return missing_column(config.document, row)
    text, title = row[config.document], row.get(config.title or "title")
    if problem := text_problem(text):
        return f"column {config.document!r} {problem}"
    if title is not None and not isinstance(title, str):
        return f"column {config.title or 'title'!r} {text_problem(title)}"
    use.use(config.document, text, quotes)
    use.used |= {config.title or "title", "_id", "id", config.language or "", config.group or ""}
    whole = _joined(title or "", text)
    return [PairRecord(whole, whole)]


def _joined(front: str, text: str) -> str:
    """``front``, a blank if it does not end in white space, and ``text``."""
    if not front.strip():
        return text
    return f"{front}{text}" if front[-1:].isspace() else f"{front} {text}"


def _label(row: Row, column: str | None, numbers: bool = False) -> str | None:
    value = row.get(column) if column else None
    if numbers and (type(value) is int or (isinstance(value, float) and value.is_integer())):
        return str(int(value))
    return None if text_problem(value) else value
