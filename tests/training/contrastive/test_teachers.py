"""Score distillation: the student's ranking of candidates goes to that of its teachers."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sentence_transformers.sentence_transformer.losses import DistillKLDivLoss

from conftest import MakeModel, NewModel
from function_encoder import FunctionEncoder
from moembed.data.sources import Source
from moembed.embedder import Embedder
from moembed.losses.contrastive import info_nce
from moembed.losses.score_distillation import min_max, score_kl, teacher_distribution, z_scores
from moembed.training.contrastive.settings import ContrastiveConfig, ScoreDistillConfig, SourceOptions
from moembed.training.contrastive.task import ContrastiveTask, Mixture
from moembed.training.contrastive.task_types import task_notes
from moembed.training.contrastive.teachers import CachedEncoder, Teachers
from moembed.training.parallel import ALONE
from moembed.types import UserError
from training_runs import PAIRS, assert_same_weights, metrics, run, settings

HARD = [
    replace(pair, negatives=(PAIRS[i - 3].document, PAIRS[i - 5].document)) for i, pair in enumerate(PAIRS)
]


def unit(rows: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(rows, 4, generator=generator), dim=-1)


@given(st.integers(2, 5), st.integers(0, 4), st.integers(0, 30), st.sampled_from([0.02, 0.5]))
def test_the_loss_is_the_divergence_of_two_distributions(
    queries: int, more: int, seed: int, t: float
) -> None:
    """Against torch's own, query by query, on the candidates that are ranked; other ones have no gradient."""
    query_QM, document_NM = unit(queries, seed), unit(queries + more, seed + 1).requires_grad_()
    among_QN = torch.rand(queries, queries + more, generator=torch.Generator().manual_seed(seed)) < 0.6
    among_QN[:, :2] = True
    among_QN[:, -1] = len(document_NM) == 2
    scores = [unit(queries, seed + k) @ unit(queries + more, seed + k + 9).T for k in (2, 3)]
    target_QN = teacher_distribution(scores, among_QN, 0.7)
    found = score_kl(
        query_QM, document_NM, torch.arange(queries), target_QN=target_QN, among_QN=among_QN, temperature=t
    )
    plain = []
    for q, query in enumerate(query_QM):
        chosen = among_QN[q].nonzero()[:, 0]
        own = [(s[q, chosen] - s[q, chosen].mean()) / s[q, chosen].std(unbiased=False) for s in scores]
        teacher = torch.softmax((own[0] + own[1]) / 2 / 0.7, 0)
        assert torch.allclose(target_QN[q, chosen], teacher, atol=1e-5)
        student = torch.log_softmax(document_NM[chosen] @ query / t, 0)
        plain.append(torch.nn.functional.kl_div(student, teacher, reduction="sum"))
    assert found.item() == pytest.approx(torch.stack(plain).mean().item(), rel=1e-3, abs=1e-5)
    (gradient,) = torch.autograd.grad(found, document_NM)
    assert torch.equal(gradient[~among_QN.any(0)], torch.zeros_like(gradient[~among_QN.any(0)]))
    assert torch.isfinite(gradient).all()


