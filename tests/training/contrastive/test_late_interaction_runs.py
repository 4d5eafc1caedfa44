"""Training by MaxSim: chunks of ragged token vectors give the gradients of one pass; what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from conftest import MakeModel
from moembed.data.sources import Source
from moembed.embedder import Embedder
from moembed.losses.late_interaction import Reduce
from moembed.runs.train import load_recipe
from moembed.training.contrastive.task import ContrastiveTask, Mixture
from moembed.training.parallel import ALONE
from moembed.types import Pair, UserError
from moembed.weights.pooling import PoolingOptions, change_pooling
from training_runs import PAIRS, metrics, run, settings

RECIPE = Path(__file__).parents[3] / "recipes" / "systems" / "late_interaction.yaml"
HARD = [Pair(p.query, p.document, (PAIRS[i - 5].document,) * (i % 2)) for i, p in enumerate(PAIRS[:8])]


def late_model(make_model: MakeModel, include_prompt: bool = False, **changes: Any) -> Embedder:
    options = PoolingOptions(name="tokens", dim=6, include_prompt=include_prompt)
    return Embedder(change_pooling(make_model(**changes).parts(), options))


def task_of(model: Embedder, chunk_tokens: int, **changes: Any) -> ContrastiveTask:
    config = settings(chunk_tokens=chunk_tokens, **changes)
    return ContrastiveTask(config, model, Mixture([Source.from_pairs("some", HARD)]), ALONE)


def by_hand(model: Embedder, pairs: list[Pair], reduce: Reduce, kept: dict[str, int]) -> Tensor:
    """InfoNCE at temperature 0.1 on loops over texts: the definition, with the whole graph in memory."""

    def tokens(text: str, role: str) -> Tensor:
        (row,), _ = model.tokenizer.rows([text], prompt=model.role_prefix(role))
        hidden, _ = model.encoder(torch.tensor(row), [len(row)])
        return F.normalize(model.head(hidden[4])[kept[role] :], dim=-1)

    documents = [p.document for p in pairs] + [text for p in pairs for text in p.negatives]
    document = [tokens(text, "document") for text in documents]
    losses = []
    for i, pair in enumerate(pairs):
        query = tokens(pair.query, "query")
        best = torch.stack([(query @ other.T).amax(1).sum() for other in document])
        score = best / len(query) if reduce == "mean" else best
        known = torch.tensor([text == pair.document and n != i for n, text in enumerate(documents)])
        losses.append(F.cross_entropy((score / 0.1).masked_fill(known, -torch.inf)[None], torch.tensor([i])))
    return torch.stack(losses).mean()


@pytest.mark.parametrize("include_prompt", [True, False])
@pytest.mark.parametrize("reduce", ["mean", "sum"])
def test_cached_gradients_are_those_of_one_pass(
    make_model: MakeModel, include_prompt: bool, reduce: Reduce
) -> None:
    model = late_model(make_model, include_prompt).train()
    loss = {"temperature": 0.1, "maxsim": reduce}
    task = task_of(model, 40, loss=loss)
    batch = task.batch(0)
    assert len(batch.chunks.batches) > 3
    found = task.backward(0, batch)
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()

    prefixes = {
        role: model.tokenizer.prompt_tokens(model.role_prefix(role)) for role in ("query", "document")
    }
    kept = dict.fromkeys(prefixes, 0) if include_prompt else prefixes
    expected = by_hand(model, list(batch.pairs), reduce, kept)
    expected.backward()
    assert found.loss == pytest.approx(expected.item(), rel=1e-5)
    assert any(name.startswith("head.") for name in gradients)
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            scale = max(1.0, float(parameter.grad.abs().max()))
            torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-3, atol=5e-5 * scale)

    whole = task_of(model, 100_000, loss=loss)  # the same in one chunk
    assert task.loss(batch) == pytest.approx(whole.loss(whole.batch(0)), rel=1e-5)


def test_a_run_learns_and_its_model_is_read_again(make_model: MakeModel, tmp_path: Path) -> None:
    model = late_model(make_model, num_layers=2)
    config = settings(steps=12, held_out=0.2, evaluate_every=6, loss={"temperature": 0.1, "maxsim": "mean"})
    run(config, model, tmp_path / "run")
    lines = metrics(tmp_path / "run")
    losses = [line["info_nce"] for line in lines if "info_nce" in line]
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])
    assert any("held_out_loss" in line for line in lines)
    read = Embedder.from_pretrained(tmp_path / "run" / "model")
    assert read.pooling.config.per_token
    assert read.encode_tokens(["worms"]).vector_TM.shape[1] == 6


def test_what_looks_at_vectors_of_texts_is_refused(make_model: MakeModel) -> None:
    model = late_model(make_model, num_layers=1)
    evaluate = {"evaluate": {"tasks": ["animals"], "every_steps": 2}}
    terms = ({"directions": ["query_to_query"]}, {"mixing": {"kind": "pair"}}, {"queue": 8})
    for changes in [*({"loss": term} for term in terms), evaluate]:
        with pytest.raises(UserError, match="needs one vector of a text, and pooling 'tokens'"):
            task_of(model, 60, **changes)
    with pytest.raises(UserError, match=r"loss\.maxsim is of token vectors, .* 'mean'"):
        task_of(make_model(num_layers=1), 60, loss={"maxsim": "sum"})
    with pytest.raises(UserError, match="raise document_length"):
        task_of(model, 60, document_length=3).batch(0)


def test_the_recipe_is_one() -> None:
    recipe = load_recipe(RECIPE, [])
    assert recipe.pooling is not None
    assert (recipe.pooling.name, recipe.pooling.dim, recipe.loss.maxsim) == ("tokens", 128, "mean")
