"""The Embedder: texts in, unit vectors out. The one class most people need."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moembed.families.own import encoder_json
from moembed.families.registry import family_to_write
from moembed.folder.hub import locate
from moembed.folder.parts import Parts
from moembed.folder.read import read_folder
from moembed.folder.write import write_folder
from moembed.inference import engine as serving
from moembed.model.encoder import Encoder, num_parameters
from moembed.model.pooling import POOLING
from moembed.packing import pack, token_budget
from moembed.types import Batch, Encoded, TruncationWarning, UserError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# What texts are embedded for, and what models call the prompt of it: their own words, then those of MTEB.
ROLES = {
    "query": ("query",),
    "document": ("document", "passage", "corpus"),
    "sts": ("sts", "STS"),
    "pair_classification": ("pair_classification", "PairClassification"),
    "bitext": ("bitext", "BitextMining"),
    "classification": ("classification", "Classification"),
    "clustering": ("clustering", "Clustering"),
}
_WINDOW = 4096  # texts that are tokens at one time


class Embedder(nn.Module):
    """Encoder + pooling + L2 normalisation, with the tokenizer and the prompts the model was made with.

    Made from ``Parts``, it takes their tensors over without copying: train it, and what shares them moves.

    >>> model = Embedder.from_pretrained("runs/demo/model")        # doctest: +SKIP
    >>> model.encode_query(["read a parquet file lazily"]).shape   # doctest: +SKIP
    (1, 384)
    """

    def __init__(self, parts: Parts) -> None:
        super().__init__()
        with torch.device("meta"):
            self.encoder = Encoder(parts.spec)
        self.encoder.load_state_dict(parts.state, assign=True)
        self.encoder.requires_grad_(True)
        self.tokenizer = parts.tokenizer
        self.pooling = parts.pooling
        self.files, self.source, self.dims = parts.files, parts.source, parts.dims
        self.similarity_fn_name = parts.similarity_fn_name
        self.digest: str | None = None

    @classmethod
    def from_pretrained(
        cls,
        path_or_hub_id: str | Path,
        dtype: str = "float32",
        device: str | None = None,
        revision: str | None = None,
        allow_pickle: bool = False,
    ) -> Embedder:
        """Load a model folder, or a hub id such as ``org/name`` when no folder of that name exists.

        Args:
            dtype: of weights and activations: ``float32``, ``bfloat16`` or, on a GPU, ``float16``; routers
                stay in float32. ``int8`` rounds for serving on a CPU: see `moembed.inference.engine`.
            device: default: ``cuda`` if there is one, else ``cpu``.
            revision: branch, tag or commit of a hub id; default: its main branch.
            allow_pickle: where there is no model.safetensors, read the tensors of pytorch_model.bin.

        Raises:
            UserError: not a model, damaged, or of a kind this version does not know.
        """
        device = device or ("cuda" if torch.cuda.is_available() and dtype != "int8" else "cpu")
        _check_dtype(dtype, device)
        model = cls(read_folder(locate(path_or_hub_id, revision, allow_pickle), allow_pickle)).eval()
        if dtype == "int8":
            model.digest = model._digest()  # of what it was before rounding
            serving.pack(model.encoder, int8=True)
        packed = {id(parameter) for parameter, _ in model.encoder.held}
        for name, parameter in model.named_parameters():
            if id(parameter) not in packed:
                kept = torch.float32 if ".router." in name else DTYPES.get(dtype, torch.float32)
                # a view would keep the whole file in memory
                parameter.data = parameter.to(device, kept, copy=True)
        return model

    def save_pretrained(self, path: str | Path) -> None:
        """Write a sentence-transformers folder; an existing one gives way only when the new one is whole."""
        write_folder(Path(path), self.parts())

    def parts(self) -> Parts:
        """Config, weights and tokenizer as plain data: what weight operations take and give."""
        state = dict(serving.values(self.encoder))
        settings = (self.tokenizer, self.pooling, self.files, self.source, self.dims, self.similarity_fn_name)
        return Parts(self.encoder.spec, state, *settings)

    @property
    def dim(self) -> int:
        return self.encoder.spec.width

    @property
    def device(self) -> str:
        return str(self.encoder.word.weight.device)

    def num_parameters(self, active: bool = False) -> int:
        """All parameters, or those one token can touch (the whole vocabulary table counted)."""
        return num_parameters(self.encoder.spec, active)

    # ---- tensors: training and everything below ----------------------------------------------------------

    def forward(self, batch: Batch, depths: Sequence[int] | None = None) -> Encoded:
        """A packed batch -> unit vectors ``(B, M)`` fp32 in the caller's order, for every depth asked for."""
        hidden, router = self.encoder(batch.token_T, batch.length_B, depths)
        pool = POOLING[self.pooling]
        return Encoded(
            {
                depth: F.normalize(pool(states_TD, batch.length_B), dim=-1)[batch.restore_B]
                for depth, states_TD in hidden.items()
            },
            router,
        )

    # ---- texts: everyone else ----------------------------------------------------------------------------

    def encode(
        self,
        texts: str | Sequence[str],
        prompt_name: str | None = None,
        dim: int | None = None,
        batch_tokens: int | None = None,
        progress: Callable[[int], object] | None = None,
    ) -> np.ndarray:
        """Embed texts.

        Args:
            texts: a list of strings; ``""`` is legal. A single string gives a single vector.
            prompt_name: put the model's prompt of this name in front; None adds none.
            dim: keep the first ``dim`` coordinates, then normalise again (Matryoshka).
            batch_tokens: most tokens computed at a time; bounds the memory. Default: by device.
            progress: called with the number of texts finished since the last call.

        Returns:
            float32 ``(len(texts), dim)``, rows of length 1. A row depends on its own text alone.

        Warns:
            TruncationWarning: with the number of texts that were longer than the model reads.
        """
        if isinstance(texts, str):
            return self.encode([texts], prompt_name, dim, batch_tokens, progress)[0]
        vectors, truncated = self.encode_counted(texts, prompt_name, dim, batch_tokens, progress)
        if truncated:
            warnings.warn(
                f"{truncated} of {len(texts)} texts were cut at {self.tokenizer.max_length} tokens",
                TruncationWarning,
                stacklevel=2,
            )
        return vectors

    def encode_query(self, texts: str | Sequence[str], dim: int | None = None) -> np.ndarray:
        """``encode`` with the model's ``query`` prompt, if it has one."""
        return self.encode(texts, self.role_prompt("query"), dim)

    def encode_document(self, texts: str | Sequence[str], dim: int | None = None) -> np.ndarray:
        """``encode`` with the model's ``document`` (or ``passage``) prompt, if it has one."""
        return self.encode(texts, self.role_prompt("document"), dim)

    def role_prompt(self, role: str) -> str | None:
        """The name of the prompt for a role, such as ``query``, else of the default prompt, else None."""
        return next((n for n in ROLES[role] if n in self.tokenizer.prompts), self.tokenizer.default_prompt)

    @torch.inference_mode()
    def encode_counted(
        self,
        texts: Sequence[str],
        prompt_name: str | None = None,
        dim: int | None = None,
        batch_tokens: int | None = None,
        progress: Callable[[int], object] | None = None,
    ) -> tuple[np.ndarray, int]:
        """Like ``encode``, without the warning: the vectors and how many texts were cut."""
        self._check_dim(dim)
        was_training = self.training
        if not was_training and self.device == "cpu":
            serving.pack(self.encoder)
        self.eval()
        budget = batch_tokens or (4096 if self.device == "cpu" else 65536)
        vectors = np.empty((len(texts), dim or self.dim), dtype=np.float32)
        truncated = 0
        for start, rows, cut in self._tokenized(texts, prompt_name):
            truncated += cut
            for group in token_budget([len(row) for row in rows], budget):
                batch = pack([rows[i] for i in group]).to(self.device)
                place_B = [start + i for i in group]
                vectors[place_B] = _shorten(self(batch).vector_BM, dim).cpu().numpy()
                if progress:
                    progress(len(group))
        self.train(was_training)
        return vectors, truncated

    def _tokenized(
        self, texts: Sequence[str], prompt_name: str | None
    ) -> Iterator[tuple[int, list[list[int]], int]]:
        """Windows of texts as token rows, the next one in the making while the last is embedded."""
        with ThreadPoolExecutor(1) as thread:
            waiting: list[tuple[int, Future[tuple[list[list[int]], int]]]] = []
            for start in range(0, len(texts), _WINDOW):
                window = texts[start : start + _WINDOW]
                waiting.append((start, thread.submit(self.tokenizer.rows, window, prompt_name)))
                if len(waiting) > 1:
                    first, made = waiting.pop(0)
                    yield first, *made.result()
            for first, made in waiting:
                yield first, *made.result()

    def space_id(self, prompt_name: str | None = None, dim: int | None = None) -> str:
        """Name of the space the vectors live in: equal ids, comparable vectors.

        A hash of the weights (rounded to bf16, so both precisions share a space), architecture, tokenizer,
        pooling, prompt, dim and codec. An index stores the id of its documents; the declared relation is that
        one model's queries may be searched against its own documents, whatever their prompts.
        """
        self._check_dim(dim)
        spec = self.encoder.spec
        codec = "int8 weights" if self.digest else "float32"
        facts = [
            self.digest or self._digest(),
            encoder_json(spec, family_to_write(spec, self.source).name),
            self.pooling,
            self.tokenizer.prompt(prompt_name),
            dim or self.dim,
            codec,
            self.tokenizer.backend.to_str(),
        ]
        return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]

    def _digest(self) -> str:
        digest = hashlib.sha256()
        for name, tensor in serving.values(self.encoder):
            digest.update(name.encode())
            digest.update(tensor.to("cpu", torch.bfloat16).contiguous().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def _check_dim(self, dim: int | None) -> None:
        if dim is not None and not 1 <= dim <= self.dim:
            raise UserError(f"dim {dim} is not within 1..{self.dim}")


def _check_dtype(dtype: str, device: str) -> None:
    if dtype not in (*DTYPES, "int8"):
        raise UserError(f"dtype {dtype!r} is not available (known: {', '.join(DTYPES)}, int8)")
    if dtype == "float16" and device == "cpu":
        raise UserError("float16 needs a GPU; on a CPU choose float32, bfloat16 or int8")
    if dtype == "int8" and not (device == "cpu" and serving.can_round()):
        raise UserError("int8 needs a CPU whose PyTorch was built with oneDNN; choose float32 or bfloat16")


def _shorten(vector_BM: Tensor, dim: int | None) -> Tensor:
    return F.normalize(vector_BM[:, :dim], dim=-1) if dim else vector_BM
