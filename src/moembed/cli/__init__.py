"""The command line. Every command is a thin wrapper: read options, call one room, show what came back."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from typing import Annotated

import typer

from moembed import __version__
from moembed.cli import bench, compare, data, evaluate, export, mine, pretrain, push, search, stress, train
from moembed.console import say
from moembed.types import UserError

app = typer.Typer(
    help="Train, prove and serve sparse Mixture-of-Experts text embedding models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (
    train.demo,
    pretrain.tokenizer,
    pretrain.pretrain,
    mine.filter,
    mine.mine,
    train.train,
    train.upcycle,
    evaluate.evaluate,
    compare.compare,
    stress.stress,
    search.embed,
    search.index,
    search.search,
    train.inspect,
    export.export,
    bench.bench,
    push.push,
):
    app.command()(command)
app.add_typer(data.app, name="data")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; a user's mistake is one sentence on stderr and exit code 2."""
    warnings.showwarning = lambda message, category, *rest: (
        say(f"note: {message}") if issubclass(category, UserWarning) else None
    )
    try:
        app(args=_spread_lists(list(sys.argv[1:] if arguments is None else arguments)), prog_name="moembed")
    except UserError as error:
        say(f"error: {error}")
        return 2
    except OSError as error:
        place = f" ({error.filename})" if error.filename else ""
        say(f"error: {error.strerror or error}{place}")
        return 2
    except KeyboardInterrupt:
        say("stopped")
        return 130
    except SystemExit as error:
        return int(error.code or 0)
    return 0


def _spread_lists(arguments: list[str]) -> list[str]:
    """``--tasks a b c`` -> ``--tasks a --tasks b --tasks c``, so that a shell's ``--tasks eval/*`` works."""
    spread: list[str] = []
    option = None
    for argument in arguments:
        if argument.startswith("-"):
            option = argument if argument in ("--tasks", "--mteb") else None
            spread += [] if option else [argument]
        else:
            spread += [option, argument] if option else [argument]
    return spread


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        print(__version__)
        raise typer.Exit
