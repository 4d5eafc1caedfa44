"""Which words and pieces of words every expert sees: counted here once more, one token at a time."""

from __future__ import annotations

import json
import math
from collections import Counter
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers

from conftest import Run
from moembed.embedder import Embedder
from moembed.moe import router
from moembed.moe.router_kinds import Learned
from moembed.runs.expert_words import LabelCounts, token_kind
from moembed.runs.inspect import expert_load
from moembed.tokenizer import Tokenizer

EXPERTS = 4
TOKENS = st.lists(
    st.tuples(st.sampled_from("abcdef"), st.sets(st.integers(0, EXPERTS - 1), min_size=2, max_size=2)),
    min_size=2,
    max_size=40,
)


def counted(tokens: list[tuple[str, set[int]]], batch: int = 100) -> LabelCounts:
    counts = LabelCounts(EXPERTS)
    for start in range(0, len(tokens), batch):
        some = tokens[start : start + batch]
        pairs = [(t, e) for t, (_, experts) in enumerate(some) for e in sorted(experts)]
        token_P, expert_P = (np.array(column) for column in zip(*pairs, strict=True))
        counts.add([label for label, _ in some], token_P, expert_P)
    return counts


@given(TOKENS)
def test_typical_labels_are_those_of_the_formula(tokens: list[tuple[str, set[int]]]) -> None:
    met = Counter((label, expert) for label, experts in tokens for expert in experts)
    total = sum(met.values())
    for expert, found in enumerate(counted(tokens, batch=7).typical(3)):
        rank = {}
        for (label, its), n in met.items():
            if its == expert:
                of_label = sum(n for (other, _), n in met.items() if other == label)
                of_expert = sum(n for (_, other), n in met.items() if other == expert)
                lift = n * total / (of_label * of_expert)
                share = n / sum(other == label for other, _ in tokens)
                rank[label] = (-n * math.log(lift), label, n, round(share, 4), lift)
        best = sorted(entry for entry in rank.values() if entry[0] < 0)[:3]
        assert [(f["label"], f["count"], f["share"]) for f in found] == [entry[1:4] for entry in best]
        assert [f["lift"] for f in found] == pytest.approx([entry[4] for entry in best], abs=0.006)


@given(TOKENS)
def test_shares_are_those_of_the_visits(tokens: list[tuple[str, set[int]]]) -> None:
    found = counted(tokens, batch=7).shares()
    often = Counter(label for label, _ in tokens)
    assert [(f["label"], f["tokens"]) for f in found] == sorted(often.items(), key=lambda n: (-n[1], n[0]))
    for entry in found:
        visits = Counter(e for label, experts in tokens for e in experts if label == entry["label"])
        total = 2 * entry["tokens"]  # every token here visits two experts
        assert entry["load"] == [round(visits[e] / total, 6) for e in range(EXPERTS)]


@pytest.mark.parametrize(
    ("word", "piece", "kind"),
    [
        (None, "[CLS]", "special"),
        ("Moles", "moles", "whole word"),
        ("café", "cafe", "whole word"),
        ("dug", "▁dug", "whole word"),
        ("digging", "##ging", "part of a word"),
        ("digging", "dig", "part of a word"),
        ("ขุดดิน", "▁ขุด", "part of a word"),
        ("2,026", "##026", "number"),
        ("１２", "12", "number"),
        ("?", "?", "punctuation"),
        ("...", "##.", "punctuation"),
        ("#", "##", "punctuation"),
        ("a", "▁", "punctuation"),
    ],
)
def test_a_token_has_the_kind_that_people_read(word: str | None, piece: str, kind: str) -> None:
    assert token_kind(word, piece) == kind


@given(TOKENS)
def test_agreement_is_the_mean_over_pairs_of_tokens(tokens: list[tuple[str, set[int]]]) -> None:
    def mean(some: list[set[int]]) -> float:
        pairs = list(combinations(some, 2))
        return sum(len(a & b) / 2 for a, b in pairs) / len(pairs)

    by_label: dict[str, list[set[int]]] = {}
    for label, experts in tokens:
        by_label.setdefault(label, []).append(experts)
    often = [some for some in by_label.values() if len(some) > 1]
    found = counted(tokens).agreement()
    if not often:
        assert found is None
        return
    same = sum(mean(some) * len(some) for some in often) / sum(map(len, often))
    assert found == pytest.approx((same, mean([experts for _, experts in tokens])))


