"""GISTEmbed: what a guide holds nearer than the positive is no negative, and gets no gradient."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from conftest import MakeModel, NewModel
from function_encoder import FunctionEncoder
from moembed.losses.contrastive import info_nce, symmetric_info_nce
from moembed.losses.guided import guided, nearer_than_positive
from moembed.losses.negatives import Duplicates
from moembed.training.contrastive.batch import SourceFormat, prepare, with_guide
from moembed.training.contrastive.guide import Guide
from moembed.training.contrastive.settings import ContrastiveConfig, GuideConfig
from moembed.types import Pair
from training_runs import metrics, run, settings


def unit(rows: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(rows, 4, generator=generator), dim=-1)


@given(st.integers(2, 6), st.integers(0, 4), st.integers(0, 20), st.sampled_from([0.0, 0.1]), st.booleans())
def test_the_losses_are_those_of_the_mask_as_a_matrix(
    queries: int, more: int, seed: int, margin: float, relative: bool
) -> None:
    """Duplicates and guide together, forward and mirrored."""
    generator = torch.Generator().manual_seed(seed)
    own_Q = torch.arange(queries)
    text_Q, text_N = (torch.randint(4, (n,), generator=generator) for n in (queries, queries + more))
    known = Duplicates.of(text_Q, text_N, own_Q)
    guide_QM, guide_NM = unit(queries, seed + 50), unit(queries + more, seed + 90)
    mask = guided(known, guide_QM, guide_NM, margin, relative, mirrored=True)

    score_QN = guide_QM @ guide_NM.T
    positive_Q1 = score_QN.diagonal()[:, None]
    bound_Q1 = positive_Q1 - margin * (positive_Q1.abs() if relative else 1)
    plain_QN = score_QN > bound_Q1
    plain_QN[known.true_entries(own_Q)] = True
    query_QM, document_NM = unit(queries, seed), unit(queries + more, seed + 1)
    found = info_nce(query_QM, document_NM, own_Q, mask)
    assert torch.allclose(found, info_nce(query_QM, document_NM, own_Q, plain_QN))

    bound_1Q = score_QN.diagonal() - margin * (score_QN.diagonal().abs() if relative else 1)
    back_QQ = bound_1Q[:, None] < score_QN[:, :queries].T
    back_QQ[known.mirror().true_entries(own_Q)] = True
    forward, backward = found, info_nce(document_NM[:queries], query_QM, own_Q, back_QQ)
    both = symmetric_info_nce(query_QM, document_NM, own_Q, mask)
    assert torch.allclose(both, (forward + backward) / 2, atol=1e-6)


def test_planted_duplicates_get_no_gradient() -> None:
    """Near copies of a positive: plain InfoNCE pushes them away, guided InfoNCE leaves them alone."""
    query_QM, document_NM, own_Q = unit(3, 1), unit(4, 2).requires_grad_(), torch.arange(3)
    guide_QM = torch.eye(4)[:3]
    copy = torch.nn.functional.normalize(torch.tensor([[0.99, 0.01, 0.0, 0.0]]), dim=-1)
    guide_NM = torch.cat([torch.tensor([[0.9, 0.0, 0.0, 0.436]]), torch.eye(4)[1:3], copy])
    known = Duplicates.of(torch.arange(3), torch.arange(4), own_Q)
    mask = guided(known, guide_QM, guide_NM, 0.0, False, mirrored=False)
    assert (mask.query_P.tolist(), mask.candidate_P.tolist()) == ([0], [3])

    def gradient(mask_QN: object) -> torch.Tensor:
        one = torch.tensor([1.0, 0.0, 0.0])  # the loss of the first query alone
        loss = info_nce(query_QM, document_NM, own_Q, mask_QN, one)  # type: ignore[arg-type]
        return torch.autograd.grad(loss, document_NM)[0][3]

    assert gradient(mask).abs().max() == 0
    assert gradient(known).abs().max() > 0
    wide, _ = nearer_than_positive(guide_QM, guide_NM, own_Q, margin=0.95)
    assert len(wide) > 1


def judge(texts: list[str], role: str) -> np.ndarray:
    """Texts of one first letter are alike; a document that ends in "!" is less so."""
    rows = [[text[0] == letter for letter in "abc"] + [0.5 * text.endswith("!")] for text in texts]
    found = np.array(rows, dtype=np.float32)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


@pytest.mark.parametrize("cached", [False, True])
def test_a_batch_is_masked_by_any_encoder(make_model: MakeModel, tmp_path: Path, cached: bool) -> None:
    pairs = [
        Pair("a query", "a right!", ("a better", "b other")),
        Pair("b query", "b right!"),
        Pair("c", "c"),
    ]
    calls: list[str] = []

    def counted(texts: list[str], role: str) -> np.ndarray:
        calls.extend(texts)
        return judge(texts, role)

    encoder = FunctionEncoder(counted)
    encoder.dim = 4
    guide = Guide(encoder, GuideConfig(model="any", cache=str(tmp_path) if cached else None))
    model = make_model()
    form = SourceFormat("query", "document", "info_nce")

    def batch(some: Guide | None):  # type: ignore[no-untyped-def]
        config = ContrastiveConfig(steps=1)
        made = prepare(pairs, form, model.tokenizer, config)
        return made if some is None else with_guide(made, some, config.negatives)

    masked = batch(guide)
    # candidates: three documents, then the two hard negatives; each is held nearer than a right one with "!"
    assert list(zip(masked.known.query_P.tolist(), masked.known.candidate_P.tolist(), strict=True)) == [
        (0, 3),
        (1, 4),
    ]
    assert masked.guided == pytest.approx(2 / (3 * 4))
    assert batch(None).guided is None
    assert isinstance(batch(None).known, Duplicates)
    before = len(calls)
    batch(guide)
    assert (len(calls) == before) is cached


def test_a_run_logs_how_much_its_guide_masks(
    new_model: NewModel, make_model: MakeModel, tmp_path: Path
) -> None:
    make_model(seed=4).save_pretrained(tmp_path / "guide")
    guide = {"model": str(tmp_path / "guide"), "cache": str(tmp_path / "v")}
    run(settings(guide=guide, steps=3), new_model(), tmp_path / "guided")
    run(settings(steps=3), new_model(), tmp_path / "plain")
    with_guide, without = metrics(tmp_path / "guided"), metrics(tmp_path / "plain")
    assert all(0 < line["guided_negatives"] < 1 for line in with_guide)
    assert "guided_negatives" not in json.dumps(without)
    assert with_guide[0]["info_nce"] < without[0]["info_nce"]
    assert any((tmp_path / "v").iterdir())
