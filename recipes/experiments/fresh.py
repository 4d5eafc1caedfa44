"""A small encoder that has learned nothing: the words of a base, and weights drawn at random.

Usage: python fresh.py BASE OUT [dim] [layers] [intermediate]

BASE is what ``base`` of a recipe may be; OUT gets its tokenizer and a BERT of ``dim`` (128) coordinates,
``layers`` (4) layers and feed-forward blocks of ``intermediate`` (256). The draw is the same every time.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from transformers import AutoTokenizer, BertConfig, BertModel

from moembed.folder.bases import locate_base


def build(base: str, out: Path, dim: int = 128, layers: int = 4, intermediate: int = 256) -> None:
    tokenizer = AutoTokenizer.from_pretrained(locate_base(base))
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=dim,
        num_hidden_layers=layers,
        num_attention_heads=max(dim // 32, 1),
        intermediate_size=intermediate,
        max_position_embeddings=512,
        pad_token_id=tokenizer.pad_token_id,
    )
    BertModel(config, add_pooling_layer=False).save_pretrained(out)
    tokenizer.save_pretrained(out)


if __name__ == "__main__":
    if not 3 <= len(sys.argv) <= 6:
        sys.exit(__doc__)
    build(sys.argv[1], Path(sys.argv[2]), *map(int, sys.argv[3:]))
