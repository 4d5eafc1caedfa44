"""Texts -> token rows -> a packed Batch.

``Tokenizer.rows(["What is MoE?"], prompt_name="query")`` puts the prompt of that name in front, adds the
special tokens, cuts at ``max_length`` (specials included) and says how many texts were cut. ``pack`` lays
rows end to end, shortest first, so that texts of equal length stand side by side and nothing is ever computed
on padding.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from tokenizers import Tokenizer as Backend

from moembed.packing import pack
from moembed.types import Batch, UserError


class Tokenizer:
    """A ``tokenizers`` backend together with the prompts and the length limit the model was made with.

    Args:
        backend: its own truncation and padding settings are switched off.
        max_length: tokens per text, special tokens included.
        prompts: prefix by name, for instance ``{"query": "search_query: "}``.
        default_prompt: name of the prompt used for a role that has none of its own, or None.
    """

    def __init__(
        self,
        backend: Backend,
        max_length: int,
        prompts: dict[str, str] | None = None,
        default_prompt: str | None = None,
    ) -> None:
        backend.no_padding()
        backend.no_truncation()
        self.backend = backend
        self.max_length = max_length
        self.prompts = dict(prompts or {})
        self.default_prompt = default_prompt
        self.prompt(default_prompt)  # refuse a default that names nothing

    def prompt(self, name: str | None) -> str:
        """The prefix called ``name``; None means no prefix."""
        if name is None:
            return ""
        if name not in self.prompts:
            known = ", ".join(sorted(self.prompts)) or "none"
            close = difflib.get_close_matches(name, self.prompts, n=1)
            hint = f", did you mean {close[0]!r}?" if close else ""
            raise UserError(f"this model has no prompt named {name!r} (known: {known}){hint}")
        return self.prompts[name]

    def rows(
        self, texts: Sequence[str], prompt_name: str | None = None, max_length: int | None = None
    ) -> tuple[list[list[int]], int]:
        """Token ids of every text and the number of texts that were cut.

        A cut text keeps its closing special token: the limit takes tokens from the end of the text.
        """
        limit = min(max_length or self.max_length, self.max_length)
        prefix = self.prompt(prompt_name)
        self.backend.enable_truncation(limit)
        try:
            encodings = self.backend.encode_batch([prefix + text for text in texts])
        except TypeError:
            raise UserError(_complaint(texts)) from None
        finally:
            self.backend.no_truncation()
        return [e.ids for e in encodings], sum(bool(e.overflowing) for e in encodings)

    def batch(
        self, texts: Sequence[str], prompt_name: str | None = None, max_length: int | None = None
    ) -> Batch:
        rows, truncated = self.rows(texts, prompt_name, max_length)
        return pack(rows, truncated)


def _complaint(texts: Sequence[object]) -> str:
    """What is wrong with the first text that is none."""
    for position, text in enumerate(texts):
        if not isinstance(text, str):
            return f"text {position} is a {type(text).__name__}, not a string"
        if any("\ud800" <= character <= "\udfff" for character in text):
            return f"text {position} is not valid Unicode: it holds half of a surrogate pair"
    raise AssertionError("every text is well")
