"""The training loop, from sources to checkpoints, in the order things happen.

Sampler.batch(step) -> pairs -> prepare: rows, chunks, masks -> gradcache.backward -> clip, AdamW, log, save.

``batch(step)`` is a function of (seed, step), so a resumed run seeks and goes on as if it had never stopped.
"""

from __future__ import annotations

import hashlib
import json
import math
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from moembed.config import Strict
from moembed.data.sampler import Sampler
from moembed.data.sources import Source
from moembed.losses.balance import balance_loss, z_loss
from moembed.losses.contrastive import LOSSES
from moembed.losses.negatives import duplicates
from moembed.model.embedder import Embedder
from moembed.tokenizer import pack, token_budget
from moembed.train import checkpoint, gradcache
from moembed.train.log import Log
from moembed.train.optim import OptimConfig, adamw, learning_rate
from moembed.types import Batch, Encoded, Pair, RouterStats, UserError


class LossConfig(Strict):
    kind: Literal["info_nce", "symmetric_info_nce"] = "info_nce"
    temperature: float = Field(default=0.02, gt=0)
    balance: float = Field(default=0.01, ge=0)  # coefficient of the load-balancing loss
    z: float = Field(default=0.0, ge=0)  # coefficient of the router z-loss


class TrainConfig(Strict):
    """How long, how large, how fast. Exactly one of ``steps``, ``epochs`` and ``minutes`` ends the run."""

    steps: int | None = Field(default=None, ge=1)
    epochs: float | None = Field(default=None, gt=0)
    minutes: float | None = Field(default=None, gt=0)
    batch_size: int = Field(default=256, ge=2)  # pairs per step; the other pairs are the negatives
    chunk_tokens: int = Field(default=16384, ge=1)  # tokens computed at a time: memory, not the result
    query_length: int = Field(default=64, ge=3)
    document_length: int = Field(default=256, ge=3)
    negatives: int | None = Field(default=None, ge=0)  # hard negatives used per pair; None: all of them
    loss: LossConfig = LossConfig()
    optim: OptimConfig = OptimConfig()
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    save_every: int = Field(default=500, ge=1)
    keep_checkpoints: int = Field(default=2, ge=1)
    seed: int = 0

    @model_validator(mode="after")
    def _one_end(self) -> TrainConfig:
        if sum(end is not None for end in (self.steps, self.epochs, self.minutes)) != 1:
            raise ValueError("give exactly one of steps, epochs and minutes")
        return self


@dataclass(frozen=True, slots=True)
class Trained:
    """How a run ended."""

    steps: int
    seconds: float
    pairs: int
    truncated: int
    stopped_by_user: bool


def train(
    config: TrainConfig, model: Embedder, sources: Sequence[Source], weights: Sequence[float], run: Path,
    resume: bool = False, record: Strict | None = None,
) -> Trained:  # fmt: skip
    """Train ``model`` in place; ``run`` gets ``metrics.jsonl``, ``checkpoints/`` and at the end ``model/``.

    Args:
        record: the whole resolved recipe, saved beside the checkpoints; default: ``config``.

    Raises:
        UserError: fewer pairs than a batch, a loss that is not finite (the batch is written to the run
            folder), nothing to resume from, another run in the way, a full disk.
    """
    sizes, names = [len(source) for source in sources], [source.name for source in sources]
    sampler = Sampler(sizes, weights, config.batch_size, config.seed, names)
    optimiser = adamw(model, config.optim)
    precision = choose_precision(config.precision, model.device)
    torch.manual_seed(config.seed)
    step, before, seen, truncated = 0, 0.0, 0, 0
    if resume:
        state = checkpoint.restore(run, model, optimiser, record or config)
        step, before, seen, truncated = state.step, state.seconds, state.pairs, state.truncated
    elif found := checkpoint.latest(run):
        raise UserError(f"{found} is there already; resume that run, or train into another folder")
    last_step = _last_step(config, sampler)
    model.train()
    started = time.monotonic()
    seconds = before

    def save() -> None:
        state = checkpoint.State(step, seconds, seen, truncated)
        checkpoint.save(run, model, optimiser, state, record or config, config.keep_checkpoints)

    with interruptible() as interrupt, Log(run, last_step, config.minutes, step, resume) as log:
        while not interrupt.asked and (last_step is None or step < last_step):
            progress = step / last_step if last_step else seconds / (60 * config.minutes)  # type: ignore[operator]
            if progress >= 1:
                break
            source, rows = sampler.batch(step)
            pairs = sources[source].pairs(rows.tolist())

            # ---- one step ----------------------------------------------------------------------------
            batch = prepare(pairs, model, config)
            terms = gradcache.backward(
                partial(_embed, model=model, precision=precision),
                batch.chunks,
                partial(_contrastive, batch=batch, config=config.loss),
                partial(_router_loss, config=config.loss),
            )
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.optim.clip or math.inf)
            _refuse_non_finite(terms, norm, step, pairs, run)
            rate = learning_rate(config.optim, step, progress)
            for group in optimiser.param_groups:
                group["lr"] = rate
            optimiser.step()
            optimiser.zero_grad()
            # ------------------------------------------------------------------------------------------

            step, seen, truncated = step + 1, seen + len(pairs), truncated + batch.truncated
            seconds = before + time.monotonic() - started
            log.step(
                step=step, elapsed=seconds, loss=terms.contrastive + terms.router, info_nce=terms.contrastive,
                router_loss=terms.router, learning_rate=rate, grad_norm=float(norm), pairs=len(pairs),
                tokens=batch.tokens, truncated=batch.truncated, source=sources[source].name,
                router=[part.summary() for part in terms.stats],
            )  # fmt: skip
            if step % config.save_every == 0:
                save()
        if step and step % config.save_every:
            save()
    model.eval()
    model.save_pretrained(run / "model")
    return Trained(step, seconds, seen, truncated, interrupt.asked)


