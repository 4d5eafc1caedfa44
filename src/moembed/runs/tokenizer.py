"""`moembed tokenizer`: learn a vocabulary on texts, and give it to a model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from moembed.console import progress_bar, say
from moembed.data.text import TextConfig, read_texts
from moembed.files import locked, replacing, require_replaceable
from moembed.folder.bases import base_name, locate_base
from moembed.folder.read import read_folder
from moembed.folder.write import write_folder
from moembed.report.card import write_card
from moembed.types import UserError
from moembed.weights.pieces import extend, learn, tokenizer_files
from moembed.weights.trim import trim
from moembed.weights.vocabulary import with_tokenizer

LONGEST = 512  # tokens per text that a tokenizer without a model is said to be for


@dataclass(frozen=True, slots=True)
class TokenizerPlan:
    """What to learn: a vocabulary of ``kind`` and ``vocab_size``, or ``extend_by`` more pieces for ``base``.

    ``trim_below`` learns nothing: ``base`` keeps the pieces that the texts use so often, or more.
    """

    kind: str = "unigram"
    vocab_size: int = 32000
    lowercase: bool = False
    base: str | None = None
    extend_by: int | None = None
    trim_below: int | None = None


class TextsFile(TextConfig):
    """Texts as the command names them: what a complaint advises is its option."""

    skip_rows_hint: ClassVar[str] = "leave such rows out with --skip-bad-rows"


def make_tokenizer(
    paths: Sequence[str],
    out: Path,
    plan: TokenizerPlan,
    column: str = "text",
    overwrite: bool = False,
    skip_bad_rows: bool = False,
) -> dict[str, Any]:
    """Learn a tokenizer on texts, or more pieces for that of a base; with a base, write a model folder.

    Returns the number of pieces, and with a base where their rows came from.

    Raises:
        UserError: anything wrong with the texts or the base, ``extend_by`` or ``trim_below`` without
            ``base``, both of them, a folder in the way.
    """
    if plan.trim_below is not None and (plan.base is None or plan.extend_by is not None):
        raise UserError(
            "--trim takes pieces from the tokenizer of a model: name the model with --base"
            if plan.base is None
            else "--trim takes pieces away and --extend adds some: run one, then the other on its folder"
        )
    if plan.extend_by is not None and plan.base is None:
        raise UserError("--extend adds pieces to the tokenizer of a model: name the model with --base")
    with locked(out):
        require_replaceable(out, overwrite)
        bad_rows: Literal["skip", "refuse"] = "skip" if skip_bad_rows else "refuse"
        files = [TextsFile(path=path, text=column, bad_rows=bad_rows) for path in paths]
        return _alone(files, out, plan) if plan.base is None else _for_base(files, out, plan)


def _alone(files: Sequence[TextConfig], out: Path, plan: TokenizerPlan) -> dict[str, Any]:
    backend = learn(plan.kind, lambda: _texts(files), plan.vocab_size, plan.lowercase)
    with replacing(out) as folder:
        for name, content in tokenizer_files(backend, LONGEST).items():
            (folder / name).write_bytes(content)
    return {"pieces": backend.get_vocab_size()}


def _for_base(texts: Sequence[TextConfig], out: Path, plan: TokenizerPlan) -> dict[str, Any]:
    assert plan.base is not None
    parts = read_folder(locate_base(plan.base))
    if plan.trim_below is not None:
        prompts = parts.tokenizer.prompts.values()
        backend = trim(parts.tokenizer.backend, lambda: _texts(texts), plan.trim_below, prompts)
        files = tokenizer_files(backend, parts.tokenizer.max_length, parts.files)
    elif plan.extend_by is None:
        backend = learn(plan.kind, lambda: _texts(texts), plan.vocab_size, plan.lowercase)
        side = parts.tokenizer.truncation_side
        files = tokenizer_files(backend, parts.tokenizer.max_length, truncation_side=side)
    else:
        backend = extend(parts.tokenizer.backend, lambda: _texts(texts), plan.extend_by)
        files = tokenizer_files(backend, parts.tokenizer.max_length, parts.files)
    parts, origins = with_tokenizer(parts, backend, files)
    write_folder(out, parts)
    write_card(out, str(out), base_name(plan.base))
    return {"pieces": backend.get_vocab_size(), **asdict(origins)}


def _texts(files: Sequence[TextConfig]) -> Iterator[str]:
    notes: dict[str, None] = {}
    with progress_bar("reading texts", None) as advance:
        for block in read_texts(files, notes.setdefault):
            yield from (text.text for text in block)
            advance(len(block))
    for note in notes:
        say(f"note: {note}")
