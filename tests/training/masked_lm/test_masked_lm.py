"""Pretraining learns, resumes to the bit, looks at texts held out, and says what is wrong."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from tokenizers import Tokenizer as Backend

from conftest import MakeModel
from moembed.data.text import Text
from moembed.embedder import Embedder
from moembed.families.flat import FlatMoE
from moembed.folder.read import read_folder
from moembed.moe.router import RouterConfig
from moembed.training.loop import Trained
from moembed.training.masked_lm import task as module
from moembed.training.masked_lm.corpus import Language, open_corpus
from moembed.training.masked_lm.heads import HEAD_FILE, Heads
from moembed.training.masked_lm.held_out import HeldOutGuesses
from moembed.training.masked_lm.masking import Vocabulary
from moembed.training.masked_lm.objective import OBJECTIVES, Guesses, MaskingPlan, backward, measure, prepare
from moembed.training.masked_lm.settings import MaskedLMConfig, RouterLossConfig
from moembed.training.masked_lm.train import train_masked_lm
from moembed.types import UserError
from training_runs import assert_same_weights, checkpoints, metrics

ENGLISH = [
    "the mole digs under an owl",
    "owls hunt voles at night",
    "moles eat worms",
    "what does a mole eat",
]
OTHER = ["long is the night", "wide is the meadow and the owl is long"]
Corpus = Callable[[Path], "list[Language]"]


@pytest.fixture
def corpus(backend: Backend) -> Corpus:
    def make(folder: Path) -> list[Language]:
        texts = [Text("en", text) for text in ENGLISH * 12] + [Text("xx", text) for text in OTHER * 12]
        return open_corpus(folder / "tokens", iter([texts]), backend, 12, True, "texts")

    return make


def settings(**changes: Any) -> MaskedLMConfig:
    optim = {"learning_rate": 5e-3, "warmup_steps": 2.0}
    held_out = {"share": 0.1, "every": 4}
    values = {"steps": 6, "batch_size": 6, "sequence_length": 12, "chunk_tokens": 40, "precision": "float32"}
    return MaskedLMConfig.model_validate(
        values | {"optim": optim, "held_out": held_out, "save_every": 2} | changes
    )


def fresh(make_model: MakeModel, config: MaskedLMConfig, **changes: Any) -> tuple[Embedder, Heads]:
    model = make_model(num_layers=2, **changes)
    decoder = OBJECTIVES[config.objective].decoder
    return model, Heads(model.encoder.spec, model.tokenizer.backend.get_vocab_size(), decoder)


def run(
    config: MaskedLMConfig, make_model: MakeModel, corpus: Corpus, folder: Path, resume: bool = False,
    **changes: Any,
) -> Trained:  # fmt: skip
    model, heads = fresh(make_model, config, **changes)
    return train_masked_lm(config, model, heads, corpus(folder), folder, resume)


# ---- learning ------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", sorted(OBJECTIVES))
@pytest.mark.parametrize("position", ["absolute", "rope"])
def test_every_objective_learns_the_held_out_texts(
    objective: str, position: str, make_model: MakeModel, corpus: Corpus, tmp_path: Path
) -> None:
    config = settings(steps=60, save_every=100, objective=objective)
    trained = run(config, make_model, corpus, tmp_path, position=position)
    assert (trained.steps, trained.pairs, trained.stopped_by_user) == (60, 360, False)
    lines = metrics(tmp_path)
    first, last = lines[0], lines[-1]
    for language in ("en", "xx"):
        # masked tokens are looked at, whatever is learned, and next tokens teach little of them
        if objective != "causal":
            assert last["held_out"][language] < 0.8 * first["held_out_before"][language]
    early, late = (sum(line["accuracy"] for line in part) / 10 for part in (lines[:10], lines[-10:]))
    assert early < 0.1 < late
    assert (last["decoder"] > 0) == OBJECTIVES[objective].decoder
    assert last["decoder"] <= 0.9 * first["decoder"]
    model = Embedder.from_pretrained(tmp_path, device="cpu")
    assert model.encode(["mole"]).shape == (1, 16)
    assert not (tmp_path / "model" / HEAD_FILE).exists()
    assert (tmp_path / HEAD_FILE).exists()


def test_experts_are_balanced_while_pretraining(
    make_model: MakeModel, corpus: Corpus, tmp_path: Path
) -> None:
    moe = FlatMoE(layers=(1,), num_experts=4, router=RouterConfig(jitter=0.1))
    run(settings(router={"balance": 0.1, "z": 0.01}), make_model, corpus, tmp_path, moe=moe)
    for line in metrics(tmp_path):
        assert line["loss"] == pytest.approx(line["mlm"] + line["router_loss"])
        assert line["router_loss"] >= 0.1
        assert sum(line["router"][0]["load"]) == pytest.approx(1, abs=1e-3)


def test_batches_are_of_one_language_in_the_proportions_of_the_exponent(
    make_model: MakeModel, corpus: Corpus, tmp_path: Path
) -> None:
    for exponent in (0.0, 1.0):
        folder = tmp_path / str(exponent)
        run(settings(steps=60, language_exponent=exponent, save_every=100), make_model, corpus, folder)
        sizes = {language.name: len(language) for language in corpus(folder)}
        english = sum(line["source"] == "en" for line in metrics(folder)) / 60
        expected = sizes["en"] ** exponent / sum(size**exponent for size in sizes.values())
        assert english == pytest.approx(expected, abs=0.15)


def test_held_out_sequences_are_the_last_and_never_learnt(
    make_model: MakeModel, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: set[int] = set()
    english = corpus(tmp_path)[0]
    sequence = Language.sequence

    def watched(self: Language, number: int) -> np.ndarray:
        if self.name == "en":
            drawn.add(number)
        return sequence(self, number)

    monkeypatch.setattr(Language, "sequence", watched)
    monkeypatch.setattr(HeldOutGuesses, "found", lambda self: {})
    run(settings(steps=60, save_every=100), make_model, corpus, tmp_path)
    held_out = round(0.1 * len(english))
    assert drawn == set(range(len(english) - held_out))


def test_how_a_batch_is_split_does_not_matter(make_model: MakeModel, corpus: Corpus, tmp_path: Path) -> None:
    rows = dict(enumerate(corpus(tmp_path)[0].sequence(i) for i in range(7)))
    gradients, terms = [], []
    for chunk_tokens in (12, 30, 1000):
        model, heads = fresh(make_model, settings(objective="retromae"))
        plan = OBJECTIVES["retromae"].plan(0.3, 0.5)
        chunks = prepare(rows, Vocabulary.of(model.tokenizer.backend), plan, chunk_tokens, [0, 1])
        guesses = Guesses(model, heads)
        terms.append(backward(guesses, chunks, RouterLossConfig(), "cpu", torch.float32).loss)
        gradients.append([p.grad for p in (*model.parameters(), *heads.parameters())])
    assert terms[1:] == pytest.approx(terms[:1] * 2, rel=1e-5)
    for other in gradients[1:]:
        for one, two in zip(gradients[0], other, strict=True):
            assert one is not None
            torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-4)


def test_looking_changes_nothing(make_model: MakeModel, corpus: Corpus, tmp_path: Path) -> None:
    model, heads = fresh(make_model, settings(), dropout=0.5)
    model.train()
    rows = {0: corpus(tmp_path)[0].sequence(0)}
    plan = MaskingPlan("single_tokens", 0.3)
    chunks = prepare(rows, Vocabulary.of(model.tokenizer.backend), plan, 100, [0])
    looks = {measure(Guesses(model, heads).train(), chunks, torch.float32) for _ in range(3)}
    assert len(looks) == 1
    assert model.training


# ---- the same run again --------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_run(make_model: MakeModel, corpus: Corpus, tmp_path: Path) -> None:
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        torch.rand(7)  # what happened before must not matter
        run(settings(seed=seed), make_model, corpus, tmp_path / name, dropout=0.1)
    assert metrics(tmp_path / "a") == metrics(tmp_path / "b") != metrics(tmp_path / "c")
    assert_same_weights(tmp_path / "a" / "model", tmp_path / "b" / "model")


@pytest.mark.parametrize("objective", ["span", "retromae"])
def test_a_killed_run_goes_on_to_the_bit(
    objective: str, make_model: MakeModel, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(objective=objective)
    moe = FlatMoE(layers=(1,), num_experts=4, router=RouterConfig(jitter=0.1))
    changes = {"dropout": 0.1, "moe": moe}
    run(config, make_model, corpus, tmp_path / "whole", **changes)
    with monkeypatch.context() as patch:
        at_call(6, patch, lambda: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(config, make_model, corpus, tmp_path / "cut", **changes)
    assert checkpoints(tmp_path / "cut")[-1] == "step-000004"
    assert run(config, make_model, corpus, tmp_path / "cut", resume=True, **changes).steps == 6
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")
    assert_same_weights(tmp_path / "cut" / "model", tmp_path / "whole" / "model")
    heads = [(tmp_path / name / HEAD_FILE).read_bytes() for name in ("cut", "whole")]
    assert heads[0] == heads[1]


def test_an_interrupt_finishes_the_step_and_saves(
    make_model: MakeModel, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        at_call(3, patch, lambda: os.kill(os.getpid(), signal.SIGINT))
        trained = run(settings(), make_model, corpus, tmp_path)
    assert (trained.steps, trained.stopped_by_user) == (3, True)
    assert checkpoints(tmp_path)[-1] == "step-000003"
    assert run(settings(), make_model, corpus, tmp_path, resume=True).steps == 6


def work(rank: int, folder: Path) -> None:
    store = dist.FileStore(str(folder / "rendezvous"), 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    torch.set_num_threads(1)
    two_steps(folder, folder / "two")
    dist.barrier()
    dist.destroy_process_group()


def two_steps(folder: Path, out: Path) -> None:
    model = Embedder.from_pretrained(folder / "model", device="cpu")
    words = model.tokenizer.backend
    corpus = open_corpus(folder / "tokens", iter([]), words, 12, True, "texts")
    # some gradients are rounding errors alone, which a smaller eps would blow up to full steps
    # objectives by chance: the processes have other ones, and another number of chunks
    optim = {"eps": 1e-3, "warmup_steps": 1.0}
    objectives = {"retromae": 2, "causal": 1, "span": 1}
    config = settings(steps=2, batch_size=5, objectives=objectives, optim=optim, chunk_tokens=13)
    heads = Heads(model.encoder.spec, words.get_vocab_size(), decoder=True)
    train_masked_lm(config, model, heads, corpus, out)


def test_two_processes_do_what_one_does(make_model: MakeModel, corpus: Corpus, tmp_path: Path) -> None:
    make_model(num_layers=2).save_pretrained(tmp_path / "model")
    corpus(tmp_path)
    torch.multiprocessing.spawn(work, (tmp_path,), nprocs=2)
    two_steps(tmp_path, tmp_path / "one")
    for one, two in zip(metrics(tmp_path / "one"), metrics(tmp_path / "two"), strict=True):
        for key in ("loss", "mlm", "decoder", "accuracy", "grad_norm", "tokens"):
            assert one[key] == pytest.approx(two[key], rel=1e-4), key
        for key in ("held_out_before", "held_out", "by_objective"):
            assert one.get(key, {}) == pytest.approx(two.get(key, {}), rel=1e-4)
    first, second = (read_folder(tmp_path / name / "model").state for name in ("one", "two"))
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, atol=1e-5, rtol=1e-4, msg=name)


def at_call(number: int, monkeypatch: pytest.MonkeyPatch, action: Callable[[], object]) -> None:
    """Do ``action`` in the middle of a step."""
    own, calls = module.backward, iter(range(1, 1000))

    def wrapped(*arguments: Any) -> Any:
        if next(calls) == number:
            action()
        return own(*arguments)

    monkeypatch.setattr(module, "backward", wrapped)


# ---- bad input -----------------------------------------------------------------------------------


def test_a_language_smaller_than_a_batch_is_refused_or_left_out(
    make_model: MakeModel, corpus: Corpus, tmp_path: Path
) -> None:
    sizes = {language.name: len(language) for language in corpus(tmp_path)}
    between = sizes["xx"] + 1
    with pytest.raises(UserError, match=rf"source xx has \d+ rows, fewer than the batch size {between}"):
        run(settings(batch_size=between), make_model, corpus, tmp_path)
    run(settings(batch_size=between, small_languages="skip", steps=1), make_model, corpus, tmp_path)
    assert metrics(tmp_path)[0]["held_out"].keys() == {"en"}
    with pytest.raises(UserError, match="no language has 999 sequences of 12 tokens"):
        run(settings(batch_size=999, small_languages="skip"), make_model, corpus, tmp_path / "none")


def test_a_loss_that_is_not_finite_ends_the_run_and_shows_the_batch(
    make_model: MakeModel, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings()
    model, heads = fresh(make_model, config)
    at_call(4, monkeypatch, lambda: torch.nn.init.constant_(heads.mlm.dense.weight, float("nan")))
    with pytest.raises(UserError, match=r"not finite at step 4; .*the last good checkpoint is .*step-000002"):
        train_masked_lm(config, model, heads, corpus(tmp_path), tmp_path)
    lines = (tmp_path / "offending-batch.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 6
    assert json.loads(lines[0]).keys() == {"text", "language"}
    kept = read_folder(tmp_path / "checkpoints" / "step-000002").state
    assert all(torch.isfinite(tensor).all() for tensor in kept.values())


def test_another_run_in_the_way_is_refused(make_model: MakeModel, corpus: Corpus, tmp_path: Path) -> None:
    run(settings(steps=1), make_model, corpus, tmp_path)
    with pytest.raises(UserError, match="is there already; resume that run"):
        run(settings(steps=1), make_model, corpus, tmp_path)
    with pytest.raises(UserError, match=r"another recipe|made with"):
        run(settings(steps=2), make_model, corpus, tmp_path, resume=True)


def test_configs_and_objectives_name_the_same() -> None:
    annotation = MaskedLMConfig.model_fields["objective"].annotation
    assert set(annotation.__args__) == set(OBJECTIVES)  # type: ignore[union-attr]
