"""Masked language modelling: from texts to an encoder that knows their languages.

Sampler -> sequences of one language -> prepare: masks, chunks -> backward -> clip, AdamW, log, save.

Batches and masks are functions of (seed, step), so a resumed run goes on as if it had never stopped.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from moembed.config import Strict
from moembed.data.sampler import Sampler, mix
from moembed.embedder import Embedder
from moembed.machine import choose_precision
from moembed.training import checkpoint
from moembed.training.corpus import Language
from moembed.training.distributed import World, current
from moembed.training.heads import Heads, write_heads
from moembed.training.interrupt import interruptible
from moembed.training.log import Log
from moembed.training.masking import Vocabulary
from moembed.training.objective import ObjectiveConfig, Terms, backward, evaluate, prepare
from moembed.training.optim import OptimConfig, adamw, learning_rate
from moembed.types import UserError

_STEP, _HELD_OUT = 11, 12  # streams of random numbers drawn from one seed


class PretrainOptim(OptimConfig):
    """Other defaults: those of the base of Nomic Embed v2."""

    learning_rate: float = Field(default=4e-4, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = Field(default=1e-6, gt=0)
    warmup_steps: float = Field(default=0.05, ge=0)


class HeldOutConfig(Strict):
    """The last ``share`` of the sequences of each language, at least one and at most ``sequences``."""

    share: float = Field(default=0.01, gt=0, lt=1)
    sequences: int = Field(default=64, ge=1)
    mask: float = Field(default=0.15, gt=0, lt=1)
    every: int = Field(default=500, ge=1)  # steps between two looks; there is one before and one at the end


class PretrainConfig(ObjectiveConfig):
    """How much is learnt. Languages are drawn in proportion to ``sequences ** language_exponent``."""

    steps: int = Field(ge=1)
    batch_size: int = Field(default=256, ge=1)  # sequences per step, all processes together
    sequence_length: int = Field(default=512, ge=3)  # tokens, special ones included
    packed: bool = True  # texts end to end, or one text per sequence
    language_exponent: float = Field(default=0.3, ge=0, le=1)
    small_languages: Literal["refuse", "skip"] = "refuse"
    held_out: HeldOutConfig = HeldOutConfig()
    optim: PretrainOptim = PretrainOptim()
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    activation_checkpointing: bool = False  # less memory per token for a third more computing
    save_every: int = Field(default=500, ge=1)
    keep_checkpoints: int = Field(default=2, ge=1)
    seed: int = Field(default=0, ge=0, lt=2**63)


@dataclass(frozen=True, slots=True)
class Pretraining:
    """How a run ended."""

    steps: int
    seconds: float
    sequences: int
    stopped_by_user: bool


@dataclass(frozen=True, slots=True)
class Split:
    """A language whose first ``learnt`` sequences are trained on and whose last are held out."""

    language: Language
    learnt: int


def split(corpus: Sequence[Language], config: PretrainConfig) -> list[Split]:
    """Hold the last sequences of each language back; leave small languages out if ``config`` says so.

    Raises:
        UserError: no language is left.
    """
    parts = []
    for language in corpus:
        held_out = min(max(1, round(config.held_out.share * len(language))), config.held_out.sequences)
        part = Split(language, len(language) - held_out)
        if part.learnt >= config.batch_size or config.small_languages == "refuse":
            parts.append(part)
    if not parts:
        raise UserError(
            f"no language has {config.batch_size} sequences of {config.sequence_length} tokens, so there is "
            "no batch to learn from; lower batch_size or sequence_length, or add texts"
        )
    return parts


def pretrain(
    config: PretrainConfig, model: Embedder, heads: Heads, corpus: Sequence[Language], run: Path,
    resume: bool = False, record: Strict | None = None,
) -> Pretraining:  # fmt: skip
    """Train ``model`` in place; ``run`` gets metrics, checkpoints, ``model/`` and ``mlm_head.safetensors``.

    Args:
        record: the whole resolved recipe, saved beside the checkpoints; default: ``config``.

    Raises:
        UserError: a language with fewer sequences than a batch, no mask token, a loss that is not finite,
            nothing to resume from, another run in the way, a full disk.
    """
    world = current()
    if config.batch_size < world.size:
        raise UserError(f"batch_size {config.batch_size} is less than one for each of {world.size} processes")
    parts = split(corpus, config)
    sizes, names = [part.learnt for part in parts], [part.language.name for part in parts]
    weights = mix(sizes, [1.0] * len(sizes), config.language_exponent)
    sampler = Sampler(sizes, weights, config.batch_size, config.seed, names)
    vocabulary = Vocabulary.of(model.tokenizer.backend)
    precision = choose_precision(config.precision, model.device)
    model.encoder.activation_checkpointing = config.activation_checkpointing
    both = nn.ModuleList([model, heads])
    optimiser = adamw(both, config.optim)
    torch.manual_seed(config.seed + world.rank)
    extras = {"heads": heads}
    step, before, seen = 0, 0.0, 0
    data = {part.language.name: part.language.fingerprint() for part in parts} if world.first else {}
    if resume:
        state = checkpoint.restore(run, model, optimiser, record or config, extras, world, data)
        step, before, seen = state.step, state.seconds, state.pairs
    elif found := checkpoint.latest(run):
        raise UserError(f"{found} is there already; resume that run, or train into another folder")
    started, seconds = time.monotonic(), before

    def save() -> None:
        checkpoint.require_finite(run, step, both)
        random = world.collect(checkpoint.random_state())
        if world.first:
            state, keep = checkpoint.State(step, seconds, seen, 0, data), config.keep_checkpoints
            checkpoint.save(run, model, optimiser, state, record or config, keep, extras, random)

    def look() -> dict[str, dict[str, float]]:
        return look_at_held_out(model, heads, parts, vocabulary, config, precision, world)

    with interruptible() as interrupt, Log(run, config.steps, None, step, resume, not world.first) as log:
        looks = {} if step else {f"{key}_before": value for key, value in look().items()}
        both.train()
        while not world.any(interrupt.asked) and step < config.steps:
            number, rows = sampler.batch(step)
            batch = {i: parts[number].language.sequence(int(rows[i])) for i in world.share(len(rows))}

            # ---- one step ----------------------------------------------------------------------------
            chunks = prepare(batch, vocabulary, config, [config.seed, _STEP, step])
            terms = backward(model, heads, chunks, config, precision, world)
            world.sum_gradients(both.parameters())
            norm = torch.nn.utils.clip_grad_norm_(both.parameters(), config.optim.clip or math.inf)
            _refuse_non_finite(terms, norm, step, names[number], batch, model, run)
            rate = learning_rate(config.optim, step, step / config.steps)
            for group in optimiser.param_groups:
                group["lr"] = rate
            optimiser.step()
            optimiser.zero_grad()
            # ------------------------------------------------------------------------------------------

            step, seen = step + 1, seen + len(rows)
            if step % config.held_out.every == 0 or step == config.steps:
                looks |= look()
            seconds = before + time.monotonic() - started
            log.step(
                step=step, elapsed=seconds, loss=terms.loss, mlm=terms.mlm, decoder=terms.decoder,
                router_loss=terms.router, accuracy=terms.accuracy, learning_rate=rate, grad_norm=float(norm),
                pairs=len(rows), tokens=terms.tokens, source=names[number],
                router=[part.summary() for part in terms.stats], **looks,
            )  # fmt: skip
            looks = {}
            if step % config.save_every == 0:
                save()
        if step and step % config.save_every:
            save()
    both.eval()
    if world.first:
        model.save_pretrained(run / "model")
        write_heads(run, heads)
    return Pretraining(step, seconds, seen, interrupt.asked)


def look_at_held_out(
    model: Embedder, heads: Heads, parts: Sequence[Split], vocabulary: Vocabulary, config: PretrainConfig,
    precision: torch.dtype, world: World,
) -> dict[str, dict[str, float]]:  # fmt: skip
    """Loss and accuracy by language on the sequences held out, single tokens masked, always the same ones."""
    plain = ObjectiveConfig(mask=config.held_out.mask, chunk_tokens=config.chunk_tokens)
    loss, accuracy = {}, {}
    for part in parts:
        language = part.language
        places = world.share(len(language) - part.learnt)
        rows = {i: language.sequence(part.learnt + i) for i in places}
        chunks = prepare(rows, vocabulary, plain, [config.seed, _HELD_OUT])
        found = evaluate(model, heads, chunks, precision, world)
        loss[language.name], accuracy[language.name] = (round(value, 5) for value in found)
    return {"held_out": loss, "held_out_accuracy": accuracy}


def _refuse_non_finite(
    terms: Terms, norm: Tensor, step: int, language: str, batch: Mapping[int, np.ndarray], model: Embedder,
    run: Path,
) -> None:  # fmt: skip
    if math.isfinite(terms.loss) and bool(torch.isfinite(norm)):
        return
    file = run / "offending-batch.jsonl"
    texts = model.tokenizer.backend.decode_batch([row.tolist() for row in batch.values()])
    lines = (json.dumps({"text": text, "language": language}, ensure_ascii=False) for text in texts)
    file.write_text("".join(line + "\n" for line in lines), "utf-8")
    raise UserError(
        f"the loss or its gradient is not finite at step {step + 1}; the batch is in {file}, "
        f"{checkpoint.last_good(run)}; try a lower optim.learning_rate or precision=float32"
    )
