"""What the model scored while it trained: the mean over the run, and every task at three steps of it."""

from __future__ import annotations

from collections.abc import Iterator

from moembed.compare.formatting import decimal, metric_name
from moembed.report import plots
from moembed.report.pieces import Card, Cell, Row, Table
from moembed.report.training.reading import Log, mapping, number, series


def cards(log: Log) -> Iterator[Card]:
    """The first, the best and the last evaluation; nothing where there was none."""
    step, mean = series(log, "evaluation_mean")
    if not len(mean):
        return
    best, last = int(step[mean.argmax()]), int(step[-1])
    found = {record["step"]: record for record in log}
    metric = metric_name(str(found[last].get("evaluation_metric")))
    shown = list(dict.fromkeys((int(step[0]), best, last)))
    scores = [mapping(found[at].get("evaluation")) for at in shown]
    rows: list[Row] = [
        [task, *(decimal(number(score.get(task))) for score in scores)]
        for task in dict.fromkeys(task for score in scores for task in score)
    ]
    if len(rows) > 1:
        means = (decimal(float(mean[step == at][0])) for at in shown)
        rows.append(["mean", *(Cell(value, look="strong") for value in means)])
    head = ["", *(f"Step {at}{', best' * (at == best)}" for at in shown)]
    yield Card(
        f"{metric} while training",
        "Mean over the tasks; often a part of each.",
        drawing=plots.curve(f"Mean {metric} while training", step, mean),
        tables=[Table(head, {"": rows})],
    )