def test_lists_of_own_candidates_are_those_of_sentence_transformers() -> None:
    class Student(torch.nn.Module):
        def forward(self, features: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            return {"sentence_embedding": features["x"]}

    query_QM, document_NM = unit(3, 1), unit(9, 2)
    owner_N = torch.arange(9) % 3
    among_QN = owner_N[None] == torch.arange(3)[:, None]
    labels = torch.rand(3, 3, generator=torch.Generator().manual_seed(0))
    scores_QN = torch.zeros(3, 9)
    scores_QN[among_QN] = labels.flatten()
    theirs = DistillKLDivLoss(Student(), temperature=0.5)  # type: ignore[arg-type]
    features = [{"x": query_QM}, *({"x": document_NM[3 * k : 3 * k + 3]} for k in range(3))]
    target_QN = teacher_distribution([scores_QN], among_QN, 0.5, "none")
    ours = score_kl(
        query_QM, document_NM, torch.arange(3), target_QN=target_QN, among_QN=among_QN, temperature=0.5
    )
    assert float(ours) * 0.5**2 == pytest.approx(float(theirs(features, labels)), rel=1e-5)


def test_scores_are_brought_to_one_scale_query_by_query() -> None:
    """A teacher whose scores lie in a narrow band counts as much as one with a wide band; ties stay ties."""
    score_QN = torch.tensor([[0.1, 0.2, 0.6, 9.0], [0.3, 0.3, 0.3, 9.0]])
    among_QN = torch.tensor([[True, True, True, False]] * 2)
    for scale in (z_scores, min_max):
        assert torch.allclose(
            scale(score_QN, among_QN)[:, :3], scale(5 * score_QN - 7, among_QN)[:, :3], atol=1e-5
        )
        assert torch.equal(scale(score_QN, among_QN)[1], torch.zeros(4))
    assert min_max(score_QN, among_QN)[0, :3].tolist() == pytest.approx([0, 0.2, 1])
    kept = teacher_distribution([score_QN], among_QN, 1.0)
    assert torch.equal(kept[:, 3], torch.zeros(2))
    assert kept.sum(1).tolist() == pytest.approx([1, 1])


@pytest.mark.parametrize("candidates", ["batch", "own"])
def test_a_step_is_loss_plus_weighted_divergence(
    new_model: NewModel, make_model: MakeModel, candidates: str
) -> None:
    """Exact over chunks, two teachers of other widths than the student's, against plain autograd."""
    config = settings(negatives=2, chunk_tokens=40, loss={"balance": 0.0})
    model = new_model()
    task = ContrastiveTask(config, model, Mixture([Source.from_pairs("tiny", HARD)]), ALONE)
    model.eval()
    teachers = [make_model(seed=5, width=8, ffn_width=12), make_model(seed=6)]
    own = ScoreDistillConfig.model_validate({"teachers": ["a", "b"], "weight": 0.3, "candidates": candidates})
    task.teachers = Teachers(teachers, own)
    batch = task.batch(0)
    assert len(batch.chunks.batches) > 1
    model.zero_grad()
    terms = task.backward(0, batch)
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    assert batch.distilled is not None
    assert bool(batch.distilled.among_QN.all()) == (candidates == "batch")
    assert (
        batch.distilled.among_QN.sum(1).tolist() == [len(batch.owner_N) if candidates == "batch" else 3] * 8
    )

    pairs = batch.pairs
    documents = [pair.document for pair in pairs] + [text for pair in pairs for text in pair.negatives]
    model.zero_grad()
    query_QM, document_NM = (
        _embed(model, [p.query for p in pairs], "query"),
        _embed(model, documents, "document"),
    )
    contrastive = info_nce(query_QM, document_NM, torch.arange(8), batch.known)
    given = batch.distilled
    options = {"target_QN": given.target_QN, "among_QN": given.among_QN, "temperature": 0.02}
    kl = score_kl(query_QM, document_NM, torch.arange(8), **options)
    (contrastive + 0.3 * kl).backward()
    assert terms.log["info_nce"] == pytest.approx(float((contrastive + 0.3 * kl).detach()), rel=1e-4)
    assert terms.log["score_kl"] == pytest.approx(float(kl.detach()), rel=1e-4)
    for name, p in model.named_parameters():
        if p.grad is not None:
            torch.testing.assert_close(found[name], p.grad, atol=1e-4, rtol=1e-3)


def test_off_is_plain_and_on_is_another_run(
    new_model: NewModel, make_model: MakeModel, tmp_path: Path
) -> None:
    make_model(seed=5).save_pretrained(tmp_path / "teacher")
    run(settings(steps=3), new_model(), tmp_path / "plain")
    run(settings(steps=3, distill=None), new_model(), tmp_path / "off")
    assert_same_weights(tmp_path / "plain/model", tmp_path / "off/model")
    teacher = str(tmp_path / "teacher")
    for folder in ("on", "again"):
        own = {"teachers": teacher, "cache": str(tmp_path / "cache")}
        run(settings(steps=3, distill=own), new_model(), tmp_path / folder)
    assert_same_weights(tmp_path / "on/model", tmp_path / "again/model")
    on, plain = metrics(tmp_path / "on"), metrics(tmp_path / "plain")
    assert on[0]["info_nce"] == pytest.approx(plain[0]["info_nce"] + on[0]["score_kl"], rel=1e-4)
    assert "score_kl" not in plain[0]


def test_own_candidates_need_negatives(make_model: MakeModel) -> None:
    with pytest.raises(ValueError, match="negatives is 0"):
        ContrastiveConfig.model_validate(
            {"steps": 1, "negatives": 0, "distill": {"teachers": "a", "candidates": "own"}}
        )
    config = settings(distill={"teachers": "a", "candidates": "own"})
    with pytest.raises(UserError, match=r"has no hard negatives: .* or set distill\.candidates=batch"):
        task_notes(Source.from_pairs("bare", PAIRS), SourceOptions(), config)
    # pairs without any are told of, and end no run when a batch has no others
    assert config.distill is not None
    few = Source.from_pairs("few", [*PAIRS, HARD[0]])
    (note,) = task_notes(few, SourceOptions(), config)
    assert "28 of 29 pairs have no hard negative, so there is nothing to rank in them" in note
    given = Teachers([make_model()], config.distill).judge(["a", "b"], ["c", "d"], torch.arange(2))
    assert torch.equal(given.target_QN, torch.eye(2))


def _embed(model: Embedder, texts: list[str], role: str) -> torch.Tensor:
    from moembed.packing import pack

    return model(pack(model.rows(texts, role=role)[0])).vector_BM


def test_threads_fill_a_cache_one_after_the_other(tmp_path: Path) -> None:
    """Batches are made in ``workers`` threads, and a cache that two of them fill gives other vectors."""
    inside, alone = threading.Lock(), []

    def encode(texts: list[str], role: str) -> np.ndarray:
        alone.append(inside.acquire(blocking=False))
        time.sleep(0.01)
        if alone[-1]:
            inside.release()
        return np.array([[float(text)] for text in texts], dtype=np.float32)

    encoder = CachedEncoder(FunctionEncoder(encode), str(tmp_path))
    asked = [[str(number) for number in range(start, start + 6)] for start in range(0, 40, 4)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda texts: encoder.vectors(texts, "query")[:, 0].tolist(), asked))
    assert found == [list(map(float, texts)) for texts in asked]
    assert len(alone) == 10
    assert all(alone)
