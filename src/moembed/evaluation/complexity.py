"""How complex the texts of a task are, by four measures: two suites can be compared where they are alike.

- ``readability``: Gunning's fog index, ``0.4 · (words / sentences + 100 · long words / words)``; long words
  have three syllables or more, counted as groups of vowels. It is made for English.
- ``entropy``: of the words of a text, ``-Σ p log2 p`` in bits. It grows with the length of a text.
- ``dependency``: the mean distance, in words, from a word to the one it depends on, as a parser sees it.
- ``error``: 1 less the score of a named system on the item.

Source: Tang and Yang, *Do We Need Domain-Specific Embedding Models? An Empirical Investigation*
(arXiv 2409.18511), whose abstract names four measures of the complexity of a data set; which they are follows
other people's accounts. Its fourth asks a chat model questions about
the texts; here any system that scores the items takes its place. Gunning, *The Technique of Clear Writing*
(1952); Liu, *Dependency distance as a metric of language comprehension difficulty* (2008).
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from moembed.compare.scores import MAIN, STATISTICS, Scores
from moembed.evaluation.beir import RetrievalTask
from moembed.evaluation.files import PairTask, Task
from moembed.types import UserError

MEASURES = ("readability", "entropy", "dependency", "error")
PARSER = "en_core_web_sm"
# kinds of task whose single items have a score: the others are summed up by a correlation or the like
ITEM_KINDS = {kind for kind, metric in MAIN.items() if metric not in STATISTICS}

_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
_SENTENCE_END = re.compile(r"[.!?。！？]+(?:\s|$)|\n+")
_VOWELS = re.compile(r"[aeiouyàâäéèêëîïôöùûüáíóúåæø]+")
_LONG = 3  # syllables

Measure = Callable[[Sequence[str]], np.ndarray]  # texts -> (N,)


def item_texts(task: Task) -> dict[str, str]:
    """Item of `moembed.compare.scores.Scores` -> its text: of retrieval a query, of pairs both sentences."""
    if isinstance(task, RetrievalTask):
        return dict(zip(task.query_ids, task.queries, strict=True))
    if isinstance(task, PairTask):
        pairs = zip(task.sentence1, task.sentence2, strict=True)
        return {str(row): f"{first}\n{second}" for row, (first, second) in enumerate(pairs)}
    return {str(row): text for row, text in enumerate(task.texts)}


def readability(texts: Sequence[str]) -> np.ndarray:
    """The fog index of every text; 0 of one without words."""
    return np.array([_fog(text) for text in texts], dtype=np.float64)


def _fog(text: str) -> float:
    words = _WORD.findall(text)
    if not words:
        return 0.0
    sentences = sum(bool(_WORD.search(part)) for part in _SENTENCE_END.split(text))
    long = sum(syllables(word) >= _LONG for word in words)
    return 0.4 * (len(words) / max(sentences, 1) + 100 * long / len(words))


def syllables(word: str) -> int:
    """Groups of vowels, less a silent e at the end, as in ``mole`` and ``unique``; at least 1.

    That of ``table``, ``coffee`` and ``movie`` is not silent.
    """
    low = word.lower()
    groups = len(_VOWELS.findall(low))
    silent = re.search("([^aeiouy]|[gq]u)e$", low) and not re.search("[^aeiouy]le$", low)
    return groups - 1 if silent and groups > 1 else max(1, groups)


def entropy(texts: Sequence[str]) -> np.ndarray:
    """Bits per word of every text, upper and lower case alike; 0 of one without words."""
    found = []
    for text in texts:
        counts = Counter(word.lower() for word in _WORD.findall(text)).values()
        total = sum(counts)
        found.append(-sum(count / total * math.log2(count / total) for count in counts))
    return np.array(found, dtype=np.float64)


def dependency(parser: str = PARSER) -> Measure:
    """The mean distance between a word and its head, of every text, roots left out; 0 of single words.

    Raises:
        UserError: spaCy is not installed, or not the model that parses, or that model parses nothing.
    """
    try:
        import spacy
    except ImportError:
        raise UserError(
            "the measure dependency needs spaCy: pip install 'moembed[parser]', or leave the measure out"
        ) from None
    try:
        nlp = spacy.load(parser)
    except (OSError, ImportError):
        raise UserError(
            f"the measure dependency needs the parser {parser}, which is not installed: run python -m spacy "
            f"download {parser}, name another with --parser, or leave the measure out"
        ) from None

    def measure(texts: Sequence[str]) -> np.ndarray:
        found = []
        for doc in nlp.pipe(texts):
            if len(doc) and not doc.has_annotation("DEP"):
                raise UserError(f"{parser} parses nothing: name a model with a parser with --parser")
            found.append(mean_distance([token.head.i for token in doc]))
        return np.array(found, dtype=np.float64)

    return measure


def mean_distance(heads: Sequence[int]) -> float:
    """The mean of ``|i - head_i|`` over all words but roots, whose head is the word itself."""
    apart = [abs(place - head) for place, head in enumerate(heads) if place != head]
    return sum(apart) / len(apart) if apart else 0.0


def error(scores: Scores) -> np.ndarray | None:
    """1 less the score of every item; None where a task has no score of single items, as a correlation."""
    value_Q = scores.values[MAIN[scores.kind]]
    return None if value_Q.ndim > 1 else 1 - value_Q


def complexities(
    tasks: Sequence[Task], measures: Sequence[str], judge: Mapping[str, Scores], parser: str = PARSER
) -> dict[str, dict[str, dict[str, float]]]:
    """measure -> task -> item -> how complex; tasks that a measure has no numbers for are absent.

    Args:
        judge: the scores of the system whose errors count, by task.

    Raises:
        UserError: a measure that is not known, or whose parser is not there.
    """
    if unknown := [name for name in measures if name not in MEASURES]:
        raise UserError(f"unknown measure {unknown[0]!r}; known are {', '.join(MEASURES)}")
    of_texts: dict[str, Measure] = {"readability": readability, "entropy": entropy}
    if "dependency" in measures:
        of_texts["dependency"] = dependency(parser)
    found: dict[str, dict[str, dict[str, float]]] = {name: {} for name in measures}
    for task in tasks:
        texts = item_texts(task)
        for name in measures:
            if name in of_texts:
                values = of_texts[name](list(texts.values()))
                found[name][task.name] = dict(zip(texts, values.tolist(), strict=True))
            elif task.name in judge and (wrong_Q := error(judge[task.name])) is not None:
                found[name][task.name] = dict(zip(judge[task.name].item, wrong_Q.tolist(), strict=True))
    return found
