"""Drift: the figures by their definition, experts one by one, words by token, groups as one vector."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend

from conftest import MakeModel, Run, randomise
from moembed.embedder import Embedder
from moembed.families.flat import FlatMoE
from moembed.folder.read import read_folder
from moembed.moe.router import RouterConfig
from moembed.runs.drift import drift_report
from moembed.types import UserError
from moembed.weights.drift import Moved, kind_of
from moembed.weights.upcycle import UpcycleConfig, upcycle
from moembed.weights.vocabulary import pad, with_tokenizer

MOE = FlatMoE(layers=(1, 3), num_experts=4, router=RouterConfig(top_k=2))


def saved(model: Embedder, folder: Path) -> str:
    model.save_pretrained(folder)
    return str(folder)


def by_name(report: dict[str, Any]) -> dict[tuple[str, int | None], dict[str, Any]]:
    return {(entry["name"], entry["expert"]): entry for entry in report["tensors"]}


# ---- the figures ---------------------------------------------------------------------------------


@settings(max_examples=25)
@given(st.integers(0, 999), st.floats(0, 2), st.floats(-2, 2).filter(lambda x: abs(x) > 0.01))
def test_the_figures_of_a_tensor_and_of_several_as_one(seed: int, noise: float, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    one, other = (torch.randn(5, 7, generator=generator, dtype=torch.float64) for _ in range(2))
    after = scale * one + noise * other
    whole, parts = Moved.of(one, after), sum(map(Moved.of, one, after), Moved())
    assert whole.values == parts.values == 35
    assert whole.relative == pytest.approx(float((after - one).norm() / one.norm()), rel=1e-4, abs=1e-6)
    wanted = torch.cosine_similarity(one.flatten(), after.flatten(), dim=0)
    assert whole.cosine == pytest.approx(float(wanted), abs=1e-5)
    assert (parts.relative, parts.cosine) == pytest.approx((whole.relative, whole.cosine), rel=1e-6)
    still = Moved.of(one, one)
    assert (still.relative, still.cosine) == (0.0, pytest.approx(1.0, abs=1e-12))
    zero = torch.zeros(3)
    assert (Moved.of(zero, zero).relative, Moved.of(zero, zero).cosine) == (0.0, None)
    assert (Moved.of(zero, zero + 1).relative, Moved.of(zero + 1, zero).relative) == (None, 1.0)


def test_every_tensor_has_a_kind(make_model: MakeModel) -> None:
    kinds = {kind_of(name) for name in make_model(moe=MOE).encoder.state_dict()}
    assert kinds == {"words", "positions", "norms", "attention", "feed-forward", "experts", "router"} | (
        kinds & {"token types"}
    )


# ---- two models ----------------------------------------------------------------------------------


def test_one_expert_that_moved_is_the_first_of_all(moe_model: Embedder, tmp_path: Path, run: Run) -> None:
    before = saved(moe_model, tmp_path / "before")
    still = drift_report(before, before)
    assert {entry["relative"] for entry in still["tensors"]} == {0.0}
    assert (still["added"], still["removed"], still["reshaped"]) == ([], [], [])
    assert still["whole"]["values"] == sum(x.numel() for x in moe_model.encoder.state_dict().values())

    with torch.no_grad():
        experts = dict(moe_model.encoder.named_parameters())
        experts["layers.3.ffn.up_EFD"][2] *= -1.5
        experts["layers.0.attention.out.weight"] *= 1.01
    after = saved(moe_model, tmp_path / "after")
    report = drift_report(before, after)
    found = by_name(report)
    assert found["layers.3.ffn.up_EFD", 2]["relative"] == pytest.approx(2.5, rel=1e-5)
    assert found["layers.3.ffn.up_EFD", 2]["cosine"] == pytest.approx(-1)
    assert found["layers.0.attention.out.weight", None]["relative"] == pytest.approx(0.01, rel=1e-3)
    moved = [key for key, entry in found.items() if entry["relative"]]
    assert moved == [("layers.3.ffn.up_EFD", 2), ("layers.0.attention.out.weight", None)]
    assert [(entry["layer"], entry["expert"]) for entry in report["experts"] if entry["relative"]] == [(3, 2)]
    assert not any(entry["was_dense"] for entry in report["experts"])
    first, second, third = report["groups"][:3]
    assert [(group["layer"], group["kind"]) for group in (first, second)] == [
        (3, "experts"),
        (0, "attention"),
    ]
    assert third["relative"] == 0
    # a group is one vector
    names = ("up_EFD", "down_EDF", "up_bias_EF", "down_bias_ED")
    state = [
        torch.cat([read_folder(Path(x)).state[f"layers.3.ffn.{n}"].flatten() for n in names])
        for x in (before, after)
    ]
    assert first["relative"] == pytest.approx(float((state[1] - state[0]).norm() / state[0].norm()), rel=1e-5)

    code, out, err = run("drift", before, after, "--tensors", 2)
    assert (code, err) == (0, "")
    assert f"the 2 most moved of {len(found)} tensors" in out
    assert "250.000%" in out
    assert "layers.0.attention.out.weight" in out
    code, out, _ = run("drift", before, after, "--json")
    assert json.loads(out) == report


@pytest.mark.parametrize(
    "options", [{}, {"granularity": 2}, {"granularity": 2, "router": {"normalize": None}}]
)
def test_experts_are_held_against_the_block_that_they_were_made_of(
    options: dict[str, Any], make_model: MakeModel, tmp_path: Path
) -> None:
    model = make_model()
    before = saved(model, tmp_path / "dense")
    parts = read_folder(tmp_path / "dense")
    spec, state = upcycle(parts.spec, parts.state, UpcycleConfig.model_validate({"num_experts": 4} | options))
    parts.spec, parts.state = spec, state
    made = Embedder(parts)
    report = drift_report(before, saved(made, tmp_path / "made"))
    assert report["whole"]["relative"] == 0  # copies: nothing moved
    assert all(name.endswith("router.weight_ED") for name in report["added"])
    assert (report["removed"], report["reshaped"]) == ([], [])
    count = 4 * options.get("granularity", 1)
    assert len(report["experts"]) == 2 * count
    assert all(entry["was_dense"] for entry in report["experts"])
    assert by_name(report)["layers.1.ffn.down_EDF", 1]["was"] == "layers.1.ffn.down.weight"
    with torch.no_grad():
        dict(made.encoder.named_parameters())["layers.3.ffn.down_EDF"][1] *= 3
    moved = drift_report(before, saved(made, tmp_path / "moved"))
    assert by_name(moved)["layers.3.ffn.down_EDF", 1]["relative"] == pytest.approx(2, rel=1e-5)
    assert [(e["layer"], e["expert"]) for e in moved["experts"] if e["relative"]] == [(3, 1)]


def test_biases_that_upcycling_drops_are_told(make_model: MakeModel, tmp_path: Path) -> None:
    model = make_model(num_layers=2)
    before = saved(model, tmp_path / "dense")
    parts = model.parts()
    parts.spec, parts.state = upcycle(parts.spec, parts.state, UpcycleConfig(num_experts=4, bias="shared"))
    report = drift_report(before, saved(Embedder(parts), tmp_path / "made"))
    assert report["removed"] == ["layers.1.ffn.up.bias", "layers.1.ffn.down.bias"]
    assert report["added"] == ["layers.1.ffn.bias_D", "layers.1.ffn.router.weight_ED"]


def test_words_are_compared_token_by_token(make_model: MakeModel, backend: Backend, tmp_path: Path) -> None:
    before = saved(make_model(), tmp_path / "before")
    parts = read_folder(tmp_path / "before")
    values = json.loads(backend.to_str())
    old = values["model"]["vocab"]
    # two words more, one less, and every row in another place but those of the special tokens
    words = [word for word in old if word not in ("worms", *list(old)[:5])]
    new = [*list(old)[:5], "badger", *reversed(words), "fox"]
    values["model"]["vocab"] = {word: number for number, word in enumerate(new)}
    extended, _ = with_tokenizer(parts, Backend.from_str(json.dumps(values)), {})
    model = Embedder(extended)
    same = drift_report(before, saved(model, tmp_path / "after"))
    assert same["vocabulary"] == {"shared": len(old) - 1, "added": 2, "removed": 1}
    assert by_name(same)["word.weight", None]["relative"] == 0
    assert by_name(same)["word.weight", None]["values"] == (len(old) - 1) * 16
    with torch.no_grad():
        model.encoder.word.weight[new.index("owl")] += 1
    found = by_name(drift_report(before, saved(model, tmp_path / "moved")))["word.weight", None]
    rows = parts.state["word.weight"][[old[word] for word in old if word != "worms"]]
    assert found["relative"] == pytest.approx(4 / float(rows.norm()), rel=1e-5)


def test_words_of_another_width_are_not_compared(
    make_model: MakeModel, backend: Backend, tmp_path: Path, run: Run
) -> None:
    before = saved(make_model(), tmp_path / "before")
    wide = make_model(width=32).parts()
    values = json.loads(backend.to_str())
    values["model"]["vocab"] |= {"badger": len(values["model"]["vocab"])}
    extended, _ = with_tokenizer(wide, Backend.from_str(json.dumps(values)), {})
    after = saved(Embedder(extended), tmp_path / "after")
    code, out, err = run("drift", before, after, "--json")
    assert code == 0, err
    report = json.loads(out)
    assert "word.weight" in report["reshaped"]
    assert report["vocabulary"]["added"] == 1
    code, _, err = run("drift", before, after)
    assert (code, "are in both models, 1 are new" in err) == (0, True)
    assert "of another shape, so not compared: word.weight" in err


def test_rows_that_pad_a_vocabulary_are_no_tokens(make_model: MakeModel, tmp_path: Path) -> None:
    before = saved(make_model(), tmp_path / "before")
    parts = read_folder(tmp_path / "before")
    parts.spec, parts.state = pad(parts.spec, parts.state, 64)
    report = drift_report(before, saved(Embedder(parts), tmp_path / "after"))
    assert report["whole"]["relative"] == 0
    assert report["reshaped"] == []


def test_what_only_one_has_is_named(make_model: MakeModel, tmp_path: Path, run: Run) -> None:
    long = saved(make_model(), tmp_path / "long")
    short = saved(make_model(num_layers=2), tmp_path / "short")
    report = drift_report(long, short)
    assert {name.split(".")[1] for name in report["removed"]} == {"2", "3"}
    assert report["added"] == []
    code, _, err = run("drift", short, long)
    assert code == 0
    assert err.startswith("only after, so not compared: layers.2.")
    assert "more" in err
    wide = make_model(width=32, ffn_width=48, max_positions=40)
    randomise(wide.encoder, 1)
    with pytest.raises(UserError, match="no tensor of the same name and shape"):
        drift_report(long, saved(wide, tmp_path / "wide"))
