"""The sentences of a report, as plain text."""

from __future__ import annotations

import math

from moembed.compare.estimates import Difference
from moembed.compare.formatting import decimal, difference, metric_name, p_value
from moembed.compare.verdict import is_real
from moembed.report.training.reading import Log, RunReport, number, series, smooth

SYSTEMS = {"moe": "trained MoE", "base": "dense base", "twin": "dense twin", "bm25": "BM25"}


def summary(log: Log, report: RunReport) -> str:
    """What the run reached, in one sentence."""
    metrics = report.metrics
    if not metrics:
        return _unevaluated(log)
    system = "moe" if "moe" in metrics else list(metrics)[-1]
    clauses = []
    if first := metrics[system].get("recall@1"):
        clauses.append(f"finds the right document first for {100 * first.value:.0f} % of the queries")
    elif score := metrics[system].get("ndcg@10"):
        clauses.append(f"reaches {decimal(score.value)} nDCG@10")
    gaps = [
        _gap(row["ndcg@10"], system_name(pair.removeprefix(f"{system}-")))
        for pair, row in report.differences.items()
        if pair.startswith(f"{system}-") and "ndcg@10" in row
    ]
    if gaps:
        clauses.append("it " * bool(clauses) + " and ".join(gaps))
    return f"The {system_name(system)} {'; '.join(clauses) or 'has been evaluated'}."


def _unevaluated(log: Log) -> str:
    _, loss = series(log, "loss")
    course = f"its loss was {decimal(loss[0])}" if len(loss) else "it logged no loss"
    if len(loss) > 1:
        course = f"its smoothed loss went from {decimal(smooth(loss)[0])} to {decimal(smooth(loss)[-1])}"
    return f"The run reached step {log[-1]['step']}; {course}, and {_looked_at(log)}."


def _looked_at(log: Log) -> str:
    """The best evaluation while it trained."""
    step, mean = series(log, "evaluation_mean")
    if not len(mean):
        return "it has not been evaluated yet"
    best = next(record for record in log if record["step"] == step[mean.argmax()])
    metric = metric_name(str(best.get("evaluation_metric")))
    return f"the best mean {metric} while it trained was {decimal(mean.max())}, at step {best['step']}"


def _gap(gap: Difference, other: str) -> str:
    """A difference in words; one that is not real is called neither a gain nor a loss."""
    if is_real(gap):
        if gap.mean > 0:
            return f"gains {difference(gap, '')} nDCG@10 over the {other}"
        return f"loses {difference(gap.turned(), '')} nDCG@10 against the {other}"
    doubt = p_value(gap.p_holm) or "without a test"
    return f"shows no clear difference from the {other} (nDCG@10 {difference(gap)}, {doubt})"


def warnings(log: Log, skipped: int) -> list[str]:
    """What a reader must know about the log itself, one sentence each."""
    sentences = []
    broken = [record["step"] for record in log if "loss" in record and math.isnan(number(record["loss"]))]
    if broken:
        sentences.append(
            f"The loss was not a finite number in {logged(len(broken))}, first at step {broken[0]}."
        )
    abandoned = [record["step"] for record in log if record.get("evaluation", ()) is None]
    if abandoned:
        sentences.append(
            f"Evaluations that ran out of their budget and were abandoned: {len(abandoned)}, first at step "
            f"{abandoned[0]}."
        )
    if skipped:
        sentences.append(f"Lines of metrics.jsonl that could not be read and were left out: {skipped}.")
    return sentences


def verdict(dead: dict[int, list[int]], last: int) -> str:
    """Which experts of which layers received no token in the ``last`` logged steps."""
    places = [f"{_experts(experts)} of layer {layer}" for layer, experts in dead.items() if experts]
    if places:
        return f"Dead, without a token in the last {logged(last)}: {'; '.join(places)}."
    return f"No expert is dead: each received tokens in the last {logged(last)}."


def _experts(numbers: list[int]) -> str:
    return f"expert{'s' * (len(numbers) > 1)} {', '.join(map(str, numbers))}"


def system_name(key: str) -> str:
    """The name people read for a system, or for a pair ``a-b`` that starts with a known one."""
    first, dash, second = key.partition("-")
    if dash and first in SYSTEMS:
        return f"{SYSTEMS[first]} − {SYSTEMS.get(second, second)}"
    return SYSTEMS.get(key, key)


def logged(steps: int) -> str:
    return f"{steps} logged step{'s' * (steps != 1)}"
