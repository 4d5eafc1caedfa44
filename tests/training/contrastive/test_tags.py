"""Tags travel from the data to the router: which texts of a batch have which, and what is refused."""

from __future__ import annotations

import os
import re
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from conftest import MakeModel
from moembed.data.sources import Source, SourceConfig, load_source
from moembed.embedder import Embedder
from moembed.files import write_text
from moembed.training.contrastive.settings import SourceOptions
from moembed.training.contrastive.tags import SourceTags
from moembed.training.contrastive.task import ContrastiveTask, Mixture
from moembed.training.contrastive.train import train_contrastive
from moembed.training.parallel import ALONE
from moembed.types import Batch, UserError
from moembed.weights.upcycle import UpcycleConfig, upcycle
from training_runs import PAIRS, assert_same_weights, interrupt_at, metrics, settings

NEGATIVES = [replace(pair, negatives=(f"{pair.query} worms",)) for pair in PAIRS]


@pytest.fixture
def model(make_model: MakeModel) -> Embedder:
    return tagged(make_model, ["de", "en"])


def tagged(make_model: MakeModel, tags: list[str], **router: Any) -> Embedder:
    parts = make_model(num_layers=2).parts()
    options = {"router": {"kind": "tag", "top_k": 1, "tags": tags, **router}}
    spec, state = upcycle(parts.spec, parts.state, UpcycleConfig.model_validate(options))
    return Embedder(replace(parts, spec=spec, state=state))


@pytest.fixture
def mixed(tmp_path: Path) -> Source:
    """A file whose rows say their language."""
    rows = [f'{{"query": "{p.query}", "document": "{p.document}", "language": "{"de" if i % 3 else "en"}"}}\n'
            for i, p in enumerate(PAIRS)]  # fmt: skip
    write_text(tmp_path / "mixed.jsonl", "".join(rows))
    return load_source(SourceConfig(path=str(tmp_path / "mixed.jsonl")))


def tags_of(batches: list[Batch], model: Embedder) -> dict[str, str]:
    """Text -> name of the tag it goes by; special tokens and the prompt are part of a text here."""
    assert model.tags is not None
    found = {}
    for batch in batches:
        assert batch.tag_B is not None
        for ids, tag in zip(batch.token_T.split(batch.length_B), batch.tag_B, strict=True):
            found[model.tokenizer.backend.decode(ids.tolist())] = model.tags.names[tag]
    return found


def first_batch(model: Embedder, source: Source, options: SourceOptions | None = None) -> dict[str, str]:
    task = ContrastiveTask(settings(), model, Mixture([source], options=[options] if options else []), ALONE)
    return tags_of(task.batch(0).chunks.batches, model)


def test_all_texts_of_a_source_have_its_tag(model: Embedder) -> None:
    found = first_batch(model, Source.from_pairs("x", NEGATIVES), SourceOptions(tag="en"))
    assert len(found) == 24
    assert set(found.values()) == {"en"}


def test_documents_and_negatives_may_have_another(model: Embedder) -> None:
    options = SourceOptions(tag="en", document_tag="de")
    found = first_batch(model, Source.from_pairs("x", NEGATIVES), options)
    assert {tag for text, tag in found.items() if text.startswith("query")} == {"en"}
    assert {tag for text, tag in found.items() if text.startswith("document")} == {"de"}


def test_each_pair_has_the_tag_of_its_language(model: Embedder, mixed: Source) -> None:
    found = first_batch(model, mixed, SourceOptions(tag_by="language"))
    language = dict(zip((pair.query for pair in mixed), mixed.languages(range(len(mixed))), strict=True))
    queries = {text.removeprefix("query : "): tag for text, tag in found.items() if text.startswith("query")}
    assert len(queries) == 8
    assert queries == {text: language[text] for text in queries}
    assert set(queries.values()) == {"de", "en"}


def test_roles_are_the_tags_of_every_source(make_model: MakeModel) -> None:
    model = tagged(make_model, ["document", "query"])
    found = first_batch(model, Source.from_pairs("x", NEGATIVES))
    assert all(text.startswith(tag) for text, tag in found.items())


def test_the_experts_of_a_tag_alone_learn(model: Embedder) -> None:
    mixture = Mixture([Source.from_pairs("x", PAIRS)], options=[SourceOptions(tag="en")])
    task = ContrastiveTask(settings(), model, mixture, ALONE)
    task.module.train()
    terms = task.backward(0, task.batch(0))
    assert terms.log["router_loss"] == 0
    (moe,) = (block.ffn for block in model.encoder.layers if hasattr(block.ffn, "up_EFD"))
    assert not moe.up_EFD.grad[0].any()
    assert moe.up_EFD.grad[1].any()


@pytest.mark.parametrize(
    ("tags", "options", "told"),
    [
        (["de", "en"], {}, "does not say which tag its texts have (known: de, en): set tag, or tag_by"),
        (["de", "en"], {"tag": "fr"}, "no experts for the tag 'fr' (known: de, en); add it to the tags"),
        (["de", "en"], {"tag": "de", "document_tag": "fr"}, "no experts for the tag 'fr'"),
        (["de", "en"], {"tag_by": "language"}, "28 pairs have no language"),
        (["query", "document"], {"tag": "query"}, "the tags of this model are roles"),
        ([], {"tag": "de"}, "no router of this model looks at tags"),
    ],
)
def test_what_cannot_be_trained_is_refused(
    tags: list[str], options: dict[str, Any], told: str, make_model: MakeModel
) -> None:
    spec = (tagged(make_model, tags) if tags else make_model()).encoder.spec
    with pytest.raises(UserError, match=re.escape(told)):
        SourceTags.of(spec, Source.from_pairs("x", PAIRS), SourceOptions(**options))


def test_a_default_is_used_and_said(make_model: MakeModel, mixed: Source) -> None:
    spec = tagged(make_model, ["de", "fr"], default_tag="fr").encoder.spec
    tags = SourceTags.of(spec, mixed, SourceOptions(tag_by="language"))
    assert tags is not None
    assert tags.notes == ("10 pairs train the experts of 'fr', the default_tag; their tag is 'en'",)
    query, document = tags.numbers(mixed, [0, 1])
    assert query == document == [1, 0]


def test_two_ways_to_tag_are_refused() -> None:
    with pytest.raises(ValueError, match="not both"):
        SourceOptions(tag="de", tag_by="language")
    with pytest.raises(ValueError, match="give tag too"):
        SourceOptions(document_tag="de")


def test_a_resumed_run_is_the_run(
    make_model: MakeModel, mixed: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the language of each pair, held-out pairs and a source of another tag."""
    options = [SourceOptions(tag_by="language"), SourceOptions(tag="de")]
    mixture = Mixture([mixed, Source.from_pairs("x", PAIRS)], options=options)

    def run(folder: str, resume: bool = False) -> None:
        config = settings(steps=4, held_out=0.1, evaluate_every=2)
        torch.manual_seed(0)
        train_contrastive(config, tagged(make_model, ["de", "en"]), mixture, tmp_path / folder, resume)

    run("whole")
    with monkeypatch.context() as patch:
        interrupt_at(2, patch, lambda: os.kill(os.getpid(), signal.SIGINT))
        run("parts")
    assert len(metrics(tmp_path / "parts")) == 2
    run("parts", resume=True)
    assert_same_weights(tmp_path / "whole" / "model", tmp_path / "parts" / "model")
    assert [line["held_out_loss"] for line in metrics(tmp_path / "whole") if "held_out_loss" in line]
