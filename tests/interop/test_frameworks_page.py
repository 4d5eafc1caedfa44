"""The adapters of docs/frameworks.md give the model's own vectors, with its prompts."""

from __future__ import annotations

import asyncio
import re
import sys
from abc import ABC, abstractmethod
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from pydantic import BaseModel

from moembed.embedder import Embedder

PAGE = Path(__file__).parents[2] / "docs" / "frameworks.md"
TEXTS = ["an owl hunts voles", "moles eat worms"]
EQUAL = 1e-6


class LangChainEmbeddings(ABC):
    """What langchain_core asks of an embedder."""

    @abstractmethod
    def embed_documents(self, texts: list[str]) -> list[list[float]]: ...

    @abstractmethod
    def embed_query(self, text: str) -> list[float]: ...


class LlamaIndexEmbedding(BaseModel, ABC):
    """What llama_index.core asks of one: a pydantic model, and these methods."""

    model_name: str
    embed_batch_size: int

    @abstractmethod
    def _get_query_embedding(self, query: str) -> list[float]: ...

    @abstractmethod
    async def _aget_query_embedding(self, query: str) -> list[float]: ...

    @abstractmethod
    def _get_text_embedding(self, text: str) -> list[float]: ...

    def get_query_embedding(self, query: str) -> list[float]:
        return self._get_query_embedding(query)

    def get_text_embedding_batch(self, texts: list[str]) -> list[list[float]]:
        return [self._get_text_embedding(text) for text in texts]


STAND_INS = {
    "langchain_core.embeddings": ("Embeddings", LangChainEmbeddings),
    "llama_index.core.embeddings": ("BaseEmbedding", LlamaIndexEmbedding),
}


@pytest.fixture
def names(moe_model: Embedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the blocks of the page define, run in their order beside two models."""
    for module, (name, stand_in) in STAND_INS.items():
        for package in ("langchain_core", "llama_index", "llama_index.core"):
            monkeypatch.setitem(sys.modules, package, ModuleType(package))
        made = ModuleType(module)
        setattr(made, name, stand_in)
        monkeypatch.setitem(sys.modules, module, made)
    monkeypatch.chdir(tmp_path)
    for folder in ("minilm", "runs/demo/model"):
        moe_model.save_pretrained(folder)
    found: dict[str, Any] = {}
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(blocks) == 6
    for block in blocks:
        exec(block, found)
    return found


def test_the_adapters_give_our_vectors(names: dict[str, Any], moe_model: Embedder) -> None:
    expected, query = moe_model.encode_document(TEXTS), moe_model.encode_query(TEXTS[0])
    chain, index = names["embeddings"], names["embedding"]
    for documents in (chain.embed_documents(TEXTS), index.get_text_embedding_batch(TEXTS)):
        assert np.abs(np.array(documents) - expected).max() <= EQUAL
    later = asyncio.run(index._aget_query_embedding(TEXTS[0]))
    for found in (chain.embed_query(TEXTS[0]), index.get_query_embedding(TEXTS[0]), later):
        assert isinstance(found[0], float)
        assert np.abs(np.array(found) - query).max() <= EQUAL
