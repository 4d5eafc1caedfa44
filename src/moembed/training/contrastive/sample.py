"""A few texts of the training pairs, as the model will read them: what upcycling by clusters looks at."""

from __future__ import annotations

import numpy as np

from moembed.encoding import role_prompt
from moembed.packing import pack
from moembed.tokenizer import Tokenizer
from moembed.training.contrastive.settings import ContrastiveConfig
from moembed.training.contrastive.task import Mixture, num_train_rows
from moembed.types import Batch


def sample_batch(mixture: Mixture, tokenizer: Tokenizer, config: ContrastiveConfig, texts: int) -> Batch:
    """Queries and documents, half and half, of as many pairs of every source, evenly spaced in it.

    Prompts and lengths are those of training; pairs that are held out are none of the sample.
    """
    rows: list[list[int]] = []
    pairs = max(1, texts // (2 * len(mixture.sources)))
    limits = {"query": config.query_length, "document": config.document_length}
    for source in mixture.sources:
        last = num_train_rows(source, config) - 1
        chosen = source.pairs(np.unique(np.linspace(0, last, pairs).astype(int)).tolist())
        for role, limit in limits.items():
            prompt = tokenizer.prompt(role_prompt(role, tokenizer.prompts, tokenizer.default_prompt))
            own = [pair.query if role == "query" else pair.document for pair in chosen]
            rows += tokenizer.rows(own, prompt=prompt, max_length=min(limit, tokenizer.max_length))[0]
    return pack(rows)
