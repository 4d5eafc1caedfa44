"""What the model scored while it trained: the mean over the run, and every task at three steps of it."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from moembed.report import html, plots, words
from moembed.report.training import data
from moembed.report.training.data import Log


def cards(log: Log) -> Iterator[str]:
    """The first, the best and the last evaluation; nothing where there was none."""
    step, mean = data.series(log, "evaluation_mean")
    if not len(mean):
        return
    best, last = int(step[mean.argmax()]), int(step[-1])
    found = {record["step"]: record for record in log}
    metric = escape(words.metric_name(str(found[last].get("evaluation_metric"))))
    shown = list(dict.fromkeys((int(step[0]), best, last)))
    scores = [data.mapping(found[number].get("evaluation")) for number in shown]
    rows = [
        [escape(task), *(words.decimal(data.number(score.get(task))) for score in scores)]
        for task in dict.fromkeys(task for score in scores for task in score)
    ]
    if len(rows) > 1:
        rows.append(
            ["mean", *(f"<b>{words.decimal(float(mean[step == number][0]))}</b>" for number in shown)]
        )
    table = html.table(["", *(f"Step {number}{', best' * (number == best)}" for number in shown)], rows)
    drawing = plots.curve(f"Mean {metric} while training", step, mean)
    yield html.card(f"{metric} while training", drawing + table, "Mean over the tasks; often a part of each.")
