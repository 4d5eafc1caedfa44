"""`moembed tokenizer` and `moembed pretrain` from the outside, up to training on what they made."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from transformers import AutoTokenizer

from conftest import HfFolder, Run
from moembed import PretrainResult, pretrain
from moembed.embedder import Embedder
from moembed.model.rope import RopeSpec
from moembed.runs.pretrain import PretrainConfig
from moembed.training.log import read_metrics

TEXTS = {
    "en": [
        "the mole digs under an owl",
        "owls hunt voles at night",
        "moles eat worms",
        "what does a mole eat",
    ],
    "de": ["der Maulwurf gräbt unter der Eule", "Eulen jagen nachts Mäuse", "der Maulwurf frisst Würmer"],
}


@pytest.fixture
def texts_file(tmp_path: Path) -> Path:
    rows = [{"text": text, "language": name} for name, texts in TEXTS.items() for text in texts * 10]
    path = tmp_path / "texts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def recipe(folder: Path, base: object, data: object, **changes: Any) -> Path:
    values = {
        "base": str(base), "out": str(folder / "run"), "data": str(data), "steps": 4, "batch_size": 4,
        "sequence_length": 12, "precision": "float32", "save_every": 2, "optim": {"learning_rate": 1e-3},
    }  # fmt: skip
    path = folder / "pretrain.yaml"
    path.write_text(yaml.safe_dump(values | changes), encoding="utf-8")
    return path


# ---- tokenizer -----------------------------------------------------------------------------------


def test_a_tokenizer_folder(run: Run, texts_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "tokenizer"
    arguments = ("tokenizer", texts_file, "--out", out, "--kind", "bpe", "--vocab-size", 300, "--json")
    code, shown, err = run(*arguments)
    assert code == 0, err
    loaded = AutoTokenizer.from_pretrained(out)
    assert json.loads(shown) == {"pieces": len(loaded)}
    assert loaded.mask_token == "<mask>"
    code, _, err = run(*arguments)
    assert code == 2
    assert "already exists" in err
    assert run(*arguments, "--overwrite")[0] == 0


def test_an_extended_base_keeps_the_vectors_of_its_own_texts(
    run: Run, texts_file: Path, tmp_path: Path, hf_folder: HfFolder
) -> None:
    base = hf_folder("bert")[0]
    code, shown, err = run(
        "tokenizer", texts_file, "--base", base, "--extend", 25, "--out", tmp_path / "model", "--json"
    )
    assert code == 0, err
    facts = json.loads(shown)
    assert facts["from_pieces"] + facts["from_mean"] == 25
    before, after = (Embedder.from_pretrained(folder, device="cpu") for folder in (base, tmp_path / "model"))
    english = [text for text in TEXTS["en"] if before.tokenizer.rows([text]) == after.tokenizer.rows([text])]
    assert english
    np.testing.assert_array_equal(before.encode(english), after.encode(english))
    short, long = (sum(map(len, model.tokenizer.rows(TEXTS["de"])[0])) for model in (after, before))
    assert short < long
    assert (tmp_path / "model" / "README.md").exists()


def test_a_transplanted_base(run: Run, texts_file: Path, tmp_path: Path, hf_folder: HfFolder) -> None:
    base = hf_folder("xlm-roberta")[0]
    out = tmp_path / "model"
    code, shown, err = run("tokenizer", texts_file, "--base", base, "--vocab-size", 90, "--out", out)
    assert code == 0, err
    assert "shared" in shown
    assert "from pieces" in shown
    assert Embedder.from_pretrained(tmp_path / "model").encode(["Maulwurf"]).shape == (1, 16)


def test_a_model_may_take_its_own_place(
    run: Run, texts_file: Path, tmp_path: Path, hf_folder: HfFolder
) -> None:
    base = hf_folder("bert")[0]
    before = Embedder.from_pretrained(base, device="cpu")
    vectors, pieces = before.encode(TEXTS["en"]), before.encoder.spec.vocab_size
    gone = ("tokenizer", tmp_path / "gone.jsonl", "--base", base, "--trim", "--out", base, "--overwrite")
    assert run(*gone)[0] == 2
    np.testing.assert_array_equal(Embedder.from_pretrained(base, device="cpu").encode(TEXTS["en"]), vectors)
    code, _, err = run("tokenizer", texts_file, *gone[2:])
    assert code == 0, err
    after = Embedder.from_pretrained(base, device="cpu")
    assert after.encoder.spec.vocab_size < pieces
    np.testing.assert_array_equal(after.encode(TEXTS["en"]), vectors)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--extend", 5), "name the model with --base"),
        (("--column", "body"), "there is no column 'body', only 'text', 'language'"),
        (("--kind", "bpe", "--vocab-size", 9), "a bpe vocabulary has at least 261 pieces"),
        (("--base", "nowhere"), "nowhere"),
        (
            ("--base", "b", "--extend", 5, "--vocab-size", 90),
            "--vocab-size is for a new tokenizer, and --extend",
        ),
        (
            ("--base", "b", "--trim", "--kind", "bpe"),
            "--kind is for a new tokenizer, and --trim keeps that of",
        ),
        (("--base", "b", "--trim", "--lowercase"), "--lowercase is for a new tokenizer, and --trim keeps"),
    ],
)
def test_mistakes_of_tokenizer_are_one_sentence(
    arguments: tuple[object, ...], complaint: str, run: Run, texts_file: Path, tmp_path: Path
) -> None:
    code, _, err = run("tokenizer", texts_file, "--out", tmp_path / "out", *arguments)
    assert code == 2
    assert complaint in err
    assert not (tmp_path / "out").exists()


def test_texts_that_cannot_be_used_are_left_out_on_demand(run: Run, texts_file: Path, tmp_path: Path) -> None:
    path, out = tmp_path / "a.jsonl", tmp_path / "out"
    path.write_text('{"text": "a mole digs"}\n{"text": ""}\n' * 2)
    arguments = ("tokenizer", path, "--out", out, "--kind", "bpe", "--vocab-size", 300)
    code, _, err = run(*arguments)
    assert (code, out.exists()) == (2, False)
    assert "line 2: column 'text' is empty; correct it, or leave such rows out with --skip-bad-rows" in err
    code, _, err = run(*arguments, "--skip-bad-rows")
    assert (code, out.exists()) == (0, True)
    assert "2 bad rows were skipped, the first" in err


# ---- pretrain ------------------------------------------------------------------------------------


def test_pretrain_then_train_on_it(run: Run, texts_file: Path, tmp_path: Path, hf_folder: HfFolder) -> None:
    file = recipe(tmp_path, hf_folder("bert", head="ForMaskedLM")[0], texts_file)
    rotary = ("rope.max_positions=64", "rope.base=500")
    code, shown, err = run("pretrain", file, *rotary, "pad_vocabulary=64", "--json")
    assert code == 0, err
    assert "the base's head" in err
    result = json.loads(shown)
    assert result["steps"] == 4
    for key in ("held_out", "held_out_before", "held_out_accuracy", "held_out_accuracy_before"):
        assert result[key].keys() == {"en", "de"}
    made = Embedder.from_pretrained(tmp_path / "run", device="cpu")
    spec = made.encoder.spec
    assert spec.embeddings.positions is None
    assert {layer.attention.rope for layer in spec.layers} == {RopeSpec(base=500.0)}
    assert (spec.max_length, made.tokenizer.max_length) == (64, 64)
    assert spec.vocab_size % 64 == 0

    again = recipe(tmp_path, tmp_path / "run", texts_file, out=str(tmp_path / "again"))
    code, shown, err = run("pretrain", again, "sequence_length=60", "batch_size=2", "rope.max_positions=70")
    assert code == 0, err
    longer = Embedder.from_pretrained(tmp_path / "again", device="cpu").encoder.spec
    assert longer == spec.replace(max_length=70), "the base of its positions stays"
    assert "the base's head" in err
    assert "accuracy before" in shown

    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("".join(json.dumps({"query": t, "document": t}) + "\n" for t in TEXTS["en"] * 3))
    values = {"base": str(tmp_path / "run"), "out": str(tmp_path / "trained"), "data": str(pairs)}
    file = tmp_path / "train.yaml"
    file.write_text(yaml.safe_dump(values | {"steps": 1, "batch_size": 4, "precision": "float32"}))
    code, _, err = run("train", file)
    assert code == 0, err


def test_a_dry_run_of_pretraining_says_what_the_run_does(
    run: Run, texts_file: Path, tmp_path: Path, hf_folder: HfFolder
) -> None:
    base, _ = hf_folder("bert", head="ForMaskedLM")
    path = recipe(tmp_path, base, texts_file, objectives={"mlm": 3, "span": 1})
    code, out, err = run("pretrain", path, "--dry-run", "--json")
    assert code == 0, err
    plan = json.loads(out)
    assert not (tmp_path / "run").exists()
    assert plan["loss"] == ["mlm: 75% of the sequences", "span: 25% of the sequences"]
    code, _, err = run("pretrain", path)
    assert code == 0, err
    assert f"recipe {plan['recipe']}" in err
    assert plan["model"].partition(" parameters")[0] + " parameters" in err
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    for point in plan["learning_rate"]:
        assert lines[point["step"] - 1]["learning_rate"] == pytest.approx(point["rate"])


def test_a_source_with_subsets_stands_for_as_many_sources() -> None:
    data = [{"path": "hf:owner/name", "subsets": ["en", "de"], "limit": 7}, "texts.jsonl"]
    recipe = PretrainConfig.model_validate({"base": "x", "out": "y", "steps": 1, "data": data})
    found = [(source.path, source.subset, source.limit) for source in recipe.data]
    assert found == [("hf:owner/name", "en", 7), ("hf:owner/name", "de", 7), ("texts.jsonl", None, None)]


def test_resuming_a_finished_run_changes_nothing(
    run: Run, texts_file: Path, tmp_path: Path, hf_folder: HfFolder
) -> None:
    file = recipe(tmp_path, hf_folder("bert")[0], texts_file)
    code, _, err = run("pretrain", file, "--resume")
    assert (code, "nothing to resume" in err) == (2, True)
    code, first, err = run("pretrain", file, "--json")
    assert code == 0, err
    assert "a fresh head" in err
    weights = (tmp_path / "run" / "model" / "model.safetensors").read_bytes()
    code, _, err = run("pretrain", file)
    assert (code, "already exists" in err) == (2, True)
    texts_file.unlink()  # the tokens are in the run folder
    code, second, err = run("pretrain", file, "--resume", "--json")
    assert code == 0, err
    assert json.loads(second)["held_out"] == json.loads(first)["held_out"]
    assert (tmp_path / "run" / "model" / "model.safetensors").read_bytes() == weights
    assert len(read_metrics(tmp_path / "run" / "metrics.jsonl")) == 4


@pytest.mark.parametrize(
    ("override", "complaint"),
    [
        ("sequence_length=41", "sequence_length 41 is more than the 40 tokens the model reads"),
        ("batch_size=500", "fewer than the batch size 500"),
        ("data=[]", "data must have"),
        ("data=nowhere.jsonl", "no such file or folder: nowhere.jsonl"),
        ("objective=clm", "objective must be"),
        ("mask=1.5", "mask must be"),
        ("sequence_lenght=9", "did you mean 'sequence_length'?"),
    ],
)
def test_mistakes_of_pretrain_are_one_sentence(
    override: str, complaint: str, run: Run, texts_file: Path, tmp_path: Path, hf_folder: HfFolder
) -> None:
    code, _, err = run("pretrain", recipe(tmp_path, hf_folder("bert")[0], texts_file), override)
    assert code == 2
    assert complaint in err
    assert "Traceback" not in err


def test_a_base_without_a_mask_token_is_refused_at_once(
    run: Run, texts_file: Path, tmp_path: Path, hf_folder: HfFolder
) -> None:
    folder = hf_folder("bert")[0]
    for name in ("tokenizer.json", "tokenizer_config.json"):
        content = (folder / name).read_text(encoding="utf-8")
        (folder / name).write_text(content.replace("[MASK]", "[HIDE]"), encoding="utf-8")
    code, _, err = run("pretrain", recipe(tmp_path, folder, texts_file))
    assert code == 2
    assert "the tokenizer has no mask token ([MASK] or <mask>) to pretrain with" in err
    assert not (tmp_path / "run").exists()


def test_after_a_mistake_in_the_texts_the_same_folder_can_be_used(
    run: Run, texts_file: Path, tmp_path: Path, hf_folder: HfFolder
) -> None:
    good = texts_file.read_text(encoding="utf-8")
    texts_file.write_text(good + '{"text": ""}\n', encoding="utf-8")
    file = recipe(tmp_path, hf_folder("bert")[0], texts_file, steps=1)
    code, _, err = run("pretrain", file)
    assert (code, "line 71: column 'text' is empty" in err) == (2, True)
    texts_file.write_text(good, encoding="utf-8")
    code, _, err = run("pretrain", file)
    assert code == 0, err
    for mistake in (
        "data=nowhere.jsonl",
        "batch_size=500",
        f"base={tmp_path / 'run'}",
    ):  # nor cost the old one
        assert run("pretrain", file, mistake, "--overwrite")[0] == 2
        assert Embedder.from_pretrained(tmp_path / "run", device="cpu").dim
        assert (tmp_path / "run" / "tokens" / "index.json").exists()
    assert not [*tmp_path.glob(".run.*")]


def test_python_pretrains_as_the_command_does(
    run: Run, texts_file: Path, tmp_path: Path, hf_folder: HfFolder
) -> None:
    path = recipe(tmp_path, hf_folder("bert")[0], texts_file)
    code, shown, err = run("pretrain", path, "--json")
    assert code == 0, err
    result = pretrain(path, overwrite=True)
    told = json.loads(shown)
    assert {**asdict(result), **result.held_out}.items() >= {
        key: value for key, value in told.items() if key != "seconds"
    }.items()
    assert isinstance(result, PretrainResult)
    assert result.held_out["held_out"].keys() == {"de", "en"}
