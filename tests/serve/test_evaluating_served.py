"""A served model is evaluated as in the same process, also where the language of a task chooses experts."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")

from conftest import MakeModel
from live_server import live
from moembed.client.model import Client
from moembed.encoding import no_bar
from moembed.evaluation.files import PairTask
from moembed.evaluation.tagged import served_tagged, tagged
from moembed.runs.system import EvaluationOptions, System, evaluate_system
from moembed.types import UserError
from tagged_models import tagged_model

PROMPTS = {"query": "query: ", "document": "doc: ", "query-de": "owls ", "document-de": "owls "}


def pairs(texts: list[str], *languages: str) -> PairTask:
    ones, others = texts[:6], texts[2:8]
    listed = [languages[i % len(languages)] for i in range(6)]
    return PairTask("-".join(languages), "sts", ones, others, np.arange(6.0), listed, [])


def predicted(model: System, *tasks: PairTask) -> dict[str, np.ndarray]:
    scores = evaluate_system("mole", model, tasks, EvaluationOptions(dtype="float32"), no_bar).scores
    return {name: next(iter(of.values.values()))[:, 0] for name, of in scores.items()}


def test_the_language_of_a_task_is_sent(make_model: MakeModel, texts: list[str]) -> None:
    model = tagged_model(make_model(prompts=PROMPTS).parts(), tags=["de", "en", "fr"], default_tag="en")
    tasks = [pairs(texts, language) for language in ("de", "fr")]
    ours = predicted(model, *tasks)
    with live(model) as url, Client(url) as client:
        theirs = predicted(client, *tasks)
        with (
            tagged(model, tasks[0]),
            served_tagged(client, tasks[0]),
        ):  # prompts too
            ours_NM, theirs_NM = (some.vectors(texts, role="query").array for some in (model, client))
            assert np.abs(theirs_NM - ours_NM).max() < 1e-6
        assert np.abs(client.vectors(texts, role="query", tag="de").array - ours_NM).max() > 1e-3
        assert client.tag is None
        assert client.prompts == PROMPTS
        for name in ("de", "fr"):
            assert theirs[name] == pytest.approx(ours[name], abs=1e-5)
        with pytest.warns(UserWarning, match="the experts of 'en'"):
            mixed = predicted(client, pairs(texts, "de", "fr"))["de-fr"]
        client.tag = "en"  # said for all texts: the task's own does not count
        english = predicted(client, tasks[1])["fr"]
        assert np.abs(english - ours["fr"]).max() > 1e-3
        assert mixed == pytest.approx(english, abs=1e-5)


def test_a_language_without_experts_is_refused_by_name(make_model: MakeModel, texts: list[str]) -> None:
    with live(tagged_model(make_model().parts(), tags=["de", "fr"])) as url, Client(url) as client:
        for task in (pairs(texts, "sw"), pairs(texts, "de", "fr")):
            with pytest.raises(UserError, match="known: de, fr"):
                predicted(client, task)


def test_tags_that_are_roles_stay_roles(make_model: MakeModel, texts: list[str]) -> None:
    model = tagged_model(make_model(prompts=PROMPTS).parts(), tags=["query", "document"])
    task = pairs(texts, "de")
    with live(model) as url, Client(url) as client:
        for system in (model, client):  # sentence pairs have no role
            with pytest.raises(UserError, match="known: document, query"):
                predicted(system, task)
        with tagged(model, task), served_tagged(client, task):
            for role in ("query", "document"):
                theirs, ours = (some.vectors(texts, role=role).array for some in (client, model))
                assert np.abs(theirs - ours).max() < 1e-6
