"""Which tags the texts of a source have, for models that choose experts by a tag of the text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from moembed.data.sources import Source
from moembed.model.spec import EncoderSpec
from moembed.model.tags import Tags
from moembed.training.contrastive.settings import SourceOptions
from moembed.types import UserError

PairTags = tuple[Sequence[int], Sequence[int]]  # of all queries, and of their documents and negatives

_DEFAULT = "or set upcycle.router.default_tag"


@dataclass(frozen=True, slots=True)
class SourceTags:
    """Where the tags of a source come from: one for its queries and one for its documents, or a label.

    Attributes:
        notes: what is said of them before training.
    """

    tags: Tags
    query: str | None = None
    document: str | None = None
    label: Literal["language", "group"] | None = None
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, spec: EncoderSpec, source: Source, options: SourceOptions) -> SourceTags | None:
        """None where no router of the model looks at tags.

        Raises:
            UserError: tags for a model without; none, or unknown ones, where there is no default.
        """
        asked = [key for key in ("tag", "document_tag", "tag_by") if getattr(options, key) is not None]
        tags = Tags.of(spec)
        if asked and tags is None:
            raise UserError(
                f"source {source.name} says {asked[0]}, and no router of this model looks at tags: set "
                "upcycle.router.kind to tag, or leave it out"
            )
        if asked and tags and tags.by_role:
            raise UserError(
                f"source {source.name} says {asked[0]}, but the tags of this model are roles, which every "
                "text has by itself: leave it out"
            )
        if tags is None:
            return None
        counts: dict[str | None, int]
        if options.tag_by:
            counts = source.count(options.tag_by)
            return cls(tags, label=options.tag_by, notes=_notes(tags, source, counts, options.tag_by))
        query = "query" if tags.by_role else options.tag
        document = "document" if tags.by_role else options.document_tag or options.tag
        counts = {query: len(source), document: len(source)}
        return cls(tags, query, document, notes=_notes(tags, source, counts, None))

    def numbers(self, source: Source, rows: Sequence[int]) -> PairTags:
        """The numbers of the tags of pairs: of their queries, and of their documents and negatives."""
        if self.label:
            found = self._known(source.labels(self.label, rows))
            return found, found
        return self._known([self.query] * len(rows)), self._known([self.document] * len(rows))

    def _known(self, tags: Sequence[str | None]) -> list[int]:
        """Tags that the model does not know count as its default; ``of`` has said so, or refused."""
        known = [tag if tag in self.tags.names else None for tag in tags]
        return self.tags.numbers(known, "a tag is missing")


def _notes(
    tags: Tags, source: Source, counts: Mapping[str | None, int], label: str | None
) -> tuple[str, ...]:
    """What to say of tags that the model does not know.

    Raises:
        UserError: there are such, and the model has no default.
    """
    wrong = [tag for tag in counts if tag not in tags.names]
    if not wrong:
        return ()
    pairs = min(sum(counts[tag] for tag in wrong), len(source))
    if tags.default is not None:
        named = ", ".join("none" if tag is None else repr(tag) for tag in wrong)
        told = f"the experts of {tags.default!r}, the default_tag; their tag is {named}"
        return (f"{pairs:,} pairs train {told}",)
    unknown = next((tag for tag in wrong if tag is not None), None)
    if unknown is not None:
        raise UserError(f"source {source.name}: {tags.unknown(unknown)}; add it to the tags, {_DEFAULT}")
    if label:
        raise UserError(
            f"source {source.name}: {pairs:,} pairs have no {label}, which tag_by says is their tag; give "
            f"it to them, {_DEFAULT}"
        )
    raise UserError(
        f"source {source.name} does not say which tag its texts have (known: {', '.join(tags.names)}): set "
        f"tag, or tag_by: language, {_DEFAULT}"
    )
