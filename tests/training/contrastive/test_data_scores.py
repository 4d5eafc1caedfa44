"""The scores that rows bring along are learned as those of a teacher are."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import MakeModel, NewModel
from moembed.config import validate
from moembed.data.sources import Source, SourceConfig, load_source
from moembed.runs.train_reranker import RerankerConfig
from moembed.runs.train_sources import TrainSource
from moembed.training.contrastive.settings import ContrastiveConfig
from moembed.training.contrastive.task import ContrastiveTask, Mixture
from moembed.training.contrastive.teachers import Teachers, judged_by_data
from moembed.training.contrastive.train import train_contrastive
from moembed.training.parallel import ALONE
from moembed.types import Pair, UserError
from training_runs import PAIRS, metrics, settings

OWN = {"candidates": "own", "temperature": 0.5}
HARD = [
    replace(pair, negatives=(PAIRS[i - 3].document, PAIRS[i - 5].document)) for i, pair in enumerate(PAIRS)
]


@pytest.mark.parametrize("limit", [None, 1])
@pytest.mark.parametrize("normalize", ["z", "none"])
def test_the_scores_of_a_teacher_in_the_data_are_that_teacher(
    limit: int | None, normalize: str, make_model: MakeModel
) -> None:
    teacher = make_model(seed=5)
    vectors = {}
    for role, texts in (("query", [p.query for p in HARD]), ("document", [p.document for p in HARD])):
        found_BM = torch.from_numpy(teacher.vectors(texts, role=role).array)
        vectors[role] = dict(zip(texts, found_BM, strict=True))
    scored = [
        replace(pair, scores=tuple(
            float(vectors["query"][pair.query] @ vectors["document"][text])
            for text in (pair.document, *pair.negatives)
        ))
        for pair in HARD
    ]  # fmt: skip
    config = settings(distill={"teachers": "t", "normalize": normalize} | OWN).distill
    assert config is not None
    pairs = scored[:8]
    owner_N = torch.tensor([*range(8), *(i for i, pair in enumerate(pairs) for _ in pair.negatives[:limit])])
    documents = [p.document for p in pairs] + [text for p in pairs for text in p.negatives[:limit]]
    wanted = Teachers([teacher], config).judge([p.query for p in pairs], documents, owner_N)
    found = judged_by_data(pairs, owner_N, limit, config)
    assert torch.equal(found.among_QN, wanted.among_QN)
    torch.testing.assert_close(found.target_QN, wanted.target_QN, atol=1e-5, rtol=1e-4)
    assert (found.weight, found.temperature) == (wanted.weight, wanted.temperature)


def test_a_run_learns_the_order_of_the_data(new_model: NewModel, tmp_path: Path) -> None:
    scored = Source.from_pairs("scored", [replace(pair, scores=(0.0, 5.0, 1.0)) for pair in HARD])
    config = settings(steps=12, distill=OWN | {"weight": 5.0}, loss={"temperature": 1.0})
    train_contrastive(config, new_model(), Mixture([scored]), tmp_path)
    lines = metrics(tmp_path)
    early, late = (sum(line["score_kl"] for line in part) for part in (lines[:3], lines[-3:]))
    assert 0 < late < early


# ---- rows ----------------------------------------------------------------------------------------


def rows(path: Path, *found: dict[str, Any]) -> SourceConfig:
    path.write_text("".join(json.dumps(row) + "\n" for row in found))
    return SourceConfig(path=str(path), scores="scores")


def test_a_row_has_a_score_for_each_of_its_texts(tmp_path: Path) -> None:
    plain = {"query": "q", "document": "d", "negative": ["a", None, "b"], "scores": [3, 1.5, "-2"]}
    lists = {"query": "q", "pos": ["d", "e"], "neg": ["a"], "scores": [3, 2, 1]}
    table = load_source(rows(tmp_path / "rows.jsonl", plain, lists))
    assert list(table) == [
        Pair("q", "d", ("a", "b"), scores=(3.0, 1.5, -2.0)),
        Pair("q", "d", ("a",), scores=(3.0, 1.0)),
        Pair("q", "e", ("a",), scores=(2.0, 1.0)),
    ]
    assert table.notes == ()
    assert table.count_unscored() == 0
    assert next(iter(table)).row()["scores"] == (3.0, 1.5, -2.0)
    # written as text, and other scores are other data
    (tmp_path / "rows.csv").write_text('query,document,negative,scores\nq,d,a,"[3, 1]"\n')
    source = SourceConfig(path=str(tmp_path / "rows.csv"), scores="scores")
    assert list(load_source(source)) == [Pair("q", "d", ("a",), scores=(3.0, 1.0))]
    pair = Pair("q", "d", ("a",))
    prints = {
        Source.from_pairs("s", [replace(pair, scores=scores)]).fingerprint()
        for scores in ((), (1.0, 2.0), (1.0, 3.0))
    }
    assert len(prints) == 3


@pytest.mark.parametrize(
    ("scores", "sentence"),
    [
        ([1], "has 1 scores, and the row 2 texts to have one: 1 that answer the query and 1 hard negatives"),
        ([1, None], "column 'scores' is missing"),
        ([1, "much"], "column 'scores' is 'much', no number"),
        ("high", "column 'scores' is 'high', no list of numbers"),
        (None, "column 'scores' is missing"),
        (3, "column 'scores' is no list of numbers"),
    ],
)
def test_a_row_without_good_scores_is_a_bad_row(scores: Any, sentence: str, tmp_path: Path) -> None:
    row = {"query": "q", "document": "d", "negative": "a", "scores": scores}
    with pytest.raises(UserError, match=re.escape(sentence)):
        load_source(rows(tmp_path / "rows.jsonl", row))
    del row["scores"]
    with pytest.raises(UserError, match=r"no column 'scores'.*name it with the option scores of the source"):
        load_source(rows(tmp_path / "rows.jsonl", row))


# ---- what does not fit together ------------------------------------------------------------------


def test_what_is_missing_is_one_sentence(make_model: MakeModel) -> None:
    def task(pairs: list[Pair], **changes: Any) -> ContrastiveTask:
        config = settings(**changes)
        return ContrastiveTask(config, make_model(), Mixture([Source.from_pairs("tiny", pairs)]), ALONE)

    scored = [replace(pair, scores=(1.0, 0.0, 0.0)) for pair in HARD]
    with pytest.raises(UserError, match=r"1 of 28 pairs of source tiny have none: name their column"):
        task([*scored[:-1], HARD[-1]], distill=OWN)
    with pytest.raises(UserError, match="source tiny has no hard negatives: make some with `moembed mine`"):
        task([replace(pair, scores=(1.0,)) for pair in PAIRS], distill=OWN)
    with pytest.raises(UserError, match="set candidates to own"):
        validate(ContrastiveConfig, {"steps": 1, "distill": {}})
    said = task([*scored[:-1], replace(PAIRS[-1], scores=(1.0,))], distill=OWN).notes
    assert any("1 of 28 pairs have no hard negative" in note for note in said)
    assert task(scored).notes == ["note: tiny: its scores are not used, for distill is not set"]
    assert task(HARD).notes == []
    with pytest.raises(UserError, match="scores rank a document and hard negatives, and task_type is sts"):
        validate(TrainSource, {"path": "x.csv", "task_type": "sts", "scores": "scores"})
    data = [{"path": "x.jsonl", "scores": "scores"}]
    with pytest.raises(UserError, match="a reranker learns from negatives"):
        validate(RerankerConfig, {"task": "reranking", "base": "m", "out": "o", "steps": 1, "data": data})
