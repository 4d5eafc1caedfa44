"""`moembed drift`: what training changed in a model."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from moembed.cli.options import MODEL, AllowPickle, Json
from moembed.console import print_json, print_table, say

_FIGURES = ["change", "cosine", "values"]


def drift(
    before: Annotated[str, typer.Argument(help=f"The model it was made of. {MODEL}")],
    after: Annotated[str, typer.Argument(help=f"The model that was trained. {MODEL}")],
    tensors: Annotated[int, typer.Option(min=0, help="How many tensors to list, the most moved first.")] = 10,
    experts: Annotated[int, typer.Option(min=0, help="How many experts to list.")] = 32,
    allow_pickle: AllowPickle = False,
    json_: Json = False,
) -> None:
    """How far a model moved from the one it was made of: by layer and kind, by expert, by tensor.

    The change is the norm of the difference over the norm before. Words are compared token by token, experts
    one by one, and with the dense block that they were made of. See docs/drift.md.

    Example: `moembed drift minilm runs/mine`
    """
    from moembed.runs.drift import drift_report

    report = drift_report(before, after, allow_pickle)
    if json_:
        print_json(report)
        return
    whole = [["all that both have", *_cells(report["whole"])]]
    print_table(f"{report['before']} -> {report['after']}", ["", *_FIGURES], whole)
    rows = [[_layer(group["layer"]), group["kind"], *_cells(group)] for group in report["groups"]]
    print_table("by layer and kind", ["layer", "kind", *_FIGURES], rows)
    if report["experts"] and experts:
        rows = [
            [str(entry["layer"]), str(entry["expert"]), "dense block" if entry["was_dense"] else "the same",
             *_cells(entry)]
            for entry in report["experts"][:experts]
        ]  # fmt: skip
        print_table(_title("experts", rows, report), ["layer", "expert", "held against", *_FIGURES], rows)
    if tensors:
        rows = [
            [entry["name"], "" if entry["expert"] is None else str(entry["expert"]), *_cells(entry)]
            for entry in report["tensors"][:tensors]
        ]
        print_table(_title("tensors", rows, report), ["tensor", "expert", *_FIGURES], rows)
    _say_the_rest(report)


def _say_the_rest(report: dict[str, Any]) -> None:
    words = report["vocabulary"]
    if words["added"] or words["removed"]:
        compared = "" if "word.weight" in report["reshaped"] else " and compared"
        say(
            f"of the tokens {words['shared']:,} are in both models{compared}, {words['added']:,} are new "
            f"and {words['removed']:,} are gone"
        )
    for key, what in (("added", "only after"), ("removed", "only before"), ("reshaped", "of another shape")):
        if names := report[key]:
            more = f" and {len(names) - 8} more" if len(names) > 8 else ""
            say(f"{what}, so not compared: {', '.join(names[:8])}{more}")


def _title(what: str, rows: list[list[str]], report: dict[str, Any]) -> str:
    return f"the {len(rows)} most moved of {len(report[what])} {what}"


def _cells(entry: dict[str, Any]) -> list[str]:
    change = "was 0" if entry["relative"] is None else f"{entry['relative']:.3%}"
    cosine = "" if entry["cosine"] is None else f"{entry['cosine']:.6f}"
    return [change, cosine, f"{entry['values']:,}"]


def _layer(number: int | None) -> str:
    return "" if number is None else str(number)
