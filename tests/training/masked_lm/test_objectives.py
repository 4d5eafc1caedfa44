"""Several objectives in one run: each sequence has one, and the loss is the sum of their means by share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend

from conftest import MakeModel
from moembed.config import validate
from moembed.data.text import Text
from moembed.embedder import Embedder
from moembed.families.flat import FlatMoE
from moembed.moe.router import RouterConfig
from moembed.runs.pretrain import load_pretraining
from moembed.training.masked_lm import task as module
from moembed.training.masked_lm.corpus import open_corpus
from moembed.training.masked_lm.heads import HEAD_FILE, Heads
from moembed.training.masked_lm.masking import NOT_CHOSEN, Vocabulary, mask, next_tokens
from moembed.training.masked_lm.objective import OBJECTIVES, Guesses, backward, choose, plans, prepare
from moembed.training.masked_lm.settings import MaskedLMConfig, RouterLossConfig
from moembed.training.masked_lm.train import train_masked_lm
from moembed.types import UserError
from training_runs import assert_same_weights, metrics

MIX = {"mlm": 1, "span": 1, "causal": 2, "retromae": 1}
TEXTS = ["the mole digs under an owl", "owls hunt voles at night", "moles eat worms", "what does a mole eat"]


def settings(**changes: Any) -> MaskedLMConfig:
    values = {
        "steps": 4, "batch_size": 6, "sequence_length": 12, "chunk_tokens": 40, "precision": "float32",
        "save_every": 2, "optim": {"learning_rate": 5e-3, "warmup_steps": 1.0},
        "held_out": {"share": 0.1, "every": 4},
    }  # fmt: skip
    return validate(MaskedLMConfig, values | changes)


@pytest.fixture
def train(make_model: MakeModel, backend: Backend) -> Callable[..., None]:
    def run(config: MaskedLMConfig, out: Path, resume: bool = False, **changes: Any) -> None:
        model = make_model(num_layers=2, **changes)
        heads = heads_of(model, config)
        texts = [Text("en", text) for text in TEXTS * 12]
        corpus = open_corpus(out / "tokens", iter([texts]), backend, 12, True, "texts")
        train_masked_lm(config, model, heads, corpus, out, resume)

    return run


def heads_of(model: Embedder, config: MaskedLMConfig) -> Heads:
    decoder = any(plan.decoder_rate is not None for plan in plans(config).values())
    return Heads(model.encoder.spec, model.tokenizer.backend.get_vocab_size(), decoder)


def rows_of(model: Embedder) -> dict[int, np.ndarray]:
    return {number: np.array(row) for number, row in enumerate(model.tokenizer.rows(TEXTS * 2)[0])}


# ---- one objective -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mix", "alone"), [({"mlm": 1, "span": 0, "causal": 0}, "mlm"), ({"span": 0.3}, "span")]
)
def test_a_mix_of_one_is_that_objective_bit_for_bit(
    mix: dict[str, float], alone: str, train: Callable[..., None], tmp_path: Path
) -> None:
    changes = {"dropout": 0.1, "moe": FlatMoE(layers=(1,), num_experts=4, router=RouterConfig(jitter=0.1))}
    train(settings(objectives=mix), tmp_path / "mix", **changes)
    train(settings(objective=alone), tmp_path / "alone", **changes)
    assert metrics(tmp_path / "mix") == metrics(tmp_path / "alone")
    assert_same_weights(tmp_path / "mix" / "model", tmp_path / "alone" / "model")
    heads = [(tmp_path / name / HEAD_FILE).read_bytes() for name in ("mix", "alone")]
    assert heads[0] == heads[1]


def test_next_tokens_are_guessed_from_those_before_them(make_model: MakeModel) -> None:
    model = make_model(num_layers=2)
    vocabulary = Vocabulary.of(model.tokenizer.backend)
    row = rows_of(model)[0]
    input_S, target_S = next_tokens(row, vocabulary)
    np.testing.assert_array_equal(input_S, row)
    np.testing.assert_array_equal(target_S[:-2], row[1:-1])  # the last but one would guess [SEP]
    assert (target_S[-2:] == NOT_CHOSEN).all()

    # in a causal pass no state looks ahead, and it is that of a model whose spec is causal
    token_T = torch.from_numpy(row)
    (state_TD,) = model.encoder(token_T, [len(row)], causal=True)[0].values()
    for length in range(1, len(row)):
        (part_TD,) = model.encoder(token_T[:length], [length], causal=True)[0].values()
        torch.testing.assert_close(part_TD, state_TD[:length])
    spec = model.encoder.spec.with_layers(
        lambda _, layer: layer.model_copy(
            update={"attention": layer.attention.model_copy(update={"causal": True})}
        )
    )
    twin = type(model.encoder)(spec).eval()
    twin.load_state_dict(model.encoder.state_dict())
    torch.testing.assert_close(twin(token_T, [len(row)])[0][2], state_TD, rtol=0, atol=0)
    (whole_TD,) = model.encoder(token_T, [len(row)])[0].values()
    assert not torch.allclose(whole_TD[0], state_TD[0])


def test_the_recipe_parses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOEMBED_DATA", str(tmp_path))
    recipe = Path(__file__).parents[3] / "recipes" / "systems" / "objectives.yaml"
    assert load_pretraining(recipe, []).shares == {"mlm": 0.5, "span": 0.25, "causal": 0.25}


# ---- several -------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk_tokens", [1, 30, 1000])
def test_the_loss_is_the_sum_of_the_means_by_share(chunk_tokens: int, make_model: MakeModel) -> None:
    """Against one padded pass over each sequence alone, written out; in chunks of one text, several, all."""
    config = settings(objectives=MIX, chunk_tokens=chunk_tokens)
    model = make_model(num_layers=2)
    heads, vocabulary = heads_of(model, config), Vocabulary.of(model.tokenizer.backend)
    rows, names = rows_of(model), ["mlm", "causal", "span", "retromae", "causal", "mlm", "causal", "span"]
    chunks = []
    for name, plan in plans(config).items():
        some = {number: row for number, row in rows.items() if names[number] == name}
        chunks += prepare(some, vocabulary, plan, chunk_tokens, [0, 1])
    found = backward(Guesses(model, heads), chunks, RouterLossConfig(), "cpu", torch.float32)
    parameters = [*model.parameters(), *heads.parameters()]
    gradients = [p.grad for p in parameters]

    model.encoder.attention_backend = "padded"
    sums: dict[str, list[torch.Tensor]] = {name: [] for name in names}
    for number, row in rows.items():
        name = names[number]
        rng = np.random.default_rng([0, 1, number])
        kind = OBJECTIVES[name].masking
        pair = next_tokens(row, vocabulary) if kind is None else mask(row, vocabulary, 0.3, kind, rng)
        input_T, target_T = map(torch.from_numpy, pair)
        (state_TD,) = model.encoder(input_T, [len(row)], causal=kind is None)[0].values()
        losses = [cross_entropy(model, heads, state_TD, target_T)]
        if OBJECTIVES[name].decoder:
            assert heads.decoder is not None
            input_T, target_T = map(torch.from_numpy, mask(row, vocabulary, 0.5, str(kind), rng))
            embedded_TD = model.encoder(input_T, [len(row)], depths=[0])[0][0]
            vector_BD = model.pooling(state_TD, [len(row)])
            decoded_TD = heads.decoder(embedded_TD, vector_BD, [len(row)])
            losses.append(cross_entropy(model, heads, decoded_TD, target_T))
        sums[name].append(torch.cat(losses))
    means = {name: torch.cat(some).mean() for name, some in sums.items() if name != "retromae"}
    count = prepare({3: rows[3]}, vocabulary, plans(config)["retromae"], 99, [0, 1])[0].encoder.guessed
    (rebuilt_T,) = sums["retromae"]  # one sequence: the encoder's tokens, then the decoder's
    means["retromae"] = rebuilt_T[:count].mean()
    decoder = rebuilt_T[count:].mean() / 8
    shares = Counter(names)
    loss = sum(mean * (shares[name] / 8) for name, mean in means.items()) + decoder
    assert isinstance(loss, torch.Tensor)
    assert found.loss == pytest.approx(loss.item(), rel=1e-5)
    assert found.by_objective == pytest.approx({name: mean.item() for name, mean in means.items()}, rel=1e-5)
    assert found.decoder == pytest.approx(decoder.item(), rel=1e-5)
    wanted = torch.autograd.grad(loss, parameters, allow_unused=True)
    for ours, theirs in zip(gradients, wanted, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def cross_entropy(
    model: Embedder, heads: Heads, state_TD: torch.Tensor, target_T: torch.Tensor
) -> torch.Tensor:
    chosen_T = target_T != NOT_CHOSEN
    score_TV = heads.mlm(state_TD[chosen_T]) @ model.encoder.word.weight.T + heads.mlm.bias_V
    return F.cross_entropy(score_TV, target_T[chosen_T], reduction="none")


def test_a_killed_mix_goes_on_to_the_bit_and_tells_its_losses(
    train: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(objectives=MIX)
    train(config, tmp_path / "whole", dropout=0.1)
    with monkeypatch.context() as patch:
        calls = iter(range(1, 100))

        def stopped(*arguments: Any) -> Any:
            if next(calls) == 4:
                raise KeyboardInterrupt
            return backward(*arguments)

        patch.setattr(module, "backward", stopped)
        with pytest.raises(KeyboardInterrupt):
            train(config, tmp_path / "cut", dropout=0.1)
    train(config, tmp_path / "cut", resume=True, dropout=0.1)
    lines = metrics(tmp_path / "whole")
    assert metrics(tmp_path / "cut") == lines
    assert_same_weights(tmp_path / "cut" / "model", tmp_path / "whole" / "model")
    told = [set(line["by_objective"]) for line in lines]
    assert set.union(*told) == set(MIX)
    assert len({frozenset(some) for some in told}) > 1  # chance decides at every step
    for line in lines:
        means = line["by_objective"].values()
        assert min(means) - 1e-4 <= line["mlm"] <= max(means) + 1e-4
    # what is held out is guessed as in a run of mlm alone
    train(settings(), tmp_path / "plain", dropout=0.1)
    plain = metrics(tmp_path / "plain")
    assert plain[0]["held_out_before"] == lines[0]["held_out_before"]
    assert "by_objective" not in plain[0]


@given(st.dictionaries(st.sampled_from(list(OBJECTIVES)), st.floats(0.1, 3), min_size=1), st.integers(0, 99))
@examples(max_examples=20)
def test_every_objective_has_its_share(mix: dict[str, float], seed: int) -> None:
    shares = settings(objectives=mix).shares
    drawn = Counter(choose(shares, [seed, 13], number) for number in range(600))
    assert sum(shares.values()) == pytest.approx(1)
    for name, share in shares.items():
        assert drawn[name] / 600 == pytest.approx(share, abs=0.1)
    assert [choose(shares, [seed, 13], 5)] * 3 == [choose(shares, [seed, 13], 5) for _ in range(3)]


# ---- bad input -----------------------------------------------------------------------------------


def test_what_does_not_fit_together_is_one_sentence(train: Callable[..., None], tmp_path: Path) -> None:
    for changes, sentence in (
        ({"objective": "span", "objectives": {"mlm": 1}}, "leave objective 'span' out"),
        ({"objectives": {"mlm": 0}}, "objectives gives every objective 0"),
        ({"objectives": {}}, "objectives gives every objective 0"),
        ({"objectives": {"mlm": -1}}, "objectives.mlm"),
        ({"objectives": {"prefix": 1}}, "objectives.prefix"),
    ):
        with pytest.raises(UserError, match=sentence):
            settings(**changes)
    looking = [{"kind": "expert_choice"}, {"kind": "soft_merging"}, {"capacity_factor": 1.0}]
    for number, router in enumerate(RouterConfig.model_validate(values) for values in looking):
        moe = FlatMoE(layers=(1,), num_experts=4, router=router)
        with pytest.raises(UserError, match=r"router of layer 1 .* looks at the whole text"):
            train(settings(objectives={"mlm": 1, "causal": 1}), tmp_path / str(number), moe=moe)
        train(settings(objectives={"mlm": 1, "span": 1}, steps=1), tmp_path / f"{number} masked", moe=moe)
