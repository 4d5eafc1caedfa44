"""A language model as a reranker: its scores are those that transformers' logits of yes and no give."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer

from conftest import randomise
from moembed.folder.judge import QWEN3
from moembed.reranker import Reranker
from moembed.types import UserError
from tiny_configs import CONFIGS

QUERY = "what does a mole eat?"
DOCUMENTS = ["moles eat worms", "", "an owl hunts voles at night, and moles", "yes", "no\n worms"]
MARKS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>"]


def make_judge(
    path: Path, texts: list[str], tied: bool, words: str = "yes no "
) -> transformers.PreTrainedModel:
    backend = Backend(BPE())
    backend.pre_tokenizer = ByteLevel(add_prefix_space=False)
    trainer = BpeTrainer(
        vocab_size=400, initial_alphabet=ByteLevel.alphabet(), special_tokens=[], show_progress=False
    )
    backend.train_from_iterator(["\n".join(words.split()) * 50, *texts, *texts], trainer)
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=MARKS[0], pad_token=MARKS[0]
    )
    fast.add_tokens([AddedToken(mark, special=True) for mark in MARKS[1:]])
    fast.save_pretrained(path)
    values = {key: value for key, value in CONFIGS["qwen3"].items() if key != "model_type"}
    values |= {"vocab_size": len(fast), "max_position_embeddings": 512, "tie_word_embeddings": tied}
    model = transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**values)).eval()
    randomise(model, 5)
    model.save_pretrained(path)
    return model


def expected(path: Path, model: Any, limit: int = 512) -> list[float]:
    """As the model card of Qwen3-Reranker computes it, with transformers' own tokenizer."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    before, after = (tokenizer.encode(text, add_special_tokens=False) for text in (QWEN3.before, QWEN3.after))
    yes, no = tokenizer.convert_tokens_to_ids("yes"), tokenizer.convert_tokens_to_ids("no")
    instruction = "Given a web search query, retrieve relevant passages that answer the query"
    scores = []
    for document in DOCUMENTS:
        text = f"<Instruct>: {instruction}\n<Query>: {QUERY}\n<Document>: {document}"
        room = limit - len(before) - len(after)
        ids = tokenizer(text, truncation="longest_first", max_length=room)["input_ids"]
        with torch.no_grad():
            logits = model(torch.tensor([before + ids + after])).logits[0, -1]
        scores.append(float(logits[[no, yes]].log_softmax(0)[1].exp()))
    return scores


@pytest.mark.parametrize("tied", [True, False])
def test_scores_are_those_of_transformers(tied: bool, tmp_path: Path, texts: list[str]) -> None:
    model = make_judge(tmp_path / "m", texts, tied)
    with pytest.warns(UserWarning, match="is a language model: it is asked in the words of Qwen3-Reranker"):
        ours = Reranker.from_pretrained(tmp_path / "m", device="cpu")
    scores = ours.scores(QUERY, DOCUMENTS)
    assert np.allclose(scores, expected(tmp_path / "m", model), atol=1e-5)
    assert np.ptp(scores) > 1e-3
    ours.save_pretrained(tmp_path / "again")
    config = json.loads((tmp_path / "again" / "config.json").read_text())
    assert config["architectures"] == ["Qwen3ForSequenceClassification"]
    again = Reranker.from_pretrained(tmp_path / "again", device="cpu")
    assert np.allclose(again.scores(QUERY, DOCUMENTS), scores, atol=1e-6)
    file = tmp_path / "again" / "config_sentence_transformers.json"
    file.write_text(file.read_text().replace("{document}", "document"))
    with pytest.raises(UserError, match=r"must hold \{query\} and then \{document\}"):
        Reranker.from_pretrained(tmp_path / "again", device="cpu")


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_long_pair_is_cut_at_its_end_and_told(tmp_path: Path, texts: list[str]) -> None:
    model = make_judge(tmp_path, texts, tied=True)
    ours = Reranker.from_pretrained(tmp_path, device="cpu")
    assert ours.scored(QUERY, DOCUMENTS).cut.tolist() == [0] * len(DOCUMENTS)
    longest = max(len(ours.tokenizer.backend.encode(QWEN3.text(QUERY, text)).ids) for text in DOCUMENTS)
    around = len(ours.tokenizer.backend.encode(QWEN3.before + QWEN3.after).ids)
    ours.tokenizer.max_length = around + longest - 3
    found = ours.scored(QUERY, DOCUMENTS)
    assert max(found.cut.tolist()) == 3
    assert np.allclose(found.array, expected(tmp_path, model, ours.tokenizer.max_length), atol=1e-5)
    ours.tokenizer.max_length = around
    with pytest.raises(UserError, match=f"the words around a pair alone are {around} tokens"):
        ours.scored(QUERY, DOCUMENTS)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_tokenizer_without_yes_cannot_judge(tmp_path: Path, texts: list[str]) -> None:
    make_judge(tmp_path, texts, tied=True, words="ja nein ")
    with pytest.raises(UserError, match="no single token for 'yes'"):
        Reranker.from_pretrained(tmp_path, device="cpu")
