"""Several processes, one step: what `torchrun` starts computes what one process would have computed.

Every process draws the same global batch and embeds the pairs of its share. Vectors lie in the order of the
global batch everywhere, so sums are all that travels: each process fills in its own rows of a matrix of
zeros, and the sum over processes is the gathered matrix. The same holds for the gradients of these vectors
and for the expert counts (`World`), and for the gradients of the parameters (DistributedDataParallel, see
``summed``). Nothing is averaged: every loss is already the process's share of the global one, so its scale
does not depend on the number of processes.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from moembed.types import RouterStats, UserError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class World:
    """This process among all. Every method is a rendezvous: all processes call it, in the same order."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        return self.rank == 0

    def share(self, count: int) -> range:
        """Which of ``count`` things are this process's: every ``size``-th, so that shares differ by one."""
        return range(self.rank, count, self.size)

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def sum_stats(self, stats: Sequence[RouterStats]) -> list[RouterStats]:
        """The statistics of the tokens of all processes, layer by layer."""
        if self.size == 1 or not stats:
            return list(stats)
        rows = [
            torch.cat([part.count_E, part.prob_E, torch.stack(_numbers(part))])
            for part in (part.detach() for part in stats)
        ]
        tokens = torch.tensor([[part.tokens] for part in stats], device=rows[0].device)
        total_LS = self.sum(torch.cat([torch.stack(rows).double(), tokens], dim=1))
        return [_unpacked(part, row_S) for part, row_S in zip(stats, total_LS, strict=True)]

    def broadcast(self, value: T) -> T:
        """What the first process says."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values)
        return values[0]

    def collect(self, value: T) -> list[T]:
        """What every process says, by rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    @contextmanager
    def first_ahead(self) -> Iterator[None]:
        """The first process does what is inside before the others do: it makes files that they then read."""
        if not self.first:
            self.broadcast(None)
        yield
        if self.first:
            self.broadcast(None)

    def any(self, flag: bool) -> bool:
        """Whether any process says so."""
        return bool(self.sum(torch.tensor(float(flag))))


ALONE = World()


def current() -> World:
    """The processes of the running group, or this one alone."""
    return World(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else ALONE


def summed(module: nn.Module, world: World) -> nn.Module:
    """``module``, whose gradients are summed over all processes when a backward pass ends.

    A gradient that some processes lack is the sum of the others', one that no process has stays None. The
    sums travel while the backward pass still runs.
    """
    if world.size == 1:
        return module
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # broadcast_buffers has a new name, in newer torch
        parallel = DistributedDataParallel(
            module, broadcast_buffers=False, find_unused_parameters=True, gradient_as_bucket_view=True
        )
    parallel.register_comm_hook(None, lambda state, bucket: _sum_bucket(bucket))
    return parallel


def unsummed(module: nn.Module) -> AbstractContextManager[object]:
    """Inside, forward and backward of ``summed(...)`` add to this process's own gradients only."""
    return module.no_sync() if isinstance(module, DistributedDataParallel) else nullcontext()


def _sum_bucket(bucket: Any) -> torch.futures.Future[Tensor]:
    """In place of DistributedDataParallel's mean."""
    work = dist.all_reduce(bucket.buffer(), async_op=True)
    return work.get_future().then(lambda future: future.value()[0])


@contextmanager
def joined() -> Iterator[World]:
    """Join the processes that `torchrun` started, over NCCL on GPUs and Gloo on CPUs; alone without it."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield current()
        return
    cuda = torch.cuda.is_available()
    if cuda:
        local = int(os.environ["LOCAL_RANK"])
        if local >= torch.cuda.device_count():
            raise UserError(
                f"this machine has {torch.cuda.device_count()} GPUs, too few for one per process; "
                "lower --nproc-per-node"
            )
        torch.cuda.set_device(local)
    dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")
    try:
        yield current()
        dist.barrier()  # nobody leaves while another still talks
    finally:
        dist.destroy_process_group()


def _numbers(part: RouterStats) -> list[Tensor]:
    dropped = part.z.new_zeros(()) if part.dropped is None else part.dropped.to(part.z.dtype)
    return [part.z, part.entropy, part.top_mass, dropped]


def _unpacked(part: RouterStats, row_S: Tensor) -> RouterStats:
    experts = len(part.count_E)
    return replace(
        part,
        tokens=int(row_S[-1]),
        count_E=row_S[:experts].to(part.count_E.dtype),
        prob_E=row_S[experts : 2 * experts].to(part.prob_E.dtype),
        z=row_S[-5].to(part.z.dtype),
        entropy=row_S[-4].to(part.entropy.dtype),
        top_mass=row_S[-3].to(part.top_mass.dtype),
        dropped=None if part.dropped is None else row_S[-2].to(part.dropped.dtype),
    )
