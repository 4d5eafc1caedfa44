"""`moembed.model.attention_pooling` as a module of sentence-transformers, which loads it by its name.

``SentenceTransformer(folder, trust_remote_code=True)``, as for `moembed.interop.expert_head`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from moembed.folder.pooling import read_pooling, write_pooling
from moembed.model.pooling import Pooling
from moembed.types import UserError


class AttentionPooling(nn.Module):
    """Pooling of padded states ``token_embeddings (B, S, D)``, whichever side the padding is on."""

    def __init__(self, pooling: Pooling) -> None:
        super().__init__()
        if pooling.config.all_layers:
            raise UserError(
                f"pooling {pooling.name!r} reads the states after every layer, and sentence-transformers "
                "hands over those after the last: load the model with moembed.Embedder"
            )
        self.pooling = pooling

    def forward(self, features: dict[str, Any]) -> dict[str, Any]:
        kept_BS = features["attention_mask"].bool()
        states_TD = features["token_embeddings"][kept_BS]
        length_B = kept_BS.sum(dim=1).tolist()
        prompt_B = [int(features.get("prompt_length") or 0)] * len(length_B)
        vector_BM = self.pooling(states_TD, length_B, prompt_B)
        return features | {"sentence_embedding": vector_BM.to(states_TD.dtype)}

    def get_sentence_embedding_dimension(self) -> int:
        """What sentence-transformers asks its last modules."""
        return self.pooling.dim

    get_embedding_dimension = get_sentence_embedding_dimension

    @property
    def include_prompt(self) -> bool:
        """What sentence-transformers asks the module that pools, to say how long prompts are."""
        return self.pooling.config.include_prompt

    def save(self, output_path: str, *rest: Any, **options: Any) -> None:
        """Write the files that ``load`` reads."""
        write_pooling(Path(output_path), self.pooling.config, self.pooling.width, self.pooling.state())

    @classmethod
    def load(cls, path: str) -> AttentionPooling:
        """Read what ``save``, or `moembed.folder.modules`, has written."""
        return cls(read_pooling(Path(path)))
