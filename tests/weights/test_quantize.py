"""Weights in few bits: the folder that is read equals the model rounded by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend

from conftest import MakeModel, Run
from moembed.embedder import Embedder
from moembed.families.flat import FlatMoE
from moembed.folder.quantized import FILE
from moembed.model.group_codes import GROUP, GroupCodes
from moembed.packing import pack
from moembed.runs.inspect import describe
from moembed.runs.quantize import QuantizePlan, quantize_model
from moembed.types import Batch, UserError
from moembed.weights.quantize import assign, importance, look, mean_bits, ordered, parts_of
from tagged_models import tagged_model


@given(st.integers(1, 5), st.integers(1, 200), st.sampled_from([4, 8]), st.floats(-3, 3), st.integers(0, 99))
def test_a_weight_is_rounded_by_half_a_step_of_its_group_at_most(
    rows: int, columns: int, bits: int, exponent: float, seed: int
) -> None:
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 10**exponent
    codes = GroupCodes.of(weight, bits)
    again = codes.weight()
    assert again.shape == weight.shape
    largest = 2 ** (bits - 1) - 1
    for start in range(0, columns, GROUP):
        group, rounded = weight[:, start : start + GROUP], again[:, start : start + GROUP]
        step = group.abs().amax(1, keepdim=True) / largest
        # half a step, and what the scale of 16 bits is off, relatively or where it is near zero absolutely,
        # at the largest weight
        off = largest * torch.maximum(step * 2**-11, torch.tensor(2.0**-25))
        assert ((group - rounded).abs() <= 0.5 * step + 1.5 * off + 1e-9).all()
    groups = rows * -(-columns // GROUP)
    assert codes.num_bytes == groups * (GROUP * bits // 8 + 2)


def test_zeros_stay_zeros() -> None:
    assert torch.equal(GroupCodes.of(torch.zeros(2, 70), 4).weight(), torch.zeros(2, 70))


@pytest.fixture
def model(make_model: MakeModel) -> Embedder:
    return make_model(num_layers=3, moe=FlatMoE(layers=(1,), num_experts=4))


def batches(model: Embedder, texts: list[str]) -> list[Batch]:
    return [pack(model.tokenizer.rows(texts)[0])]


def test_parts_hold_every_matrix_of_the_layers_once(model: Embedder) -> None:
    state = model.parts().state
    parts = parts_of(state)
    assert [(part.layer, part.expert) for part in parts] == [
        (0, None), (1, None), (1, 0), (1, 1), (1, 2), (1, 3), (2, None),
    ]  # fmt: skip
    matrices = {
        name for name, tensor in state.items()
        if name.startswith("layers") and tensor.ndim > 1 and "router" not in name and "bias" not in name
    }  # fmt: skip
    assert {name for part in parts for name in part.names} == matrices
    assert sum(part.num_weights for part in parts) == sum(state[name].numel() for name in matrices)


def test_scores_by_hand(model: Embedder, texts: list[str]) -> None:
    state, given_ = model.parts().state, batches(model, texts)
    seen = look(model.encoder, given_)
    with torch.no_grad():
        hidden, stats = model.encoder(given_[0].token_T, given_[0].length_B, range(4))
    for part in parts_of(state):
        before, after = hidden[part.layer], hidden[part.layer + 1]
        lim = 1 - float(torch.nn.functional.cosine_similarity(before, after, dim=-1).mean())
        weights = torch.cat([tensor.flatten() for tensor in part.tensors(state)]).numpy()
        zd = 1 - float(np.mean((weights - weights.mean()) / weights.std(ddof=1) > 1))
        share = 1.0
        if part.expert is not None:
            share = 4 * float(stats[0].count_E[part.expert] / stats[0].count_E.sum())
        assert importance(part, state, seen, "lim") == pytest.approx(lim * share, rel=1e-4)
        assert importance(part, state, seen, "zd") == pytest.approx(zd * share, rel=1e-4)


@given(st.floats(4, 8), st.sampled_from(["score", "reverse", "random"]))
def test_the_mean_is_reached_and_not_passed(avg_bits: float, order: str) -> None:
    state = {
        f"layers.{i}.ffn.up.weight": torch.zeros(size, 8) for i, size in enumerate([5, 40, 16, 16, 24, 3])
    }
    parts = parts_of(state)
    score = [0.3, 0.1, 0.9, 0.2, 0.5, 0.4]
    rows = ordered(parts, score, order)
    bits = assign(parts, rows, avg_bits)
    found = mean_bits(parts, bits)
    assert found <= avg_bits + 1e-9
    left = [parts[row].num_weights for row in rows if bits[row] == 4]
    assert not left or found + 4 * min(left) / sum(part.num_weights for part in parts) > avg_bits
    if order == "score":
        assert rows[0] == 2
    if order == "reverse":
        assert rows[0] == 1


@pytest.mark.parametrize("avg_bits", [4.0, 5.5, 8.0])
def test_the_folder_is_the_model_rounded_by_hand(
    avg_bits: float, model: Embedder, texts: list[str], tmp_path: Path
) -> None:
    model.save_pretrained(tmp_path / "whole")
    (tmp_path / "texts.csv").write_text("text\n" + "\n".join(f"owl {n}" for n in range(9)))
    plan = QuantizePlan(avg_bits, texts=tmp_path / "texts.csv")
    made = quantize_model(str(tmp_path / "whole"), tmp_path / "small", plan)
    state = {name: tensor.clone() for name, tensor in model.parts().state.items()}
    state["word.weight"] = GroupCodes.of(state["word.weight"], 8).weight()
    for part, row in zip(parts_of(state), made.parts, strict=True):
        assert row.part == part.name
        for name in part.names:
            target = state[name] if part.expert is None else state[name][part.expert]
            target.copy_(GroupCodes.of(target, row.bits).weight())
    read = Embedder.from_pretrained(tmp_path / "small")
    for name, tensor in read.parts().state.items():
        assert torch.equal(tensor, state[name]), name
    assert not np.array_equal(read.encode(texts[:2]), model.encode(texts[:2]))
    assert made.avg_bits <= avg_bits
    assert not (tmp_path / "small" / "model.safetensors").exists()
    assert describe(tmp_path / "small")["bytes_on_disk"] == made.file_bytes
    read.save_pretrained(tmp_path / "again")  # a folder of floats
    assert torch.equal(
        Embedder.from_pretrained(tmp_path / "again").parts().state["word.weight"], state["word.weight"]
    )


def test_the_command(model: Embedder, run: Run, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "whole")
    code, out, _ = run(
        "quantize", f"{tmp_path}/whole", "--avg-bits=6", "--score=zd", "--sample=4", f"--out={tmp_path}/small"
    )
    assert code == 0
    assert "bits on average" in out
    assert "layer 1, expert 3" in out


def test_a_damaged_file_is_named(model: Embedder, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "whole")
    quantize_model(str(tmp_path / "whole"), tmp_path / "small", QuantizePlan(sample=2))
    file = tmp_path / "small" / FILE
    file.write_bytes(file.read_bytes()[:-7])
    with pytest.raises(UserError, match="is damaged"):
        Embedder.from_pretrained(tmp_path / "small")


@pytest.mark.parametrize(
    ("router", "told", "tag"),
    [({"tags": ["query", "document"]}, None, "document"), ({"tags": ["de", "en"]}, "en", "en")],
)
def test_tags_choose_the_experts_of_the_texts(
    router: dict[str, Any], told: str | None, tag: str, make_model: MakeModel, run: Run, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The texts are documents, which may be their tag; else the environment says it, as for any command."""
    model = tagged_model(make_model(num_layers=2).parts(), **router)
    model.save_pretrained(tmp_path / "whole")
    (tmp_path / "texts.csv").write_text("text\n" + "\n".join(f"owl {n}" for n in range(9)))
    command = ("quantize", tmp_path / "whole", "--texts", tmp_path / "texts.csv", "--out", tmp_path / "small")
    if told:
        code, _, err = run(*command)
        assert (code, "nothing says which tag these texts have" in err) == (2, True), err
        monkeypatch.setenv("MOEMBED_TAG", told)
    code, out, err = run(*command, "--json")
    assert code == 0, err
    scores = {part["part"]: part["score"] for part in json.loads(out)["parts"]}
    experts = model.spec.layers[1].moe.router.tags
    for name in router["tags"]:
        assert (scores[f"layer 1, expert {experts[name][0]}"] > 0) == (name == tag)


def test_texts_without_a_token_say_nothing(model: Embedder, run: Run, tmp_path: Path) -> None:
    parts = model.parts()
    values = json.loads(parts.tokenizer.backend.to_str()) | {"post_processor": None}
    backend = Backend.from_str(json.dumps(values))
    Embedder(replace(parts, tokenizer=parts.tokenizer.replaced(backend, prompts={}))).save_pretrained(
        tmp_path / "whole"
    )
    scores = []
    for number, texts in enumerate((["owl", "mole digs"], ["", "owl", "", "mole digs"], ["", ""])):
        file = tmp_path / f"{number}.jsonl"
        file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        command = ("quantize", tmp_path / "whole", "--texts", file, "--out", tmp_path / str(number), "--json")
        code, out, err = run(*command)
        if code:
            break
        scores.append([part["score"] for part in json.loads(out)["parts"]])
    assert (number, code, "holds no texts to find the scores with" in err) == (2, 2, True), err
    assert scores[0] == scores[1]
