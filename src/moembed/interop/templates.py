"""Prompts with text behind the text, for sentence-transformers, which knows prompts in front alone.

``SentenceTransformer(folder, trust_remote_code=True)`` loads this by its name in the place of its own first
module, and encodes with ``prompt_name`` and ``prompt`` as ever.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from sentence_transformers.models import Transformer
from tokenizers import Tokenizer as Backend

from moembed.prompts import fill, stands_behind
from moembed.tokenizer import Tokenizer


class TemplateTransformer(Transformer):
    """Its ``Transformer``, whose prompts may hold ``{}``; a text that is too long is cut inside them."""

    def preprocess(self, inputs: Sequence[Any], prompt: str | None = None, **options: Any) -> dict[str, Any]:
        """Texts with a prompt -> padded token ids; everything else as the class it is made of."""
        if prompt is None or not stands_behind(prompt):
            features: dict[str, Any] = super().preprocess(inputs, prompt=prompt, **options)
            return features
        features = super().preprocess([fill(prompt, text) for text in inputs], **options)
        theirs = self.tokenizer
        backend = Backend.from_str(theirs.backend_tokenizer.to_str())
        side = theirs.truncation_side
        rows, _ = Tokenizer(backend, self.max_seq_length, truncation_side=side).rows(inputs, prompt=prompt)
        padded = theirs.pad({"input_ids": rows}, return_tensors="pt")
        features |= {"input_ids": padded["input_ids"], "attention_mask": padded["attention_mask"]}
        if "token_type_ids" in features:
            features["token_type_ids"] = torch.zeros_like(padded["input_ids"])
        return features