def test_the_words_of_experts_are_those_their_router_was_given(
    moe_model: Embedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ["the mole dug and the owl hunts", "moles eat worms at night", "the owl"]
    words = [[None, *text.split(), None] for text in texts]
    words[0][3:4] = ["dug"] * 3  # no word of the vocabulary: from its letters
    source = tmp_path / "texts.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    load = expert_load(moe_model, source, words=100)

    chosen: list[Any] = []
    real = router.ROUTERS["token_choice"]
    assert isinstance(real, Learned)
    monkeypatch.setitem(
        router.ROUTERS,
        "token_choice",
        Learned(lambda *given: chosen.append(real.choose(*given)) or chosen[-1]),  # type: ignore[func-returns-value]
    )
    met: Counter[tuple[int, int, str]] = Counter()
    for text, its in zip(texts, words, strict=True):
        chosen.clear()
        moe_model(moe_model.tokenizer.batch([text]))
        for layer, (token_P, expert_P) in zip((1, 3), chosen, strict=True):
            for token, expert in zip(token_P.tolist(), expert_P.tolist(), strict=True):
                if its[token] is not None:
                    met[layer, expert, str(its[token])] += 1
    assert len({layer for layer, _, _ in met}) == 2
    for layer in load["layers"]:
        assert sum(len(parts["words"]) for parts in layer["experts"]) > 8
        for expert, parts in enumerate(layer["experts"]):
            for word in parts["words"]:
                assert word["count"] == met[layer["layer"], expert, word["label"]]
        assert any(piece["label"].startswith("[") for e in layer["experts"] for piece in e["pieces"])
        kinds = {kind["label"]: kind for kind in layer["kinds"]}
        assert sum(kind["tokens"] for kind in kinds.values()) == load["tokens"]
        assert kinds["special"]["tokens"] == 2 * len(texts)
        assert kinds["part of a word"]["tokens"] == 3  # the letters of "dug"
        visits = sum(n for (number, expert, _), n in met.items() if (number, expert) == (layer["layer"], 0))
        by_kind = [kind["load"][0] * 2 * kind["tokens"] for name, kind in kinds.items() if name != "special"]
        assert sum(by_kind) == pytest.approx(visits, abs=1e-3)
    assert expert_load(moe_model, source, words=0)["layers"][0].keys() == {
        "layer", "load", "entropy", "top_mass", "dead_experts", "expert_distance",
    }  # fmt: skip


def test_the_command_shows_words_and_no_markup_is_lost(
    run: Run, moe_model: Embedder, texts: list[str], tmp_path: Path
) -> None:
    moe_model.save_pretrained(tmp_path / "model")
    source = tmp_path / "texts.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    code, out, err = run("inspect", tmp_path / "model", "--texts", source)
    assert code == 0, err
    assert "layer 1: what each expert sees more than its share of" in out
    assert "two tokens of the same word have" in out
    assert "layer 1: where each kind of token goes" in out
    assert "[CLS]" in out
    code, out, _ = run("inspect", tmp_path / "model", "--texts", source, "--words", "0")
    assert (code, "more than its share" in out) == (0, False)


# ---- the words of tokens -------------------------------------------------------------------------


def test_a_piece_belongs_to_its_word_also_in_a_text_that_is_cut(backend: Backend) -> None:
    tokenizer = Tokenizer(Backend.from_str(backend.to_str()), 7)
    texts = ["Where do voles live?", "", "the zoo is wide", "the owl hunts at night, and the mole"]
    words = tokenizer.word_rows(texts, prompt="query: ")
    rows, cut = tokenizer.rows(texts, prompt="query: ")
    assert cut == 3
    assert [len(row) for row in words] == [len(row) for row in rows]
    assert words[0] == [None, "query", ":", "Where", "do", "voles", None]
    assert words[1] == [None, "query", ":", None]
    assert words[2] == [None, "query", ":", "the", "zoo", "zoo", None]


def test_without_words_a_piece_stands_for_itself() -> None:
    vocabulary = {letter: i for i, letter in enumerate("abc ")}
    whole = Tokenizer(Backend(models.BPE(vocabulary, [])), 9)
    assert whole.word_rows(["ab c"]) == [["a", "b", " ", "c"]]
    parted = Backend(models.BPE(vocabulary, []))
    parted.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    assert Tokenizer(parted, 9).word_rows(["ab c"]) == [["ab", "ab", "c"]]
