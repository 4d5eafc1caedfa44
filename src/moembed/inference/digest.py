"""A name of weights: what the name of a vector space is made of."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from itertools import chain

import torch

from moembed.inference.fingerprint import Fingerprint
from moembed.inference.member import belongs
from moembed.model.adapters import plain
from moembed.model.encoder import Encoder


class Digest:
    """A hash of the weights of one encoder, rounded to bf16; weights at rest are hashed once.

    A copy, or a pickle, has hashed nothing yet.
    """

    def __init__(self) -> None:
        self._known: tuple[Fingerprint, dict[int | None, str]] | None = None

    def __reduce__(self) -> tuple[type[Digest], tuple[()]]:
        return Digest, ()

    def of(self, encoder: Encoder, layers: int | None = None) -> str:
        """Of the embeddings and the first ``layers`` layers; None: of all there is."""
        known = self._known
        if known is None or not known[0].holds():
            known = self._known = (Fingerprint(encoder), {})
        if layers not in known[1]:
            digest = hashlib.sha256()
            whole = plain(encoder)
            for name, tensor in chain(whole.named_parameters(), whole.named_buffers()):
                if belongs(name, layers):
                    stored = torch.bfloat16 if tensor.is_floating_point() else tensor.dtype
                    value = tensor.detach().to("cpu", stored).contiguous()
                    digest.update(name.encode())
                    digest.update(value.view(torch.uint8).numpy().data)
            known[1][layers] = digest.hexdigest()
        return known[1][layers]


@lru_cache(maxsize=32)
def name_of(facts: tuple[object, ...]) -> str:
    """A short name of what a vector space is made of; kept, for a tokenizer alone is megabytes of text."""
    return hashlib.sha256(repr(list(facts)).encode()).hexdigest()[:16]
