"""`moembed.model.expert_head` as a module of sentence-transformers, which loads it by its name.

``SentenceTransformer(folder, trust_remote_code=True)``: it asks so for every module that is not its own, also
for one of an installed package.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from moembed.model.expert_head import ExpertHead as Step
from moembed.model.named import NamedTensors


class ExpertHead(nn.Module):
    """The block on ``sentence_embedding``; in training mode with noise in its choices."""

    def __init__(self, step: Step, state: dict[str, Tensor]) -> None:
        super().__init__()
        self.step, self.block = step, NamedTensors(step.shapes(), state)

    def forward(self, features: dict[str, Any]) -> dict[str, Any]:
        vector_BM = features["sentence_embedding"]
        output_BM = self.step.forward(self.block.tensor, vector_BM.float(), self.training)
        return features | {"sentence_embedding": output_BM.to(vector_BM.dtype)}

    def get_sentence_embedding_dimension(self) -> int:
        """What sentence-transformers asks its last modules."""
        return self.step.out_dim

    get_embedding_dimension = get_sentence_embedding_dimension

    def save(self, output_path: str, *rest: Any, **options: Any) -> None:
        """Write the files that ``load`` reads."""
        folder = Path(output_path)
        (folder / "config.json").write_text(json.dumps(vars(self.step), indent=2), encoding="utf-8")
        tensors = {name: tensor.cpu().contiguous() for name, tensor in self.block.state().items()}
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    @classmethod
    def load(cls, path: str) -> ExpertHead:
        """Read what ``save``, or `moembed.folder.modules`, has written."""
        config = json.loads((Path(path) / "config.json").read_text(encoding="utf-8"))
        return cls(Step(**config), load_file(Path(path) / "model.safetensors"))
