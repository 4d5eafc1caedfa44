"""The command line. Every command is a thin wrapper: read options, call one room, show what came back."""

from __future__ import annotations

import os
import re
import signal
import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress
from typing import Annotated, Any

import typer

from moembed import __version__
from moembed.cli import (
    align,
    bench,
    codecs,
    compare,
    compress_vocabulary,
    data,
    distill,
    drift,
    evaluate,
    experiment,
    export,
    merge,
    mine,
    pretrain,
    prune,
    push,
    quantize,
    rerank,
    search,
    serve,
    stores,
    stress,
    synth,
    train,
)
from moembed.console import Interrupted, results_alone, say
from moembed.files import reason
from moembed.threads import share_cores
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
    synth.synth,
    mine.filter,
    mine.mine,
    train.train,
    distill.distill,
    train.upcycle,
    merge.merge,
    prune.prune,
    quantize.quantize,
    align.align,
    align.fuse,
    compress_vocabulary.compress_vocabulary,
    evaluate.evaluate,
    compare.compare,
    drift.drift,
    experiment.experiment,
    stress.stress,
    search.embed,
    search.search,
    rerank.rerank,
    serve.serve,
    train.inspect,
    export.export,
    bench.bench,
    push.push,
):
    app.command()(command)
app.add_typer(data.app, name="data")
search.index.command("push")(stores.push)
search.index.command("compress")(codecs.compress)
search.index.command("bridge")(codecs.bridge)
app.add_typer(search.index, name="index")
# these answer, or measure, single queries; the others have many texts
ONE_QUERY = {"search", "rerank", "bench"}


# Typer brings its own copy of click, or uses the one installed: this is the base of either's errors.
_ClickException: Any = typer.BadParameter.__mro__[2]

_PLAIN = {
    r"Input should be greater than or equal to": "it must be at least",
    r"Input should be greater than": "it must be above",
    r"Input should be less than or equal to": "it must be at most",
    r"Input should be less than": "it must be below",
    r"Input should be a valid integer.*": "it must be a whole number",
    r"Input should be a valid number.*": "it must be a number",
    r"Input should be a finite number": "it must be a finite number",
    r"Unable to parse input string as an integer.*": "the number has too many digits",
    r"\. Did you mean": ", did you mean",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; a user's mistake is one sentence on stderr and exit code 2."""
    warnings.showwarning = lambda message, category, *rest: (
        say(f"note: {message}") if issubclass(category, UserWarning) else None
    )
    for stream in (sys.stdout, sys.stderr):  # what a terminal cannot show must not end a run
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    listed = list(sys.argv[1:] if arguments is None else arguments)
    if not ONE_QUERY & set(listed[:1]):
        share_cores()
    try:
        return _run(_spread_lists(listed))
    except (UserError, EOFError, MemoryError) as error:
        say(f"error: {_sentence(error)}")
        return 2
    except BrokenPipeError:  # the reader went away, as `| head` does
        with open(os.devnull, "w") as nowhere, suppress(OSError, ValueError):
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except OSError as error:
        place = f" ({error.filename})" if error.filename else ""
        say(f"error: {reason(error)}{place}")
        return 2
    except KeyboardInterrupt as error:
        said = str(error) if isinstance(error, Interrupted) else "nothing more was written"
        say(f"stopped: {said}")
        return 130


def _run(arguments: list[str]) -> int:
    """Without typer's own ending, which says no more than "Aborted" of Ctrl-C and of a file cut short."""
    if "_MOEMBED_COMPLETE" in os.environ:  # the shell asks for completions
        app(args=arguments, prog_name="moembed")
    command = typer.main.get_command(app)
    try:
        with (
            results_alone("--json" in arguments),
            command.make_context("moembed", list(arguments)) as context,
        ):
            command.invoke(context)
        if sys.stdout is not None:
            sys.stdout.flush()
    except typer.Exit as error:
        return error.exit_code
    except typer.Abort:
        say("stopped: nothing more was written")
        return 130
    except SystemExit as error:
        return int(error.code or 0)
    except _ClickException as error:
        if not arguments or type(error).__name__ == "NoArgsIsHelpError":
            error.show()
            return 2
        path = error.ctx.command_path if getattr(error, "ctx", None) else "moembed"
        say(f"error: {_usage(error.format_message())}; `{path} --help` lists what there is")
        return 2
    return 0


def _usage(message: str) -> str:
    """A complaint about the command line as part of a sentence; typer passes on those of pydantic."""
    message = " ".join(message.split()).rstrip(".").replace("Value error, ", "")
    for theirs, ours in _PLAIN.items():
        message = re.sub(theirs, ours, message)
    return message[:1].lower() + message[1:]


def _sentence(error: UserError | EOFError | MemoryError) -> str:
    if isinstance(error, EOFError):
        return f"a file ends before its content does ({error}): it was cut short, make or fetch it again"
    if isinstance(error, MemoryError):
        return "the memory of this machine is full: read less at once, or use a machine with more"
    return str(error)


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
