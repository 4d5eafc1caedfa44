"""What experts do, in words: which words, pieces of words and kinds of tokens every expert sees."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np

from moembed.token_experts import RoutedLayer


def token_kind(word: str | None, piece: str) -> str:
    """What a token is: special, punctuation (no letter or digit), a number, a whole word or a part of one.

    A whole word reads as its word does, but for case and accents, which a tokenizer may drop. Where a
    tokenizer does not divide texts into words, as for Thai, most tokens are parts.
    """
    if word is None:
        return "special"
    read = _plain(piece.removeprefix("##").strip("▁"))
    if not any(letter.isalnum() for letter in read):
        return "punctuation"
    if read.isnumeric():
        return "number"
    return "whole word" if read == _plain(word) else "part of a word"


def _plain(text: str) -> str:
    parts = unicodedata.normalize("NFKD", text)
    return "".join(letter for letter in parts if not unicodedata.combining(letter)).casefold()


class LabelCounts:
    """How often tokens of each label (a word, a piece, or a kind of token) met each expert of one layer."""

    def __init__(self, num_experts: int) -> None:
        self._number: dict[str, int] = {}
        self._met_LE = np.zeros((0, num_experts), dtype=np.int64)  # L labels
        self._seen_L = np.zeros(0, dtype=np.int64)

    def add(self, labels: Sequence[str], token_P: np.ndarray, expert_P: np.ndarray) -> None:
        """``labels`` of the tokens of a batch, and the (token, expert) pairs that its router made."""
        number_T = np.array(
            [self._number.setdefault(label, len(self._number)) for label in labels], dtype=int
        )
        if (new := len(self._number) - len(self._seen_L)) > 0:
            room = max(new, len(self._seen_L))  # doubling, so that not every batch copies all rows
            self._met_LE = np.pad(self._met_LE, ((0, room), (0, 0)))
            self._seen_L = np.pad(self._seen_L, (0, room))
        np.add.at(self._seen_L, number_T, 1)
        np.add.at(self._met_LE, (number_T[token_P], expert_P), 1)

    def typical(self, top: int) -> list[list[dict[str, Any]]]:
        """For every expert its ``top`` most typical labels.

        With n(w, e) the meetings of label w and expert e, and N all meetings, labels are ranked by
        ``n(w, e) * ln(n(w, e) * N / (n(w) * n(e)))``, their part in the mutual information of label and
        expert: both frequent and more often here than by chance. Labels below chance are left out.

        Returns:
            ``label``, ``count`` (tokens of it that this expert saw), ``share`` (of the tokens of this label)
            and ``lift`` (how many times as often as by chance).
        """
        labels = list(self._number)
        met_LE, seen_L = self._met_LE[: len(labels)], self._seen_L[: len(labels)]
        total, by_label_L, by_expert_E = met_LE.sum(), met_LE.sum(1), met_LE.sum(0)
        found = []
        for expert, by_expert in enumerate(by_expert_E):
            met_L = met_LE[:, expert]
            rows = np.flatnonzero(met_L)
            lift = met_L[rows] * float(total) / (by_label_L[rows] * float(max(by_expert, 1)))
            rank = met_L[rows] * np.log(lift)
            # ties by the label, not by the order of the texts
            order = sorted(np.flatnonzero(rank > 0), key=lambda i: (-rank[i], labels[rows[i]]))[:top]
            found.append(
                [
                    {
                        "label": labels[rows[i]],
                        "count": int(met_L[rows[i]]),
                        "share": round(float(met_L[rows[i]] / seen_L[rows[i]]), 4),
                        "lift": round(float(lift[i]), 2),
                    }
                    for i in order
                ]
            )
        return found

    def shares(self) -> list[dict[str, Any]]:
        """Of every label ``tokens`` and ``load``, the shares of their visits; the most frequent first.

        A label whose tokens visited no expert, as where experts choose tokens, has shares of zero.
        """
        rows = sorted(self._number.items(), key=lambda item: (-self._seen_L[item[1]], item[0]))
        return [
            {
                "label": label,
                "tokens": int(self._seen_L[row]),
                "load": [
                    round(n / max(int(self._met_LE[row].sum()), 1), 6) for n in self._met_LE[row].tolist()
                ],
            }
            for label, row in rows
        ]

    def agreement(self) -> tuple[float, float] | None:
        """The share of experts that two tokens of one label have in common, and two tokens at random.

        With k experts per token, two tokens have ``|A and B| / k`` of them in common. The first figure is the
        mean over pairs of tokens of one label, then over labels weighted by their tokens; the second is the
        mean over all pairs. Both are unbiased. None where no label comes twice.
        """
        labels = len(self._number)
        met_LE, seen_L = self._met_LE[:labels].astype(float), self._seen_L[:labels].astype(float)
        often = seen_L > 1
        tokens, pairs = seen_L.sum(), met_LE.sum()
        if not often.any() or not pairs:
            return None
        per_token = pairs / tokens
        met, seen = met_LE[often], seen_L[often]
        common = (met * (met - 1)).sum(1) / (per_token * seen * (seen - 1))
        by_expert = met_LE.sum(0)
        chance = (by_expert * (by_expert - 1)).sum() / (per_token * tokens * (tokens - 1))
        return float((common * seen).sum() / seen.sum()), float(chance)


class ExpertWords:
    """Words, pieces and kinds of tokens by layer and expert, over all batches that were added."""

    def __init__(self, num_experts: int) -> None:
        self._num_experts = num_experts
        self._words: dict[int, LabelCounts] = {}
        self._pieces: dict[int, LabelCounts] = {}
        self._kinds: dict[int, LabelCounts] = {}

    def add(self, words: Sequence[str | None], pieces: Sequence[str], layers: Sequence[RoutedLayer]) -> None:
        """The tokens of a batch, in its packed order, and the pairs its MoE layers made of them.

        A word that is None is a special token, which is no word.
        """
        is_word_T = np.array([word is not None for word in words], dtype=bool)
        real = [word for word in words if word is not None]
        kinds = [token_kind(word, piece) for word, piece in zip(words, pieces, strict=True)]
        place_T = np.cumsum(is_word_T) - 1  # of a token among those that are words
        for routed in layers:
            for counts in (self._words, self._pieces, self._kinds):
                counts.setdefault(routed.layer, LabelCounts(self._num_experts))
            self._pieces[routed.layer].add(pieces, routed.token_P, routed.expert_P)
            self._kinds[routed.layer].add(kinds, routed.token_P, routed.expert_P)
            kept_P = is_word_T[routed.token_P]
            self._words[routed.layer].add(real, place_T[routed.token_P[kept_P]], routed.expert_P[kept_P])

    def layer(self, layer: int, top: int) -> dict[str, Any]:
        """``experts``: typical ``words`` and ``pieces`` of each; ``kinds``; ``agreement`` of words."""
        words, pieces = self._words[layer].typical(top), self._pieces[layer].typical(top)
        experts = [{"words": some, "pieces": parts} for some, parts in zip(words, pieces, strict=True)]
        found: dict[str, Any] = {"experts": experts, "kinds": self._kinds[layer].shares(), "agreement": None}
        if (agreement := self._words[layer].agreement()) is not None:
            same, other = agreement
            found["agreement"] = {"same_word": round(same, 4), "any_words": round(other, 4)}
        return found
