"""Do all cells see the same pairs in the same order? Their batches are hashed before anything is trained."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable

from moembed.experiment.settings import Job
from moembed.runs.train import TrainConfig, open_mixture
from moembed.training.contrastive.schedules import values
from moembed.training.contrastive.task import sampler_of
from moembed.types import UserError

# what of a recipe decides which pairs make up a step
_KEYS = {"data", "sampling", "retrieval_share", "small_sources", "batch_size", "held_out", "steps", "seed"}


class BatchOrder:
    """Hashes of the batches of recipes; recipes that read the same data are read once."""

    def __init__(self) -> None:
        self.known: dict[str, str] = {}

    def of(self, config: TrainConfig) -> str:
        """First 16 hex digits of the SHA-256 over the queries and documents of every step, in their order.

        Hard negatives, prompts and losses are not part of it: in these, cells may differ.
        """
        told = config.model_dump(mode="json", include=_KEYS)
        key = json.dumps([told, config.schedules.get("batch_size")], sort_keys=True)
        if key not in self.known:
            self.known[key] = _hash(config)
        return self.known[key]

    def require_equal(self, jobs: Iterable[Job]) -> None:
        """
        Raises:
            UserError: two cells of a seed would train on other pairs, or on the same in another order.
        """
        first: dict[int, Job] = {}
        for job in jobs:
            other = first.setdefault(job.seed, job)
            if self.of(job.config) != self.of(other.config):
                raise UserError(
                    f"the cells {other.cell} and {job.cell} do not see the same pairs in the same order "
                    f"(seed {job.seed}), so their difference would say nothing: give both the same data, "
                    "sampling, batch_size with its schedule, and held_out"
                )


def _hash(config: TrainConfig) -> str:
    mixture = open_mixture(config)
    sampler = sampler_of(config, mixture)
    digest = hashlib.sha256()
    known: dict[tuple[int, int], bytes] = {}  # source and row -> hash of its texts: epochs come back to them
    for step in range(config.steps or 0):
        source, rows = sampler.batch(step)
        size = values(config.schedules, step / (config.steps or 1)).get("batch_size")  # None: all of them
        for row in rows[: size and int(size)].tolist():
            if (source, row) not in known:
                (pair,) = mixture.sources[source].pairs([row])
                texts = json.dumps([pair.query, pair.document]).encode()
                known[source, row] = hashlib.sha256(texts).digest()
            digest.update(known[source, row])
    return digest.hexdigest()[:16]
