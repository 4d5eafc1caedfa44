"""What people write first: sentence-transformers in a FastAPI handler.

Its arguments are a folder, a dtype and a port.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from sentence_transformers import SentenceTransformer

import moembed  # noqa: F401 (so that sentence-transformers knows our models)


class Body(BaseModel):
    input: str | list[str]


def application(folder: str, dtype: str) -> FastAPI:
    app = FastAPI()
    model = SentenceTransformer(folder, device="cpu", model_kwargs={"dtype": getattr(torch, dtype)})

    @app.post("/v1/embeddings")
    def embeddings(body: Body) -> dict[str, Any]:
        texts = [body.input] if isinstance(body.input, str) else body.input
        vectors = model.encode(texts, show_progress_bar=False)
        return {"data": [{"index": i, "embedding": vector.tolist()} for i, vector in enumerate(vectors)]}

    return app


if __name__ == "__main__":
    folder, dtype, port = sys.argv[1:]
    uvicorn.run(application(folder, dtype), port=int(port), log_level="warning")
