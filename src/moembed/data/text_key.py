"""When two texts are equal: one rule for the training mask, mining, filter, overlap, evaluation and dedup."""

from __future__ import annotations

import hashlib
import unicodedata


def normalize(text: str) -> str:
    """NFKC, case folded, white space collapsed: what two equal texts have in common."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def text_key(*texts: str) -> bytes:
    """128 bits of the normalised texts, in this order: equal texts have equal keys."""
    # normalised texts hold no line break, so it can part them; half of a surrogate pair is a text like others
    joined = "\n".join(map(normalize, texts)).encode("utf-8", "surrogatepass")
    return hashlib.blake2b(joined, digest_size=16).digest()


def text_number(text: str) -> int:
    """The first 64 bits of ``text_key``, as a signed number: what fits into a tensor or an array."""
    return int.from_bytes(text_key(text)[:8], "little", signed=True)
