"""`moembed search --rerank` and `moembed rerank` from the outside: the same scores as in Python."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from conftest import Run
from moembed.embedder import Embedder
from moembed.folder.reranker import fresh_reranker
from moembed.reranker import Reranker

TEXTS = ["owls hunt", "moles dig", "worms", "the night is long", "a mole eats worms"]
QUERY = "what does a mole eat?"


@pytest.fixture
def reranker(moe_model: Embedder, tmp_path: Path) -> Reranker:
    """Of a mixture of experts; its head is large enough to tell texts apart."""
    moe_model.save_pretrained(tmp_path / "embedder")
    model = Reranker(fresh_reranker(tmp_path / "embedder", seed=3)).eval()
    for parameter in model.head.parameters():
        parameter.data *= 20
    model.save_pretrained(tmp_path / "reranker")
    return Reranker.from_pretrained(tmp_path / "reranker")


def test_a_search_is_reranked(run: Run, reranker: Reranker, tmp_path: Path) -> None:
    source = tmp_path / "a.jsonl"
    source.write_text("".join(json.dumps({"text": text, "n": n}) + "\n" for n, text in enumerate(TEXTS)))
    index = ("index", source, "--model", tmp_path / "embedder", "--out", tmp_path / "i", "--dtype", "float32")
    code, _, err = run(*index)
    assert code == 0, err

    scores = reranker.scores(QUERY, TEXTS)
    best = np.argsort(-scores, kind="stable")[:2]
    search = ("search", tmp_path / "i", QUERY, "--rerank", tmp_path / "reranker", "-k", 2, "--json")
    code, out, err = run(*search)
    assert code == 0, err
    hits = json.loads(out)
    assert [hit["n"] for hit in hits] == best.tolist()
    assert [hit["score"] for hit in hits] == pytest.approx(scores[best].tolist(), abs=1e-5)

    # of as many candidates as are asked for, the search gives the nearest
    code, out, err = run("search", tmp_path / "i", QUERY, "-k", 3, "--json")
    nearest = [hit["n"] for hit in json.loads(out)]
    code, out, err = run("search", tmp_path / "i", QUERY, "-k", 3, "--candidates", 3, "--json",
                         "--rerank", tmp_path / "reranker")  # fmt: skip
    found = [hit["n"] for hit in json.loads(out)]
    assert found == sorted(nearest, key=lambda n: -scores[n])

    # an evaluation tells what that is worth, beside the model alone
    task = tmp_path / "moles.jsonl"
    rows = [{"query": QUERY, "document": TEXTS[4]}, {"query": "night?", "document": TEXTS[3]}]
    rows += [{"query": f"{n}?", "document": text} for n, text in enumerate(TEXTS[:3])]
    task.write_text("".join(json.dumps(row) + "\n" for row in rows))
    evaluation = ("evaluate", tmp_path / "embedder", "--no-baselines", "--tasks", task, "--dtype", "float32")
    code, out, err = run(*evaluation, "--rerank", tmp_path / "reranker", "--candidates", 3, "--json",
                         "--keep", tmp_path / "scores")  # fmt: skip
    assert code == 0, err
    alone, both = json.loads(out)["systems"]
    assert both == f"{alone} + {tmp_path}/reranker"
    metrics = json.loads(out)["tasks"]["moles"]["metrics"]
    assert metrics[both] != metrics[alone]
    assert len(list((tmp_path / "scores").iterdir())) == 2
    code, _, err = run(*evaluation, "--rerank", tmp_path / "embedder")
    assert (code, "Traceback" in err) == (2, False)

    code, _, err = run(*search[:4], tmp_path / "embedder")
    assert code == 2
    assert "error:" in err
