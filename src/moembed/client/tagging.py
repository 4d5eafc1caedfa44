"""Which tag a client sends with its texts, as `moembed.inference.tagging` finds it in the same process."""

from __future__ import annotations

import warnings

from moembed.client.info import ServedModelInfo
from moembed.encoding import Tag, tag_of_role
from moembed.types import UserError


def chosen_tag(
    info: ServedModelInfo, role: str | None, prompt: str, tag: Tag | None, own: str | None
) -> Tag | None:
    """The first of these that there is: ``tag``; the role, or that of the prompt; ``own``. None: send none.

    Raises:
        UserError: a tag for a model without tags, or one that it does not know.
    """
    if not info.tags:
        if tag is not None or own is not None:
            raise UserError("this model does not choose experts by tags: leave tag out")
        return None
    if tag is None:
        if prompt and role is None:
            role = next((name for name, text in info.prompts.items() if text == prompt), None)
        tag = tag_of_role(role, info.tags) or own
    given = [tag] if tag is None or isinstance(tag, str) else list(tag)
    if wrong := [one for one in given if one is not None and one not in info.tags]:
        known = ", ".join(info.tags)
        raise UserError(f"this model has no experts for the tag {wrong[0]!r} (known: {known})")
    return tag if tag is None or isinstance(tag, str) else given


def tags_of(tag: Tag | None, texts: int, default: str | None) -> list[str | None] | None:
    """The tag of each text; None where none is sent, which a server with a default takes.

    Warns:
        UserWarning: texts get the default.

    Raises:
        UserError: tags of other than as many texts.
    """
    if tag is not None and not isinstance(tag, str) and len(tag) != texts:
        raise UserError(f"tag gives {len(tag)} tags for {texts} texts")
    listed = [tag] * texts if tag is None or isinstance(tag, str) else list(tag)
    if default is not None and None in listed:
        warnings.warn(
            f"texts without a tag go to the experts of {default!r}, the default of this server: pass tag "
            "where they are others",
            stacklevel=3,
        )
    return None if tag is None else listed
