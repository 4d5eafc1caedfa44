"""Texts to distil on: cut to what the student reads, each once, in the roles they are embedded for."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from moembed.prompts import split_prompt
from moembed.tokenizer import Tokenizer


@dataclass(frozen=True)
class RoleTexts:
    """Texts that are embedded for one role; the first ``num_train`` are trained on, the others held out."""

    name: str
    role: str
    texts: Sequence[str]
    num_train: int

    @property
    def held_out(self) -> Sequence[str]:
        return self.texts[self.num_train :]

    def fingerprint(self) -> str:
        """The number of texts and a hash of them all."""
        digest = hashlib.blake2b(digest_size=8)
        for text in self.texts:
            digest.update(text.encode("utf-8", "surrogatepass") + b"\0")
        return f"{len(self.texts):,} rows, {digest.hexdigest()}"


def cut_texts(texts: Iterable[str], tokenizer: Tokenizer, prefix: str) -> tuple[list[str], int]:
    """The texts as the student reads them, and how many were cut.

    A text of more tokens than it reads ends (or begins, where texts are cut at their start) with the last
    token that it reads, so the teacher is asked for the vector of what the student sees.
    """
    listed = list(texts)
    front, behind = split_prompt(prefix)
    special = [len(tokens) for tokens in tokenizer.special_tokens]
    head, tail = (edge - own for edge, own in zip(tokenizer.edges(prefix), special, strict=True))
    room = tokenizer.max_length - sum(special)
    kept, cut = [], 0
    for start in range(0, len(listed), 1024):
        some = listed[start : start + 1024]
        whole = [front + text + behind for text in some]
        encodings = tokenizer.backend.encode_batch(whole, add_special_tokens=False)
        for text, found in zip(some, encodings, strict=True):
            if (count := len(offsets := found.offsets)) <= room:
                kept.append(text)
                continue
            cut += 1
            if tokenizer.truncation_side == "right":
                kept.append(text[: max(offsets[room - tail - 1][1] - len(front), 0)])
            else:
                kept.append(text[max(offsets[count - (room - head)][0] - len(front), 0) :])
    return kept, cut


def unique_texts(texts: Iterable[str]) -> list[str]:
    """Every text once, in the order of their first appearance."""
    return list(dict.fromkeys(texts))
