"""What a system scores on a task: embed (or search by words), compare, measure, a value for every item.

Of equal scores the lower row comes first, except among the candidates of a reranking query, where one that is
not relevant does: whoever cannot tell candidates apart must not gain by their order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from moembed.compare.scores import MAIN, Scores
from moembed.encoding import Progress, TextEncoder, TokenEncoder
from moembed.evaluation import probes
from moembed.evaluation.beir import RetrievalTask, without_own
from moembed.evaluation.bm25 import bm25_scores, bm25_search
from moembed.evaluation.files import LabelTask, PairTask, Task
from moembed.evaluation.metrics import METRICS, Qrels, evaluate_ranking, parse_metric
from moembed.evaluation.rows import EqualTexts, numbered
from moembed.search import exact
from moembed.search.late_search import maxsim_scores
from moembed.search.token_parts import take
from moembed.types import UserError

DEFAULT_METRICS = {
    "retrieval": ("ndcg@10", "recall@10", "mrr@10"),
    "reranking": ("map", "mrr@10", "ndcg@10"),
    "sts": ("spearman", "pearson"),
    "pair_classification": ("ap",),
    "bitext": ("f1", "accuracy"),
    "classification": ("accuracy",),
    "clustering": ("v_measure",),
}
_PAIRS = 8192  # judged documents compared at a time

_Encode = Callable[[list[str], str], np.ndarray]  # texts, role -> (texts, M)


def metrics_of(kind: str, names: Sequence[str] | None = None) -> list[str]:
    """Of ``names`` those that measure tasks of this kind, and the one that sums them up in any case.

    Retrieval and reranking have those of ``metrics.parse_metric``, the others their own of
    ``DEFAULT_METRICS``, which are also what None stands for, and names that are all of other kinds.

    Raises:
        UserError: a metric of no kind.
    """
    chosen = [name for name in names or () if kind in _kinds(name)]
    if not chosen:
        return list(DEFAULT_METRICS[kind])
    return list(dict.fromkeys(chosen if MAIN[kind] in chosen else [MAIN[kind], *chosen]))


def _kinds(metric: str) -> list[str]:
    if metric.partition("@")[0] in METRICS:
        parse_metric(metric)
        return ["retrieval", "reranking"]
    kinds = [kind for kind, own in DEFAULT_METRICS.items() if metric in own]
    if not kinds:
        others = {
            name for own in DEFAULT_METRICS.values() for name in own if "@" not in name
        } - METRICS.keys()
        raise UserError(
            f"unknown metric {metric!r}; known are {', '.join(METRICS)}, with a cut-off as in ndcg@10, "
            f"and {', '.join(sorted(others))}"
        )
    return kinds


def evaluate(
    task: Task,
    encoder: TextEncoder,
    metrics: Sequence[str] | None = None,
    top_k: int = 100,
    progress: Progress | None = None,
) -> Scores:
    """Embed the texts of a task and score what the vectors say.

    - retrieval, reranking: the candidates of a query in the order of their cosines; of a model that makes a
      vector of every token, in the order of MaxSim, of which all are computed.
    - sts: the cosine of each pair, against its gold score.
    - pair_classification: the cosine of each pair, against its label, 1 or 0. ``ap`` is the average
      precision of the pairs in the order of their cosines.
    - bitext: for every sentence1 the nearest of the distinct sentence2 of its languages. ``accuracy`` is 1
      where that is the right one. ``f1`` is, of its right sentence2 as a class, 2·tp / (2·tp + fp + fn); the
      mean over items is F1 weighted by the size of the classes.
    - classification: of every test text the share of ``probes.REPEATS`` linear probes that name its label.
    - clustering: the cluster of every text among as many as there are labels, against its label.

    Args:
        encoder: is asked for texts of the roles query, document, sts, pair_classification, bitext,
            classification and clustering; which prompt belongs to a role is its business.
        metrics: see ``metrics_of``; those of rankings without a cut-off look at the whole ranking.
        top_k: length of the rankings of retrieval, or more where a metric's cut-off asks for it.
        progress: called with the number of texts embedded since the last call.

    Raises:
        UserError: unknown metrics (before anything is embedded), or vectors that are not finite, not one per
            text, or of different widths.
    """
    names = metrics_of(task.kind, metrics)

    def encode(texts: list[str], role: str) -> np.ndarray:
        return encoder.vectors(texts, role=role, progress=progress).array

    if isinstance(task, RetrievalTask):
        if isinstance(encoder, TokenEncoder) and getattr(encoder, "per_token", False):
            return score_ranking(task, names, _ranked_late(task, encoder, _depth(names, top_k), progress))
        return score_ranking(task, names, _ranked(task, encode, _depth(names, top_k)))
    if isinstance(task, PairTask):
        return (_bitext if task.kind == "bitext" else _gold)(task, names, encode)
    return (_classification if task.kind == "classification" else _clustering)(task, names, encode)


def evaluate_bm25(task: Task, metrics: Sequence[str] | None = None, top_k: int = 100) -> Scores | None:
    """What BM25 scores on a task of retrieval or reranking, as ``evaluate``; None of others."""
    if not isinstance(task, RetrievalTask):
        return None
    names, qrels = metrics_of(task.kind, metrics), task.qrels
    if task.kind == "retrieval":
        own_Q, k = task.own_Q, _depth(names, top_k)
        found = bm25_search(task.queries, task.documents, k + (own_Q is not None))
        return score_ranking(task, names, without_own(found.index, own_Q, k))
    every = enumerate(bm25_scores(task.queries, task.documents))
    judged = [score_N[qrels.document[qrels.offset[q] : qrels.offset[q + 1]]] for q, score_N in every]
    return score_ranking(task, names, _reranked(np.concatenate(judged), qrels))


# ---- rankings ----------------------------------------------------------------------------------------------


def _depth(names: Sequence[str], k: int) -> int:
    return max([k, *(parse_metric(name)[1] or k for name in names)])


def _ranked(task: RetrievalTask, encode: _Encode, k: int) -> np.ndarray:
    query_QM = _vectors(encode, task.queries, "query")
    document_NM = _vectors(encode, task.documents, "document")
    if task.kind == "retrieval":
        own_Q = task.own_Q
        found = exact.top_k(query_QM, document_NM, k + (own_Q is not None))
        return without_own(found.index, own_Q, k)
    query_R, document_R = task.qrels.query_R, task.qrels.document
    blocks = [slice(start, start + _PAIRS) for start in range(0, len(query_R), _PAIRS)]
    score = [exact.pair_scores(query_QM[query_R[some]], document_NM[document_R[some]]) for some in blocks]
    return _reranked(np.concatenate(score), task.qrels)


def _ranked_late(task: RetrievalTask, encoder: TokenEncoder, k: int, progress: Progress | None) -> np.ndarray:
    queries = encoder.encode_tokens(task.queries, role="query", progress=progress)
    documents = encoder.encode_tokens(task.documents, role="document", progress=progress)
    qrels = task.qrels
    if task.kind == "retrieval":
        own_Q = task.own_Q
        wanted = k + (own_Q is not None)
        scored = (maxsim_scores(query_TM, documents) for query_TM in queries)
        ranked = [np.argsort(-score_N, kind="stable")[:wanted] for score_N in scored]
        return without_own(np.stack(ranked), own_Q, k)
    candidates = np.split(qrels.document, qrels.offset[1:-1])  # of every query
    judged = [
        maxsim_scores(query_TM, take(documents, document_R))
        for query_TM, document_R in zip(queries, candidates, strict=True)
    ]
    return _reranked(np.concatenate(judged), qrels)


def _reranked(score_R: np.ndarray, qrels: Qrels) -> np.ndarray:
    """The judged documents of every query by score, of a tie the lower grade first; -1 after the last."""
    query_R = qrels.query_R
    order = np.lexsort((qrels.grade, -score_R, query_R))
    place_R = np.arange(len(query_R)) - qrels.offset[query_R]
    ranked_QK = np.full((len(qrels), place_R.max() + 1), -1)
    ranked_QK[query_R, place_R] = qrels.document[order]
    return ranked_QK


def score_ranking(task: RetrievalTask, names: Sequence[str], ranked_QK: np.ndarray) -> Scores:
    """What the rows of documents that were found, best first and -1 after the last, score by ``names``."""
    language = [task.language.get(query, "") for query in task.query_ids]
    values = evaluate_ranking(ranked_QK, task.qrels, names)
    length = _lengths(task.queries)
    return Scores(task.name, task.kind, task.query_ids, language, length, values, ranked_QK=ranked_QK)


# ---- pairs -------------------------------------------------------------------------------------------------


def _gold(task: PairTask, names: Sequence[str], encode: _Encode) -> Scores:
    """Pairs of (cosine, gold): of sts a score, of pair classification 1 or 0."""
    vector_NM = _vectors_once(encode, task.sentence1 + task.sentence2, task.kind)
    cosine_Q = exact.pair_scores(vector_NM[: len(task)], vector_NM[len(task) :])
    scores = _pairs(task, dict.fromkeys(names, np.stack([cosine_Q, task.gold_Q], axis=1)))
    if (cosine_Q == cosine_Q[0]).all():
        result = "a correlation of 0" if task.kind == "sts" else "the labels cannot be told apart"
        scores.notes.append(f"every pair has the same cosine, {cosine_Q[0]:g}: {result}")
    return scores


def _bitext(task: PairTask, names: Sequence[str], encode: _Encode) -> Scores:
    vector_NM = _vectors_once(encode, task.sentence1 + task.sentence2, "bitext")
    accuracy_Q, f1_Q = np.empty(len(task)), np.empty(len(task))
    for row_P in _by_language(task.language):
        classes = EqualTexts()
        gold_P = np.array([classes.number(task.sentence2[row]) for row in row_P])
        first_C = row_P[np.unique(gold_P, return_index=True)[1]]
        found_P = exact.top_k(vector_NM[row_P], vector_NM[len(task) + first_C], 1).index[:, 0]
        accuracy_Q[row_P] = found_P == gold_P
        f1_Q[row_P] = _class_f1(found_P, gold_P)[gold_P]
    values = {"accuracy": accuracy_Q, "f1": f1_Q}
    return _pairs(task, {name: values[name] for name in names})


def _class_f1(found_P: np.ndarray, gold_P: np.ndarray) -> np.ndarray:
    """F1 of every class of ``gold_P``: tp + fp of its items were found, and tp + fn are there to be found."""
    classes = gold_P.max() + 1
    tp_C = np.bincount(gold_P[found_P == gold_P], minlength=classes)
    return 2 * tp_C / (np.bincount(found_P, minlength=classes) + np.bincount(gold_P, minlength=classes))


def _pairs(task: PairTask, values: dict[str, np.ndarray]) -> Scores:
    item = [str(row) for row in range(len(task))]
    length = _lengths(task.sentence1) + _lengths(task.sentence2)
    return Scores(task.name, task.kind, item, task.language, length, values)


# ---- labels ------------------------------------------------------------------------------------------------


def _classification(task: LabelTask, names: Sequence[str], encode: _Encode) -> Scores:
    label_N, right_N = np.array(task.labels), np.zeros(len(task.texts))
    for row_P in _by_language(task.language):
        train_P, test_P = row_P[task.train_N[row_P]], row_P[~task.train_N[row_P]]
        drawn = [train_P[draw] for draw in probes.draws(label_N[train_P].tolist())]
        used = np.unique(np.concatenate([*drawn, test_P]))
        vector_UM = _vectors_once(encode, [task.texts[row] for row in used], "classification")
        test_PM = vector_UM[np.searchsorted(used, test_P)]
        for draw in drawn:
            found_P = probes.predict(vector_UM[np.searchsorted(used, draw)], label_N[draw], test_PM)
            right_N[test_P] += found_P == label_N[test_P]
    item = np.flatnonzero(~task.train_N)
    return _texts(task, item, dict.fromkeys(names, right_N[item] / probes.REPEATS))


def _clustering(task: LabelTask, names: Sequence[str], encode: _Encode) -> Scores:
    vector_NM = _vectors_once(encode, task.texts, "clustering")
    number = numbered(task.labels)
    cluster_N = probes.clusters(vector_NM, len(number))
    value_N2 = np.stack([cluster_N, [number[label] for label in task.labels]], axis=1).astype(np.float64)
    return _texts(task, np.arange(len(task)), dict.fromkeys(names, value_N2))


def _texts(task: LabelTask, item: np.ndarray, values: dict[str, np.ndarray]) -> Scores:
    language, length = [task.language[row] for row in item], _lengths([task.texts[row] for row in item])
    return Scores(task.name, task.kind, [str(row) for row in item], language, length, values)


# ---- what all need -----------------------------------------------------------------------------------------


def _vectors(encode: _Encode, texts: list[str], role: str) -> np.ndarray:
    vector_NM = encode(texts, role)
    if len(vector_NM) != len(texts):
        raise UserError(
            f"the encoder made {len(vector_NM)} vectors of {len(texts)} {role} texts: one each is needed"
        )
    return vector_NM


def _vectors_once(encode: _Encode, texts: list[str], role: str) -> np.ndarray:
    """A vector for every text; one that occurs again is not embedded again."""
    number = numbered(texts)
    return _vectors(encode, list(number), role)[[number[text] for text in texts]]


def _by_language(language: Sequence[str]) -> list[np.ndarray]:
    """The rows of every language, languages in the order of their first row."""
    language_N = np.array(language)
    return [np.flatnonzero(language_N == name) for name in dict.fromkeys(language)]


def _lengths(texts: Sequence[str]) -> np.ndarray:
    return np.array([len(text) for text in texts], dtype=np.int64)
