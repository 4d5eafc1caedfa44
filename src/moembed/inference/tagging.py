"""Which tags texts have: said by the caller, or their role, or found in the texts, or the model's default."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Sequence

from moembed.encoding import Tag, tag_of_role
from moembed.inference.languages import detect_tags
from moembed.inference.sentences import Sentences
from moembed.model.spec import EncoderSpec
from moembed.model.tags import Tags, TagSource, missing_in
from moembed.types import UserError

DETECT = "detect"  # in the place of a tag: the language of each text


class TaggedSentences(Sentences):
    """``Sentences`` of a model that may choose experts by a tag of the text.

    The tag of a text is the first of these that there is: the one its caller passes; its role, where the tags
    of the model are roles; what ``tag`` says; the ``default_tag`` that is stored in the model.

    In the place of a tag, "detect" finds the language of each text, see `moembed.inference.languages`; a
    model that has a tag of this name takes it for that.

    Attributes:
        tag: that of all texts which come without one, or a function that finds the tags of a list of texts.
    """

    tag: TagSource = None

    @property
    @abstractmethod
    def spec(self) -> EncoderSpec:
        """Of the encoder."""

    @property
    def tags(self) -> Tags | None:
        """The tags that the model knows; None: no router of it looks at tags."""
        return Tags.of(self.spec)

    def role_tag(self, role: str) -> str | None:
        """The tag of texts of a role; None, where the tags of the model are no roles, or others."""
        tags = self.tags
        return role if tags and tags.by_role and role in tags.names else None

    def tag_numbers(
        self, texts: list[str], *, role: str | None = None, prompt: str | None = None, tag: Tag | None = None
    ) -> list[int] | None:
        """The number of every text's tag, which ``embed`` must know; None where no router looks at tags.

        Warns:
            UserWarning: texts get the ``default_tag``.

        Raises:
            UserError: a tag for a model without tags; one that it does not know; a text without one where
                there is no default; tags of other than as many texts.
        """
        if (tags := self.tags) is None:
            return super().tag_numbers(texts, tag=tag)
        said = self._said(tags, role, prompt, tag)
        if said == DETECT and DETECT not in tags.names:
            found = detect_tags(texts, tags)
        elif callable(said):
            found = _one_each(said(texts), len(texts), "the function that finds tags")
        elif said is None or isinstance(said, str):
            found = [said] * len(texts)
        else:
            found = _one_each(said, len(texts), "tag")
        numbers = tags.numbers(found, missing_in(self.spec))
        if None in found:
            warnings.warn(
                f"texts without a tag go to the experts of {tags.default!r}, the default_tag of this model: "
                "pass tag where they are others",
                stacklevel=4,
            )
        return numbers

    def fixed_tags(self, texts: int) -> list[int] | None:
        """The tags of texts of which only token rows are known: what ``tag`` says of any; else None."""
        if (tags := self.tags) is None or not isinstance(self.tag, str):
            return None
        if self.finds_tags:
            return None
        return tags.numbers([self.tag] * texts, missing_in(self.spec))

    @property
    def finds_tags(self) -> bool:
        """Whether texts that come without a tag are looked at, which token ids cannot be."""
        tags = self.tags
        return callable(self.tag) or (self.tag == DETECT and tags is not None and DETECT not in tags.names)

    def tag_facts(
        self, role: str | None = None, prompt: str | None = None, tag: Tag | None = None
    ) -> list[str]:
        """What of the tags the space of vectors depends on; nothing where no router looks at them."""
        if (tags := self.tags) is None:
            return []
        said = self._said(tags, role, prompt, tag)
        if said is None:
            said = tags.default
        if said is None:
            return ["no tag"]
        return [f"tag {said}"] if isinstance(said, str) else ["a tag for each text"]

    def _said(self, tags: Tags, role: str | None, prompt: str | None, tag: Tag | None) -> Tag | TagSource:
        if tag is not None:
            return tag
        if prompt and role is None:  # the caller gives a prompt of the model by its text
            role = next((name for name, text in self.prompts.items() if text == prompt), None)
        found = tag_of_role(role, tags.names)
        return self.tag if found is None else found


def _one_each(found: Sequence[str | None], count: int, what: str) -> list[str | None]:
    listed = list(found)
    if len(listed) != count:
        raise UserError(f"{what} gives {len(listed)} tags for {count} texts")
    if wrong := [value for value in listed if not (value is None or isinstance(value, str))]:
        raise UserError(f"{what} gives {wrong[0]!r} for a text: a tag is a string")
    return listed
