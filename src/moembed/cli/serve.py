"""`moembed serve`: one model over HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from moembed.cli.options import MODEL, Json, load_model
from moembed.console import print_json, say
from moembed.types import UserError

if TYPE_CHECKING:
    from moembed.serve.settings import ServeSettings

_MISSING = "serving needs FastAPI, uvicorn and a few more: pip install 'moembed[serve]'"


def serve(
    model: Annotated[str | None, typer.Argument(help=MODEL, show_default=False)] = None,
    settings: Annotated[
        list[str] | None,
        typer.Argument(help="name=value for any setting: max_texts=64.", show_default=False),
    ] = None,
    index: Annotated[Path | None, typer.Option(help="An index to search, or a run that holds one.")] = None,
    reranker: Annotated[
        str | None, typer.Option(help="A cross-encoder, for /rerank and for /search with rerank.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="What clients call the model.")] = None,
    host: Annotated[str | None, typer.Option(help="Default 127.0.0.1; 0.0.0.0 for every address.")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Default 8000; 0: a free one.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes; they share the model.")] = None,
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16, int8 or auto: bfloat16 where the CPU has it.")
    ] = None,
    max_wait: Annotated[
        float | None, typer.Option(min=0, help="Seconds of work that may wait, then 429; default 20.")
    ] = None,
    api_key: Annotated[
        list[str] | None,
        typer.Option(help="A key that requests must bring; may be repeated. Others of this machine see it."),
    ] = None,
    api_key_file: Annotated[Path | None, typer.Option(help="A file of keys, one a line.")] = None,
    truncate: Annotated[
        str | None, typer.Option(help="error, truncate or chunk: what becomes of a text too long.")
    ] = None,
    allow_any_dim: Annotated[
        bool, typer.Option("--allow-any-dim", help="Give dimensions the model was not trained for, too.")
    ] = False,
    allow_pickle: Annotated[
        bool, typer.Option("--allow-pickle", help="Read pytorch_model.bin where there is no safetensors.")
    ] = False,
    config: Annotated[Path | None, typer.Option(help="A YAML or .env file of settings.")] = None,
    show_settings: Annotated[
        bool, typer.Option("--show-settings", help="Print every setting and where it came from, and stop.")
    ] = False,
    json_: Json = False,
) -> None:
    """Serve embeddings, search and reranking over HTTP, with OpenAI's and TEI's routes.

    Every setting can be given as name=value, the common ones as options too; else it comes from the
    environment (MOEMBED_SERVE_PORT for port), else from the file of --config, else it has its default.
    `--show-settings` lists all of them and says which.

    Example: `moembed serve runs/demo`
    """
    flags = {
        "model": model, "index": index, "reranker": reranker, "name": name, "host": host, "port": port,
        "workers": workers, "dtype": dtype, "api_keys": api_key, "api_key_file": api_key_file,
        "truncate": truncate, "allow_any_dim": allow_any_dim or None, "allow_pickle": allow_pickle or None,
        "max_wait": max_wait,
    }  # fmt: skip
    loaded, origin = _load(_with_overrides(flags, settings or []), config)
    if show_settings:
        _show(loaded, origin, json_)
        return
    _run(loaded)


def _with_overrides(flags: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """Flags and ``name=value`` together; a setting that is given twice is refused."""
    for override in overrides:
        name, mark, value = override.partition("=")
        if not mark:
            raise UserError(f"{override!r} is no setting: write name=value, such as max_texts=64")
        if flags.get(name) is not None:
            raise UserError(f"{name} is given twice: keep one of the two")
        flags[name] = value
    return flags


def _load(flags: dict[str, Any], config: Path | None) -> tuple[ServeSettings, dict[str, str]]:
    try:
        from moembed.serve.settings import load_settings
    except ImportError:
        raise UserError(_MISSING) from None
    return load_settings(flags, config)


def _show(settings: ServeSettings, origin: dict[str, str], as_json: bool) -> None:
    """Every setting, its value, where that came from and what it means; keys are not shown."""
    values = settings.model_dump(mode="json")
    if as_json:
        print_json({name: {"value": value, "from": origin[name]} for name, value in values.items()})
        return
    for name, field in type(settings).model_fields.items():
        print(f"{name:19} {_shown(values[name]):20} {origin[name]:12} {field.description}")


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(map(str, value)) or "-"
    return "-" if value in (None, "") else str(value)


def _run(settings: ServeSettings) -> None:
    """Load, listen, and serve until SIGTERM or Ctrl-C."""
    try:
        from moembed.serve.logs import configure_logs
        from moembed.serve.searching import open_index
        from moembed.serve.server import address_of, listen, run_server
    except ImportError:
        raise UserError(_MISSING) from None
    settings.keys()  # a file of keys that cannot be read is known before the model is loaded
    listener = listen(settings)
    embedder = load_model(settings.model, settings.dtype, settings.allow_pickle)
    index = open_index(settings.index, embedder) if settings.index else None
    reranker = None
    if settings.reranker:
        from moembed.reranker import Reranker

        reranker = Reranker.from_pretrained(
            settings.reranker, embedder.dtype, allow_pickle=settings.allow_pickle
        )
    address = address_of(listener)
    say(f"serving {settings.served_name} ({embedder.dtype}) at {address}; Ctrl-C or SIGTERM ends it")
    configure_logs(settings.log_level)
    code = run_server(settings, listener, embedder, index, reranker)
    if code:
        raise typer.Exit(code)
    say("stopped: every request that was taken is answered")
