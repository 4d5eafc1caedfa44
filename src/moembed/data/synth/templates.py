"""What a text generator is asked: one template for each kind of text.

Source: Yu et al., *QZhou-Embedding Technical Report*, arXiv 2508.21632, whose abstract names paraphrasing,
augmentation and the generation of hard negatives by a language model. The words of these templates are ours.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from string import Template as Text
from typing import Literal, cast, get_args

from pydantic import Field, model_validator

from moembed.config import Strict, load
from moembed.types import UserError

Kind = Literal["query", "paraphrase", "hard_negative"]
KINDS: tuple[Kind, ...] = get_args(Kind)

_NAMES = {"count", "document", "query"}
_SYSTEM = (
    "You write training texts for a search engine. Answer with one JSON array of strings and nothing else: "
    "no numbering, no explanation."
)


class Template(Strict):
    """One request: ``$document``, ``$query`` and ``$count`` stand for the texts and the number asked for.

    ``longest``: characters of a text that is kept; null: twice those of the document, and 200.
    """

    prompt: str = Field(min_length=1)
    system: str = _SYSTEM
    longest: int | None = Field(default=None, ge=1)

    @property
    def hash(self) -> str:
        """12 hex digits: equal words, equal hashes."""
        words = json.dumps([self.system, self.prompt], ensure_ascii=False)
        return hashlib.sha256(words.encode("utf-8", "surrogatepass")).hexdigest()[:12]

    def fill(self, document: str, query: str, count: int) -> str:
        """The prompt with its texts."""
        return Text(self.prompt).substitute(document=document, query=query, count=count)


class Templates(Strict):
    """A template for each kind; a file may give some of them, the others are built in."""

    query: Template = Template(
        prompt=(
            "Write $count different questions or search queries that people would type who look for what the "
            'document below says, and that it answers. Each stands alone, without words such as "this '
            'document", is in the language of the document, and uses other words than it where it can.\n\n'
            "Document:\n$document"
        ),
        longest=400,
    )
    paraphrase: Template = Template(
        prompt=(
            "Say what the text below says in $count other ways: the same facts in the same language, with "
            "other words and another order of thoughts.\n\nText:\n$document"
        )
    )
    hard_negative: Template = Template(
        prompt=(
            "A query is answered by the document below. Write $count other documents about the same subject, "
            "of about the same length and in the same language, that share words with the query and do not "
            "answer it.\n\nQuery: $query\n\nDocument:\n$document"
        )
    )

    @model_validator(mode="after")
    def _names_that_are_known(self) -> Templates:
        needed = {"query": {"document"}, "paraphrase": {"document"}, "hard_negative": {"query"}}
        for kind, template in self.by_kind().items():
            names = _names(template.prompt)
            if names is None:
                raise ValueError(f"{kind}: a $ stands alone in the prompt; write $$ for the sign itself")
            if wrong := sorted(names - _NAMES):
                raise ValueError(f"{kind}: ${wrong[0]} is unknown; there are $document, $query and $count")
            if missing := sorted(needed[kind] - names):
                raise ValueError(f"{kind}: the prompt does not say ${missing[0]}")
            if kind != "hard_negative" and "query" in names:
                raise ValueError(f"{kind}: there is no $query yet; only hard_negative has one")
        return self

    def by_kind(self) -> Mapping[Kind, Template]:
        return {kind: cast(Template, getattr(self, kind)) for kind in KINDS}


def _names(prompt: str) -> set[str] | None:
    """The names behind a ``$``; None: a ``$`` has none."""
    found = list(Text.pattern.finditer(prompt))
    if any(match["invalid"] is not None for match in found):
        return None
    return {name for match in found if (name := match["named"] or match["braced"])}


def load_templates(path: str | Path | None) -> Templates:
    """Those of a YAML file over the built-in ones.

    Raises:
        UserError: no such file, unknown keys, a prompt without its text or with an unknown ``$name``.
    """
    found = load(Templates, path)
    if path is not None and not found.model_fields_set:
        raise UserError(f"{path} holds no template: give one for {', '.join(KINDS)}")
    return found
