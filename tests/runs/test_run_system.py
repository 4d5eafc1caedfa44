"""One system of an evaluation: what it has for the language of a task is used wherever it is computed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conftest import MakeModel, Run
from moembed.compare.scores import load_scores
from moembed.embedder import Embedder
from moembed.encoding import no_bar
from moembed.evaluation.files import PairTask
from moembed.runs import system
from moembed.runs.system import EvaluationOptions, evaluate_system
from moembed.search.composed import ComposedEncoder, write_composed
from moembed.types import UserError
from tagged_models import tagged_model

PROMPTS = {"sts": "the mole ", "sts-de": "an owl hunts "}
TASK = PairTask(
    "sts-de", "sts", ["moles dig", "owls", "worms"], ["a mole", "the night", "moles"],
    np.array([3.0, 1, 2]), ["de"] * 3, [],
)  # fmt: skip


def cosines(source: Any, **options: Any) -> np.ndarray:
    asked = EvaluationOptions(**{"dtype": "float32"} | options)
    outcome = evaluate_system("some", source, [TASK], asked, no_bar)
    return outcome.scores["sts-de"].values["spearman"][:, 0]


def test_several_processes_take_the_prompts_of_a_language_as_one_does(
    make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def copies(folder: Path, processes: int, settings: dict[str, Any]) -> Iterator[Embedder]:
        yield Embedder.from_pretrained(folder, **settings)

    monkeypatch.setattr(system, "Replicas", copies)
    folder = tmp_path / "model"
    make_model(prompts=PROMPTS).save_pretrained(folder)
    expected = cosines(folder)
    assert not np.allclose(expected, cosines(make_model(prompts={"sts": PROMPTS["sts"]})))
    np.testing.assert_allclose(cosines(folder, processes=2, cache=tmp_path / "kept"), expected, atol=1e-6)
    # what several processes left in a cache is what one would have put there
    np.testing.assert_allclose(cosines(folder, cache=tmp_path / "kept"), expected, atol=1e-6)


def test_a_composed_model_takes_what_its_models_have_for_a_language(
    make_model: MakeModel, tmp_path: Path
) -> None:
    model = make_model(prompts=PROMPTS)
    model.save_pretrained(tmp_path / "model")
    write_composed(tmp_path / "composed", [str(tmp_path / "model")], ComposedEncoder([model]))
    expected = cosines(tmp_path / "model")
    np.testing.assert_allclose(cosines(tmp_path / "composed"), expected, atol=1e-6)
    np.testing.assert_allclose(cosines(tmp_path / "composed", cache=tmp_path / "kept"), expected, atol=1e-6)
    tags = tagged_model(model.parts(), tags=["de", "en"])
    tags.save_pretrained(tmp_path / "tags")
    write_composed(tmp_path / "both", [str(tmp_path / "tags")], ComposedEncoder([tags]))
    np.testing.assert_allclose(cosines(tmp_path / "both"), cosines(tmp_path / "tags"), atol=1e-6)
    np.testing.assert_allclose(
        cosines(tmp_path / "both", wrong_tags=1.0), cosines(tmp_path / "tags", wrong_tags=1.0), atol=1e-6
    )


def test_a_task_without_a_tag_of_the_model_is_refused_before_any_is_embedded(make_model: MakeModel) -> None:
    tags = tagged_model(make_model(prompts={}).parts(), tags=["de", "en"])
    embedded: list[str] = []
    tags.encoder.register_forward_pre_hook(lambda *_: embedded.append("a batch"))
    other = PairTask("sts-fi", "sts", ["a", "b", "c"], ["d", "e", "f"], np.array([1.0, 2, 3]), ["fi"] * 3, [])
    options = EvaluationOptions(dtype="float32", wrong_tags=1.0)
    with pytest.raises(UserError, match="no tag of sts-fi can be replaced"):
        evaluate_system("some", tags, [TASK, other], options, no_bar)
    assert embedded == []
    evaluate_system("some", tags, [TASK], options, no_bar)
    assert embedded


def test_a_tag_that_was_given_decides_and_not_the_language_of_the_task(
    make_model: MakeModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    dense = make_model(prompts={})
    tags = tagged_model(dense.parts(), tags=["de", "en"])
    tags.save_pretrained(tmp_path / "tags")
    write_composed(tmp_path / "both", [str(tmp_path / "tags")], ComposedEncoder([tags]))
    tags.tag = "en"
    expected = cosines(tags)
    assert tags.tag == "en"  # the tag of the options is for the evaluation alone
    assert not np.allclose(expected, cosines(tmp_path / "tags"))
    for name in ("tags", "both"):
        np.testing.assert_allclose(cosines(tmp_path / name, tag="en"), expected, atol=1e-6)
    np.testing.assert_allclose(cosines(tags, tag="de"), cosines(tmp_path / "tags"), atol=1e-6)
    assert tags.tag == "en"
    roles = tagged_model(dense.parts(), tags=["query", "document", "sts"])
    roles.save_pretrained(tmp_path / "roles")
    with pytest.raises(UserError, match="which other processes are not told: leave out processes"):
        cosines(tmp_path / "roles", tag="query", processes=2)

    # ---- the command says it by the environment
    (tmp_path / "sts-de.csv").write_text("sentence1,sentence2,score\nmoles dig,a mole,3\nowls,the night,1\n")
    monkeypatch.setenv("MOEMBED_TAG", "en")
    plain = ("--tasks", tmp_path / "sts-de.csv", "--no-baselines", "--dtype", "float32")
    code, _, err = run("evaluate", tmp_path / "tags", *plain, "--keep", tmp_path / "kept")
    assert code == 0, err
    [scores], about = load_scores(next((tmp_path / "kept").iterdir()))
    assert about["tag"] == "en"
    np.testing.assert_allclose(scores.values["spearman"][:, 0], expected[:2], atol=1e-6)
    dense.save_pretrained(tmp_path / "dense")
    code, _, err = run("evaluate", tmp_path / "dense", *plain)
    assert code == 2
    assert "no model here chooses experts by a tag: leave out tag (MOEMBED_TAG)" in err
