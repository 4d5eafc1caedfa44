"""Prompts: a text in front of a text, or a template with ``{}`` where the text stands.

``"query: "`` stands in front. ``'This sentence: "{}" means in one word:"'`` stands around: what is behind the
text is read after it, and is never cut.
"""

from __future__ import annotations

from collections.abc import Mapping

from moembed.types import UserError

PLACE = "{}"
# PromptEOL, Jiang et al., arXiv 2307.16645: the state of the last token is the vector. Later papers quote the
# wording with the opening quotation mark at its end, as here; code of others leaves that mark out at times.
PROMPT_EOL = 'This sentence: "{}" means in one word:"'


def split_prompt(prompt: str) -> tuple[str, str]:
    """What a prompt puts in front of a text and what behind it; one without ``{}`` stands in front.

    Raises:
        UserError: ``{}`` stands in it more than once.
    """
    front, _, behind = prompt.partition(PLACE)
    if PLACE in behind:
        raise UserError(f"the prompt {prompt!r} has {{}} more than once, and a text stands in one place")
    return front, behind


def fill(prompt: str, text: str) -> str:
    """A text with its prompt."""
    front, behind = split_prompt(prompt)
    return front + text + behind


def stands_behind(prompt: str) -> bool:
    """Whether a prompt puts anything behind the text."""
    return bool(split_prompt(prompt)[1])


def in_front_alone(prompt: str) -> str:
    """The prompt, for pooling that leaves the tokens in front of a text out.

    Raises:
        UserError: it has text behind the text, which would be pooled.
    """
    if stands_behind(prompt):
        raise UserError(
            f"pooling leaves prompts out (include_prompt false), and of {prompt!r} it could leave out what "
            "is in front of the text alone: give the model another pooling, or another prompt"
        )
    return prompt


def require_in_front(prompts: Mapping[str, str], place: str) -> None:
    """Refuse prompts with text behind the text, which programs elsewhere would put in front of it.

    Raises:
        UserError: there is one.
    """
    if around := [name for name, prompt in prompts.items() if stands_behind(prompt)]:
        raise UserError(
            f"{place} has prompts in front of texts alone, and the prompt {around[0]!r} of this model has "
            "text behind {}: give the model other prompts first"
        )
