"""A queue of past vectors: the loss of a batch with these columns, in bounded memory, resumed exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from conftest import MakeModel, NewModel
from moembed.data.sources import Source
from moembed.losses.contrastive import info_nce
from moembed.training.contrastive.task import ContrastiveTask, Mixture
from moembed.training.parallel import ALONE
from moembed.types import Pair
from training_runs import PAIRS, assert_same_weights, interrupt_at, metrics, run, settings

# every text twice, so that the queue holds answers; one hard negative each
REPEATED = [Pair(p.query, p.document, (PAIRS[i - 5].document,)) for i, p in enumerate(PAIRS[:12])] * 2


def task_of(make_model: MakeModel, **changes: Any) -> ContrastiveTask:
    config = settings(batch_size=4, **changes)
    return ContrastiveTask(config, make_model(), Mixture([Source.from_pairs("twice", REPEATED)]), ALONE)


@pytest.mark.parametrize("kind", ["info_nce", "symmetric_info_nce"])
def test_the_loss_is_that_of_a_batch_with_these_columns(kind: str, make_model: MakeModel) -> None:
    """The last two batches and a half are in a queue of 20; answers among them are masked by their text."""
    task = task_of(make_model, loss={"queue": 20, "kind": kind, "temperature": 0.1})
    past: list[tuple[str, torch.Tensor]] = []
    masked = 0
    for step in range(6):
        batch = task.batch(step)
        rows = {4: F.normalize(torch.randn(batch.chunks.rows, 16, generator=seeded(step)), dim=-1)}
        rows[4].requires_grad_()
        found = task.objective(rows, batch)
        gradient = torch.autograd.grad(found, rows[4])[0]

        texts = [p.document for p in batch.pairs] + [t for p in batch.pairs for t in p.negatives]
        query_QM, document_NM = rows[4][:4], torch.cat([rows[4][4:], *(v[None] for _, v in past[-20:])])
        candidates = texts + [text for text, _ in past[-20:]]
        answers = [{p.document for p in batch.pairs if p.query == q.query} for q in batch.pairs]
        mask_QN = torch.tensor([[text in right for text in candidates] for right in answers])
        own_Q = torch.arange(4)
        expected = info_nce(query_QM, document_NM, own_Q, mask_QN, temperature=0.1)
        if kind == "symmetric_info_nce":
            back = info_nce(document_NM[:4], query_QM, own_Q, mask_QN[:, :4].T, temperature=0.1)
            expected = (expected + back) / 2
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(gradient, torch.autograd.grad(expected, rows[4])[0], rtol=1e-4, atol=1e-6)
        masked += int(mask_QN[:, len(texts) :].sum())
        past += list(zip(texts, rows[4][4:].detach(), strict=True))
        task.objective.after_step()
    assert masked > 3
    queue = task.objective.queue
    assert queue is not None
    assert (queue.filled, queue.vectors[4].shape) == (20, (20, 16))


def test_a_queue_that_comes_in_late_holds_its_newest(make_model: MakeModel) -> None:
    """Six steps of four documents, four hard negatives: it fills from the first, and is seen later."""
    schedule = {0: 0, 0.4: 0, 0.8: 20}
    task = task_of(make_model, steps=6, loss={"queue": 20}, schedules={"loss.queue": schedule})
    past: list[torch.Tensor] = []
    for step, newest in enumerate([0, 0, 0, 5, 13, 20]):
        batch = task.batch(step)
        rows = F.normalize(torch.randn(batch.chunks.rows, 16, generator=seeded(step)), dim=-1)
        shape = task.at(step).loss
        assert shape.queue == newest
        assert task.objective.queue is not None
        joined, known, owner_N = task.objective.queue.join({4: rows[4:]}, batch, shape.queue)
        expected = torch.stack([*rows[4:], *past[len(past) - min(newest, len(past)) :]])
        torch.testing.assert_close(joined[4], expected)
        assert known.text_N.shape == owner_N.shape == (len(expected),)
        past = (past + list(rows[4:]))[-20:]
        task.objective.queue.push()
    # the loss takes as many as the step says
    late, none = task.at(5).loss, task.at(0).loss
    assert task.objective({4: rows}, batch, late) > task.objective({4: rows}, batch, none)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_batch_larger_than_the_queue_leaves_its_last_vectors(make_model: MakeModel) -> None:
    task = task_of(make_model, loss={"queue": 3})
    batch = task.batch(0)
    rows = F.normalize(torch.randn(batch.chunks.rows, 16, generator=seeded(0)), dim=-1)
    task.objective({4: rows}, batch)
    task.objective.after_step()
    queue = task.objective.queue
    assert queue is not None
    assert queue.filled == 3
    assert sorted(map(tuple, queue.vectors[4].tolist())) == sorted(map(tuple, rows[-3:].tolist()))
    task.objective.after_step()  # a step without a loss pushes nothing
    assert queue.next == 0


def test_a_run_with_a_queue_resumes_bit_for_bit(
    new_model: NewModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With depths, prefixes, dropout, jitter and chunks; the log counts what the queue adds."""
    loss = {"queue": 20, "depths": {1: 0.5, 2: 1.0}, "matryoshka": {"dims": [16, 8]}, "mask": {"margin": 2}}
    changes: dict[str, Any] = {"steps": 6, "loss": loss}
    run(settings(**changes), new_model(), tmp_path / "whole")
    with monkeypatch.context() as patch:
        interrupt_at(6, patch, lambda: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(settings(**changes), new_model(), tmp_path / "cut")
    run(settings(**changes), new_model(), tmp_path / "cut", resume=True)
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "cut")
    assert_same_weights(tmp_path / "whole" / "model", tmp_path / "cut" / "model")
    counts = [line["effective_negatives"] for line in metrics(tmp_path / "whole")]
    assert counts[:2] == [7, 15]
    assert all(20 < count <= 27 for count in counts[3:])  # of 27, less the answers in the queue
