"""The model card: what it says is true, its code runs, and it tells nothing that was not known."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml

from conftest import HfFolder, MakeModel
from moembed import Embedder
from moembed.compare import formatting
from moembed.compare.comparison import compare
from moembed.compare.scores import Scores
from moembed.evaluation.result import EvaluationResult
from moembed.families.flat import FlatMoE
from moembed.folder.read import Settings
from moembed.report.card import card, write_card
from moembed.types import UserError

NAMES = {"me/moles": "me/moles", "/home/ann/moles": "moles", "runs/of/moles/model": "moles"}


@pytest.fixture
def folder(moe_model: Embedder, tmp_path: Path) -> Path:
    moe_model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def written(folder: Path, **story: Any) -> str:
    write_card(folder, **({"name": str(folder)} | story))
    return (folder / "README.md").read_text(encoding="utf-8")


def metadata(text: str) -> dict[str, Any]:
    return yaml.safe_load(text.split("---\n")[1])


def python_blocks(text: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)


def test_the_facts(folder: Path, moe_model: Embedder) -> None:
    text = written(folder)
    assert f"| Parameters | {moe_model.num_parameters():,} |" in text
    assert f"| Active per token | {moe_model.num_parameters(active=True):,} |" in text
    assert "| Experts | 4 in each of 2 layers |" in text
    assert "| Experts per token | 2 |" in text
    assert "| Longest text | 32 tokens |" in text
    assert '"query": "query: "' in text


def test_what_is_not_known_is_left_out(folder: Path) -> None:
    text = written(folder)
    assert set(metadata(text)) == {"library_name", "pipeline_tag", "tags"}
    assert "Training" not in text
    assert "Results" not in text
    assert "None" not in text


def test_the_metadata_of_the_hub(folder: Path) -> None:
    text = written(folder, name="me/moles", base="org/base", license="apache-2.0", data=["pairs.jsonl"])
    assert metadata(text) == {
        "library_name": "sentence-transformers",
        "pipeline_tag": "sentence-similarity",
        "license": "apache-2.0",
        "base_model": "org/base",
        "tags": [
            "sentence-transformers",
            "sentence-similarity",
            "feature-extraction",
            "moembed",
            "mixture-of-experts",
        ],
    }
    assert "# me/moles" in text
    assert "- Base: org/base\n- Data: pairs.jsonl" in text


def test_paths_of_the_author_stay_private(folder: Path) -> None:
    text = written(
        folder, name="me/moles", base="/home/ann/models/minilm", data=["/home/ann/secret/pairs.jsonl"]
    )
    assert "ann" not in text
    assert "base_model" not in metadata(text)
    assert "- Base: minilm\n- Data: pairs.jsonl" in text


def test_the_title_is_the_name_or_that_of_the_run(folder: Path) -> None:
    titles = {name: written(folder, name=name).split("\n# ")[1].splitlines()[0] for name in NAMES}
    assert titles == NAMES


def test_the_results_have_intervals(folder: Path) -> None:
    rng = np.random.default_rng(0)
    items, lengths = list(map(str, range(50))), np.zeros(50)
    values = {name: {"ndcg@10": rng.random(50), "mrr@10": rng.random(50)} for name in ("bm25", "moe")}
    scores = {
        name: [{"scifact": Scores("scifact", "retrieval", items, [""] * 50, lengths, own)}]
        for name, own in values.items()
    }
    result = EvaluationResult.from_json(compare(scores).to_json())
    task = replace(result.tasks["scifact"], documents=1200, notes=["A note."])
    result = replace(result, tasks={"scifact": task})
    text = written(folder, results=result)
    cell, gap = task.metrics["moe"]["ndcg@10"], task.differences["bm25"]["ndcg@10"]
    assert "## Results: scifact\n\n50 queries, 1,200 documents" in text
    assert "| | ndcg@10 | mrr@10 |\n|---|---|---|\n" in text
    assert f"| moe | {cell.value:.3f} [{cell.low:.3f}, {cell.high:.3f}] |" in text
    told = formatting.difference(gap)
    assert f"\n\n- bm25 − moe: ndcg@10 {told} (p = {gap.p_holm:.3f}, no clear difference)" in text
    assert "A note." in text


def test_the_code_of_the_card_runs(
    folder: Path, moe_model: Embedder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs, client = python_blocks(written(folder))
    exec(ours, {})
    exec(theirs, {})
    printed = np.array([float(x) for x in re.findall(r"-?\d+\.\d+", capsys.readouterr().out)])
    assert printed[:2] == pytest.approx(printed[2:], abs=1e-5)
    assert len(printed) == 4

    asked: dict[str, Any] = {}

    def create(**arguments: Any) -> Any:
        asked.update(arguments)
        return SimpleNamespace(data=[SimpleNamespace(embedding=[0.0])])

    openai = ModuleType("openai")
    openai.OpenAI = lambda base_url, api_key: SimpleNamespace(  # type: ignore[attr-defined]
        embeddings=SimpleNamespace(create=create)
    )
    monkeypatch.setitem(sys.modules, "openai", openai)
    exec(client, {})
    assert asked == {"model": str(folder), "input": ["query: how do moles find worms?"]}


def test_a_dense_model_needs_no_import_of_ours(hf_folder: HfFolder) -> None:
    folder, _ = hf_folder("bert")
    text = written(folder)
    assert "import moembed" not in python_blocks(text)[1]
    assert "Experts" not in text.replace("Mixture-of-Experts", "")
    assert "mixture-of-experts" not in metadata(text)["tags"]
    assert "texts are embedded as they are" in text


def test_the_published_layout_is_not_offered_to_a_library_that_would_misread_it(
    make_model: MakeModel,
) -> None:
    moe = FlatMoE(layers=(1, 3), num_experts=4, bias="shared")
    config = make_model(moe=moe, position="rope").encoder.spec
    text = card(
        config,
        Settings(32),
        "me/moles",
        "nomic_bert",
    )
    assert "SentenceTransformer" not in text
    assert metadata(text)["library_name"] == "moembed"


def test_not_a_model_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a model folder"):
        write_card(tmp_path, name="moles")
    assert not list(tmp_path.iterdir())