@dataclass(frozen=True, slots=True)
class Prepared:
    """One step's texts, queries first, then documents, then hard negatives, split into chunks.

    ``place_B[i]`` is where the vector of text i stands when the chunks' vectors are put end to end.
    """

    chunks: list[Batch]
    place_B: Tensor
    num_queries: int
    mask_QN: Tensor
    tokens: int
    truncated: int


def prepare(pairs: Sequence[Pair], model: Embedder, config: TrainConfig) -> Prepared:
    """Tokenise with each role's prompt, pack into chunks of at most ``chunk_tokens``, mask duplicates."""
    queries = [pair.query for pair in pairs]
    documents = [pair.document for pair in pairs]
    documents += [negative for pair in pairs for negative in pair.negatives[: config.negatives]]
    rows, truncated = model.tokenizer.rows(queries, model.role_prompt("query"), config.query_length)
    more, cut = model.tokenizer.rows(documents, model.role_prompt("document"), config.document_length)
    rows, truncated = rows + more, truncated + cut
    groups = token_budget([len(row) for row in rows], config.chunk_tokens)
    place_B = torch.empty(len(rows), dtype=torch.long)
    place_B[torch.tensor([i for group in groups for i in group])] = torch.arange(len(rows))
    mask_QN = duplicates(_hashes(queries), _hashes(documents), torch.arange(len(pairs)))
    return Prepared(
        chunks=[pack([rows[i] for i in group]).to(model.device) for group in groups],
        place_B=place_B.to(model.device),
        num_queries=len(pairs),
        mask_QN=mask_QN.to(model.device),
        tokens=sum(map(len, rows)),
        truncated=truncated,
    )


def _hashes(texts: Sequence[str]) -> Tensor:
    digests = (hashlib.blake2b(text.encode(), digest_size=8).digest() for text in texts)
    return torch.tensor([int.from_bytes(digest, "little", signed=True) for digest in digests])


def _embed(chunk: Batch, model: Embedder, precision: torch.dtype) -> Encoded:
    with torch.autocast(model.device.split(":")[0], precision, enabled=precision != torch.float32):
        return model(chunk)


def _contrastive(by_depth: dict[int, Tensor], batch: Prepared, config: LossConfig) -> Tensor:
    vector_BM = by_depth[max(by_depth)][batch.place_B]
    query_QM, document_NM = vector_BM[: batch.num_queries], vector_BM[batch.num_queries :]
    positive_Q = torch.arange(batch.num_queries, device=vector_BM.device)
    loss = LOSSES[config.kind]
    return loss(query_QM, document_NM, positive_Q, batch.mask_QN, temperature=config.temperature)


def _router_loss(stats: Sequence[RouterStats], total: Sequence[RouterStats], config: LossConfig) -> Tensor:
    return config.balance * balance_loss(stats, total) + config.z * z_loss(stats, total)


def choose_precision(name: str, device: str) -> torch.dtype:
    """``auto``: bf16 where the hardware multiplies it natively, else fp32."""
    if name != "auto":
        return torch.float32 if name == "float32" else torch.bfloat16
    native = torch.cuda.is_bf16_supported() if device.startswith("cuda") else cpu_has_bfloat16()
    return torch.bfloat16 if native else torch.float32


def cpu_has_bfloat16() -> bool:
    """Whether this CPU has bf16 dot products (AMX or AVX512-BF16); emulated bf16 is slower than fp32."""
    checks = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(getattr(torch.cpu, check, lambda: False)() for check in checks)


def _last_step(config: TrainConfig, sampler: Sampler) -> int | None:
    if config.epochs is not None:
        return max(1, round(config.epochs * sampler.total_steps))
    return config.steps


def _refuse_non_finite(
    terms: gradcache.Terms, norm: Tensor, step: int, pairs: Sequence[Pair], run: Path
) -> None:
    if math.isfinite(terms.contrastive) and math.isfinite(terms.router) and bool(torch.isfinite(norm)):
        return
    file = run / "offending-batch.jsonl"
    file.write_text("".join(json.dumps(asdict(pair), ensure_ascii=False) + "\n" for pair in pairs), "utf-8")
    kept = checkpoint.latest(run)
    raise UserError(
        f"the loss or its gradient is not finite at step {step + 1}; the batch is in {file}, "
        + (f"the last good checkpoint is {kept}" if kept else "no checkpoint had been written yet")
        + "; try a lower optim.learning_rate or precision=float32"
    )


class Interrupt:
    asked = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


@contextmanager
def interruptible() -> Iterator[Interrupt]:
    """The first Ctrl-C (or SIGTERM) lets the step in hand finish and the run be saved; the second stops."""
    interrupt = Interrupt()
    try:
        previous: dict[int, Any] = {
            number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)
        }
    except ValueError:  # only the main thread may set handlers
        previous = {}
    try:
        yield interrupt
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
