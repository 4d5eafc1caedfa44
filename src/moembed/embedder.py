"""The Embedder: texts in, unit vectors out. The one class most people need."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from moembed.encoding import FULL, Progress, Tag, Vectors, View, as_texts, truncate
from moembed.families.own import encoder_json
from moembed.families.registry import family_to_write
from moembed.folder.bases import locate_base
from moembed.folder.parts import Parts
from moembed.folder.read import read_folder
from moembed.folder.write import write_folder
from moembed.inference.digest import Digest, name_of
from moembed.inference.engine import Engine
from moembed.inference.member import check_view, first_layers, member
from moembed.inference.options import DTYPES, check_device, check_dtype, check_limits
from moembed.inference.residency import release_pages
from moembed.inference.token_vectors import TokenSentences, require_one_vector
from moembed.inference.windows import windows
from moembed.model.adapters import plain
from moembed.model.encoder import num_parameters, skeleton
from moembed.model.head import Head
from moembed.model.pooling import Pooling
from moembed.model.spec import EncoderSpec
from moembed.model.vectors import unit_vectors
from moembed.packing import pack, token_budget
from moembed.tokenizer import check_prompt
from moembed.types import Batch, Encoded


class Embedder(TokenSentences, nn.Module):
    """Encoder + pooling + head, with the tokenizer and the prompts the model was made with.

    Made from ``Parts``, it takes their tensors over without copying: train it, and what shares them moves.
    ``Embedder("org/name")`` is ``Embedder.from_pretrained("org/name")``. Embedding texts changes nothing in
    it, so any number of threads may share one.

    >>> model = Embedder.from_pretrained("runs/demo/model")        # doctest: +SKIP
    >>> model.encode_query(["read a parquet file lazily"]).shape   # doctest: +SKIP
    (1, 384)
    """

    def __init__(self, source: Parts | str | Path, **options: Any) -> None:
        super().__init__()
        if not isinstance(source, Parts):
            self.__dict__.update(type(self).from_pretrained(source, **options).__dict__)
            return
        self.encoder = skeleton(source.spec)
        self.encoder.load_state_dict(source.state, assign=True)
        self.encoder.requires_grad_(True)
        self.tokenizer = source.tokenizer
        self.pooling = Pooling(source.pooling, source.spec.width, source.pooling_state)
        self.head = Head(source.head, source.head_state)
        self.files, self.source, self.dims = source.files, source.source, source.dims
        self.similarity_fn_name, self.relation = source.similarity_fn_name, source.relation
        self.dim = min(source.truncate_dim or self.full_dim, self.full_dim)
        self.engine = Engine()
        self.digest = Digest()

    @classmethod
    def from_pretrained(
        cls,
        path_or_hub_id: str | Path,
        dtype: str = "float32",
        device: str | None = None,
        revision: str | None = None,
        allow_pickle: bool = False,
        layers: int | None = None,
        dim: int | None = None,
        experts: int | None = None,
    ) -> Embedder:
        """Load a folder, a run, ``minilm``, or a hub id such as ``org/name`` when there is no such folder.

        Args:
            dtype: of weights and activations: ``float32``, ``bfloat16`` or, on a GPU, ``float16``; routers
                stay in float32. ``int8`` rounds what serves on a CPU, see `moembed.inference.engine`; the
                parameters stay what the folder holds.
            device: default: ``cuda`` if there is one, else ``cpu``.
            revision: branch, tag or commit of a hub id; default: its main branch.
            allow_pickle: where there is no model.safetensors, read the tensors of pytorch_model.bin.
            layers: keep the first so many layers alone.
            dim: vectors of the first so many coordinates, made unit vectors again (Matryoshka). Default:
                ``truncate_dim`` of the folder, else all. The weights stay whole.
            experts: of models whose experts can be fewer; no model of this version is one.

        Raises:
            UserError: not a model, damaged, or of a kind this version does not know; no such device; a view
                beyond the model.
        """
        view = View(layers, dim, experts)

        def load() -> Embedder:
            target = device or ("cuda" if torch.cuda.is_available() and dtype != "int8" else "cpu")
            check_dtype(dtype, target)
            check_device(target)
            folder = locate_base(str(path_or_hub_id), revision, allow_pickle)
            return cls._of(member(read_folder(folder, allow_pickle), view), dtype, target, dim)

        # In a thread of its own, because the threads that PyTorch starts belong to the thread that asked for
        # them: a process forked after loading would wait for them for ever.
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(load).result()

    @classmethod
    def _of(cls, parts: Parts, dtype: str, device: str, dim: int | None) -> Embedder:
        """A model ready to serve. What stays as it is stored stays in the file, mapped."""
        model = cls(parts).eval()
        model.dim = dim or model.dim
        model.engine = Engine(int8=dtype == "int8")
        for name, parameter in model.named_parameters():
            kept = torch.float32 if ".router." in name else DTYPES.get(dtype, torch.float32)
            parameter.data = parameter.data.to(device, kept)
        for buffer in model.buffers():
            buffer.data = buffer.data.to(device)
        if device == "cpu":
            model.engine.encoder(model.encoder)
            release_pages(model.parameters())  # what serves is packed, and nobody has changed these yet
        return model

    def save_pretrained(self, path: str | Path) -> None:
        """Write a sentence-transformers folder; an existing one gives way only when the new one is whole."""
        write_folder(Path(path), self.parts())

    def parts(self) -> Parts:
        """Config, weights and tokenizer as plain data: what weight operations take and give."""
        encoder = plain(self.encoder)
        tensors = chain(encoder.named_parameters(), encoder.named_buffers())
        state = {name: tensor.detach() for name, tensor in tensors}
        return Parts(
            self.encoder.spec,
            state,
            self.tokenizer,
            self.pooling.config,
            self.files,
            self.source,
            self.dims,
            self.similarity_fn_name,
            self.head.config,
            self.head.state(),
            self.dim if self.dim < self.full_dim else None,
            self.pooling.state(),
            self.relation,
        )

    @property
    def spec(self) -> EncoderSpec:
        """What the encoder is, in full."""
        return self.encoder.spec

    @property
    def full_dim(self) -> int:
        """Coordinates of the whole vector; ``dim`` may be fewer, see ``from_pretrained``."""
        return self.head.dim(self.pooling.dim)

    @property
    def device(self) -> str:
        return str(self.encoder.device)

    @property
    def dtype(self) -> str:
        """What the values that serve are rounded to: ``float32``, ``bfloat16``, ``float16`` or ``int8``."""
        if self.engine.rounds(self.encoder):
            return "int8"
        return str(self.encoder.dtype).removeprefix("torch.")

    @property
    def _longest(self) -> int:
        """Tokens of the longest text that the encoder can read."""
        return self.encoder.spec.max_length

    def __repr__(self) -> str:
        spec = self.encoder.spec
        moe = f", {spec.moe.num_experts} experts in {len(spec.moe_layers)}" if spec.moe else ""
        return (
            f"Embedder({spec.num_layers} layers{moe}, dim {self.dim}, max_length {self.max_length}, "
            f"{self.dtype} on {self.device})"
        )

    def num_parameters(self, active: bool = False) -> int:
        """All parameters, or those one token can touch (the whole vocabulary table counted)."""
        pooling = sum(tensor.numel() for tensor in self.pooling.parameters())
        return num_parameters(self.encoder.spec, active) + pooling + self.head.config.num_parameters(active)

    def train(self, mode: bool = True) -> Embedder:
        if mode:
            self.engine.drop()
        return super().train(mode)

    # ---- tensors: training and everything below ----------------------------------------------------------

    def forward(self, batch: Batch, depths: Sequence[int] | None = None) -> Encoded:
        """A packed batch -> unit vectors ``(B, M)`` fp32 in the caller's order, for every depth asked for.

        A text without a single token has the vector of zeros. With pooling ``tokens`` the rows are those of
        every token, see `moembed.model.vectors.unit_vectors`.
        """
        return unit_vectors(self.encoder, self.pooling, self.head, batch, depths)

    # ---- texts: everyone else ----------------------------------------------------------------------------

    def vectors(
        self,
        texts: Iterable[str],
        *,
        role: str | None = None,
        prompt: str | None = None,
        view: View = FULL,
        progress: Progress | None = None,
        batch_tokens: int | None = None,
        tag: Tag | None = None,
    ) -> Vectors:
        """See `moembed.encoding.TextEncoder`; ``batch_tokens`` and ``tag`` as in ``encode``."""
        prefix, listed = self.prefix(role, prompt), as_texts(texts)
        tags = self.tag_numbers(listed, role=role, prompt=prompt, tag=tag)
        found = self._embedded(listed, prefix, view, progress, tags, batch_tokens=batch_tokens)
        array, truncated = found
        return Vectors(array, truncated, self.space(role=role, prompt=prompt, view=view, tag=tag))

    def rows(
        self, texts: Iterable[str], *, role: str | None = None, prompt: str | None = None
    ) -> tuple[list[list[int]], int]:
        """The first half of ``vectors``: token ids of every text, and the number of texts that were cut."""
        return self.tokenizer.rows(as_texts(texts), prompt=self.prefix(role, prompt))

    def prompt_tokens(self, *, role: str | None = None, prompt: str | None = None) -> int | None:
        """What ``embed`` must know of texts with this prompt; None, where prompts are pooled too."""
        if self.pooling.config.include_prompt:
            return None
        return self.tokenizer.prompt_tokens(self.prefix(role, prompt))

    @torch.inference_mode()
    def embed(
        self,
        rows: Sequence[Sequence[int]],
        view: View = FULL,
        *,
        batch_tokens: int | None = None,
        batch_size: int | None = None,
        progress: Progress | None = None,
        prompt_tokens: int | Sequence[int] | None = None,
        tags: Sequence[int] | None = None,
    ) -> np.ndarray:
        """The second half of ``vectors``: float32 ``(len(rows), dim)`` of token rows, for whoever batches.

        ``prompt_tokens`` as the method of that name says, of all rows or of each; ``tags`` as
        ``tag_numbers``, of each.
        """
        require_one_vector(self.pooling.config)
        check_limits(batch_tokens, batch_size)
        check_view(self.encoder.spec, view, self.dim)
        tags = self.fixed_tags(len(rows)) if tags is None else tags
        encoder, device = self.engine.encoder(self.encoder), self.device
        depths = [view.layers or self.encoder.spec.num_layers]
        dim = view.dim or self.dim
        vectors = np.zeros((len(rows), dim), dtype=np.float32)
        known = [prompt_tokens] * len(rows) if isinstance(prompt_tokens, int) else prompt_tokens
        budget = batch_tokens or (4096 if device == "cpu" else 65536)
        for group in token_budget([len(row) for row in rows], budget, batch_size):
            prompts = None if known is None else [known[i] for i in group]
            own = None if tags is None else [tags[i] for i in group]
            batch = pack([rows[i] for i in group], prompt_tokens=prompts, tags=own).to(device)
            vector_BM = unit_vectors(encoder, self.pooling, self.head, batch, depths).vector_BM.cpu().numpy()
            vectors[group] = truncate(vector_BM, dim if dim < vector_BM.shape[1] else None)
            if progress:
                progress(len(group))
        return vectors

    def _embedded(
        self,
        texts: list[str],
        prefix: str,
        view: View,
        progress: Progress | None = None,
        tags: Sequence[int] | None = None,
        **limits: int | None,
    ) -> tuple[np.ndarray, int]:
        require_one_vector(self.pooling.config)  # of no texts, too
        check_view(self.encoder.spec, view, self.dim)
        check_prompt(prefix)  # of no texts, too
        check_limits(limits.get("batch_tokens"), limits.get("batch_size"))
        known = self.prompt_tokens(prompt=prefix)
        parts, truncated, done = [np.zeros((0, view.dim or self.dim), dtype=np.float32)], 0, 0
        for rows, cut in windows(self.tokenizer, texts, prefix):
            own = None if tags is None else tags[done : done + len(rows)]
            parts.append(self.embed(rows, view, progress=progress, prompt_tokens=known, tags=own, **limits))
            truncated, done = truncated + cut, done + len(rows)
        return (np.concatenate(parts) if len(parts) > 2 else parts[-1]), truncated

    # ---- the space of the vectors ------------------------------------------------------------------------

    def space(
        self,
        *,
        role: str | None = None,
        prompt: str | None = None,
        view: View = FULL,
        tag: Tag | None = None,
    ) -> str:
        """Name of the space the vectors live in: equal names, comparable vectors.

        A hash of the weights (rounded to bf16, so both precisions share a space), architecture, tokenizer,
        pooling, prompt, tag, dim and codec. An index stores the name of its documents' space; the declared
        relation is that one model's queries may be searched against its own documents, whatever their
        prompts. The first layers of a model have the name of the small model that holds nothing else.
        """
        check_view(self.encoder.spec, view, self.dim)
        spec = first_layers(self.encoder.spec, view)
        facts = [
            self.digest.of(self.encoder, view.layers),
            encoder_json(spec, family_to_write(spec, self.source).name),
            self.pooling.name,
            self.prefix(role, prompt),
            view.dim or self.dim,
            "int8 weights" if self.engine.rounds(self.encoder) else "float32",
            self.tokenizer.backend.to_str(),
            *self.pooling.facts(),
            *self.head.facts(),
            *self.tag_facts(role, prompt, tag),
        ]
        return name_of(tuple(facts))
