"""The texts that upcycling by clusters looks at."""

from __future__ import annotations

from conftest import MakeModel
from moembed.data.sources import Source
from moembed.training.contrastive.sample import sample_batch
from moembed.training.contrastive.task import Mixture
from moembed.types import Pair
from training_runs import PAIRS, settings


def test_queries_and_documents_of_every_source_as_they_are_trained_on(make_model: MakeModel) -> None:
    tokenizer = make_model().tokenizer
    other = [Pair("worms", f"an owl hunts {i} moles") for i in range(10)]
    mixture = Mixture([Source.from_pairs("a", PAIRS), Source.from_pairs("b", other)])
    config = settings(held_out=0.5, query_length=6, document_length=9)
    batch = sample_batch(mixture, tokenizer, config, 8)
    texts = [tokenizer.backend.decode(ids.tolist()) for ids in batch.token_T.split(batch.length_B)]
    queries = [text for text in texts if text.startswith("query : ")]
    documents = [text for text in texts if text.startswith("document : ")]
    assert len(queries) == len(documents) == 4
    assert len([text for text in queries if text == "query : worms"]) == 2
    assert any(text.startswith(f"query : {PAIRS[0].query[:8]}") for text in queries)
    assert max(batch.length_B) == 9
    assert not any("9" in text for text in texts)  # held out
