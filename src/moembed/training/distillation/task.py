"""The distillation task: texts of one role -> vectors of the student -> their distance to the teacher's.

The loss is a mean over texts, so a batch is computed chunk by chunk and its gradient is exact.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from moembed.data.sampler import Sampler
from moembed.embedder import Embedder
from moembed.encoding import SpaceRelation
from moembed.folder.read import read_folder
from moembed.losses.balance import balance_loss, z_loss
from moembed.losses.distillation import VECTOR_LOSSES
from moembed.machine import choose_precision
from moembed.model.adapters import load_plain
from moembed.packing import even_budget, pack
from moembed.training.distillation.settings import DistillationConfig
from moembed.training.distillation.teacher import TeacherVectors
from moembed.training.distillation.texts import RoleTexts
from moembed.training.lora import Adapters
from moembed.training.parallel import World, summed, unsummed
from moembed.training.task import Stateful, Terms
from moembed.types import Batch, Encoded, RouterStats, UserError


@dataclass(frozen=True, slots=True)
class Searched:
    """Names of spaces of the teacher's documents with their widths, and what the teacher is called."""

    documents: Mapping[str, int]
    model: str


@dataclass(frozen=True, slots=True)
class TextBatch:
    """This process's texts of a step, packed into chunks, and the teacher's vectors of each chunk."""

    name: str
    role: str
    texts: Sequence[str]
    chunks: list[Batch]
    teacher_CBM: list[Tensor]
    tokens: int
    truncated: int


class DistillationTask:
    """Batches of texts, each of one role.

    Args:
        searched: whose documents the queries of the written models may search; None: nobody's.
    """

    def __init__(
        self, config: DistillationConfig, model: Embedder, teacher: TeacherVectors,
        sources: Sequence[RoleTexts], world: World, searched: Searched | None = None,
    ) -> None:  # fmt: skip
        """Raises UserError: fewer texts than a batch, a student of another width than the teacher."""
        if config.batch_size < world.size:
            raise UserError(
                f"batch_size {config.batch_size} is less than one text for each of {world.size} processes"
            )
        if model.full_dim != teacher.dim:
            raise UserError(
                f"the student makes vectors of {model.full_dim} coordinates and the teacher of "
                f"{teacher.dim}: give the student a projection"
            )
        self.config, self.model, self.teacher, self.world = config, model, teacher, world
        self.sources, self.searched, self.workers = sources, searched, config.workers
        self.sampler = sampler_of(config, sources)
        self.drawing = threading.Lock()  # the sampler remembers where it was read last
        self.adapters = Adapters.of(model.encoder, config.lora, config.seed)
        self.module: nn.Module = model
        self.parallel = summed(model, world)
        self.precision = choose_precision(config.precision, model.device)
        model.encoder.activation_checkpointing = config.activation_checkpointing

    @property
    def steps(self) -> int | None:
        """Of the whole run, where that is known."""
        if self.config.epochs is not None:
            return max(1, round(self.config.epochs * self.sampler.total_steps))
        return self.config.steps

    def batch(self, step: int) -> TextBatch:
        with self.drawing:
            number, rows = self.sampler.batch(step)
        source = self.sources[number]
        texts = [source.texts[int(rows[i])] for i in self.world.share(len(rows))]
        return self.prepare(source, texts)

    def prepare(self, source: RoleTexts, texts: Sequence[str]) -> TextBatch:
        """Tokenise texts with the prompt of their role, pack them, and look up the teacher's vectors."""
        model, role = self.model, source.role
        ids, truncated = model.rows(texts, role=role)
        prompt = model.prompt_tokens(role=role)
        tags = model.tag_numbers(list(texts), role=role)
        teacher_BM = torch.from_numpy(self.teacher.read(texts, role))
        groups = even_budget([len(row) for row in ids], self.config.chunk_tokens)
        chunks = [
            pack(
                [ids[i] for i in group],
                prompt_tokens=None if prompt is None else [prompt] * len(group),
                tags=None if tags is None else [tags[i] for i in group],
            )
            for group in groups
        ]
        teacher_CBM = [teacher_BM[torch.tensor(group)] for group in groups]
        return TextBatch(source.name, role, texts, chunks, teacher_CBM, sum(map(len, ids)), truncated)

    def backward(self, step: int, batch: TextBatch) -> Terms:
        counts = torch.tensor([len(batch.texts), batch.tokens, batch.truncated])
        texts, tokens, truncated = self.world.sum(counts).tolist()
        sums, total = torch.zeros(2), list[RouterStats]()
        last = len(batch.chunks) - 1
        for number, (chunk, teacher_BM) in enumerate(zip(batch.chunks, batch.teacher_CBM, strict=True)):
            with nullcontext() if number == last else unsummed(self.parallel):
                encoded = self.embed(chunk)
                loss = self.distance(encoded.vector_BM, teacher_BM) * (len(teacher_BM) / texts)
                router = self._router_loss(encoded.router) * (sum(chunk.length_B) / tokens)
                torch.autograd.backward(loss + router.to(loss.device))
            sums += torch.stack([loss.detach().cpu(), router.detach().float().cpu()])
            part = [layer.detach() for layer in encoded.router]
            total = [a + b for a, b in zip(total, part, strict=True)] if total else part
        distance, router_loss = self.world.sum(sums).tolist()
        log = {
            self.config.loss.kind: distance, "router_loss": router_loss, "tokens": tokens,
            "role": batch.role, "source": batch.name,
        }  # fmt: skip
        return Terms(distance + router_loss, texts, truncated, self.world.sum_stats(total), log)

    def embed(self, chunk: Batch) -> Encoded:
        """The student's vectors of a chunk, in the precision of training."""
        kind = self.model.device.split(":")[0]
        with torch.autocast(kind, self.precision, enabled=self.precision != torch.float32):
            encoded: Encoded = self.parallel(chunk.to(self.model.device))
            return encoded

    def distance(self, student_BM: Tensor, teacher_BM: Tensor) -> Tensor:
        return VECTOR_LOSSES[self.config.loss.kind](student_BM, teacher_BM.to(student_BM.device))

    def _router_loss(self, stats: Sequence[RouterStats]) -> Tensor:
        if not stats:
            return torch.zeros(())
        return self.config.loss.balance * balance_loss(stats, stats) + self.config.loss.z * z_loss(
            stats, stats
        )

    def update(self, terms: Terms) -> Mapping[str, Any]:
        return {}

    def examples(self, batch: TextBatch) -> list[dict[str, Any]]:
        return [{"text": text, "role": batch.role} for text in batch.texts]

    def contents(self) -> dict[str, str]:
        found = {source.name: source.fingerprint() for source in self.sources}
        return found | {"teacher": json.dumps(dict(self.teacher.spaces), sort_keys=True)}

    def states(self) -> Mapping[str, Stateful]:
        return {**self.adapters}

    def write(self, folder: Path) -> None:
        if self.searched:
            own = self.model.space(role="query")
            self.model.relation = SpaceRelation(own, self.searched.documents, self.searched.model)
        self.model.save_pretrained(folder)

    def read(self, folder: Path) -> None:
        parts = read_folder(folder)
        load_plain(self.model.encoder, parts.state)
        self.model.pooling.load(parts.pooling_state)
        self.model.head.load(parts.head_state)


def sampler_of(config: DistillationConfig, sources: Sequence[RoleTexts]) -> Sampler:
    """What decides which texts make up a step: every text as often as any other.

    Raises:
        UserError: fewer texts than a batch.
    """
    sizes = [source.num_train for source in sources]
    return Sampler(sizes, sizes, config.batch_size, config.seed, [source.name for source in sources])
