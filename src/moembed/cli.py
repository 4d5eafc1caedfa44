"""The command line. Every command is a thin wrapper: read options, call one room, show what came back."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from moembed import __version__
from moembed.console import interval, print_json, print_table, progress_bar, say
from moembed.types import UserError

if TYPE_CHECKING:
    from moembed.model.embedder import Embedder

app = typer.Typer(
    help="Train, prove and serve sparse Mixture-of-Experts text embedding models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on standard output.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the output folder if it exists.")]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16, or auto: bfloat16 where the hardware has it.")]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; a user's mistake is one sentence on stderr and exit code 2."""
    warnings.showwarning = lambda message, category, *rest: (
        say(f"note: {message}") if issubclass(category, UserWarning) else None
    )
    try:
        app(args=_spread_tasks(list(sys.argv[1:] if arguments is None else arguments)), prog_name="moembed")
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


def _spread_tasks(arguments: list[str]) -> list[str]:
    """``--tasks a b c`` -> ``--tasks a --tasks b --tasks c``, so that a shell's ``--tasks eval/*`` works."""
    spread: list[str] = []
    open_option = False
    for argument in arguments:
        if argument.startswith("-"):
            open_option = argument == "--tasks"
            spread += [] if open_option else [argument]
        else:
            spread += ["--tasks", argument] if open_option else [argument]
    return spread


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        print(__version__)
        raise typer.Exit


@app.command()
def demo(
    minutes: Annotated[float, typer.Option(help="Time budget of the training.", min=0.01)] = 5.0,
    base: Annotated[
        str, typer.Option(help="Dense model to start from: a folder, a hub id, or minilm.")
    ] = "minilm",
    out: Annotated[Path, typer.Option(help="Run folder.")] = Path("runs/demo"),
    twin: Annotated[
        bool, typer.Option("--twin", help="Also train the dense base on the same batches.")
    ] = False,
    seed: int = 0,
    overwrite: Overwrite = False,
    json_: Json = False,
) -> None:
    """The whole line in miniature: real pairs, upcycle, train, prove, index.

    Pairs are (docstring summary, source code) from the Python packages installed beside moembed.

    Example: `moembed demo --minutes 5`
    """
    from moembed.demo import run_demo

    report = run_demo(minutes=minutes, base=base, out=out, twin=twin, seed=seed, overwrite=overwrite)
    if json_:
        print_json(report)


@app.command()
def train(
    recipe: Annotated[Path, typer.Argument(help="A YAML file of recipes/.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, dotted for nested keys.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run from its newest checkpoint.")
    ] = False,
    overwrite: Overwrite = False,
    json_: Json = False,
) -> None:
    """Train on your own pairs: JSONL, Parquet or CSV with columns query, document[, negative…].

    Example: `moembed train recipes/finetune.yaml data=pairs.jsonl base=minilm out=runs/mine steps=200`
    """
    from moembed.recipe import load_recipe, run_recipe

    result = run_recipe(load_recipe(recipe, overrides or []), resume=resume, overwrite=overwrite)
    if json_:
        print_json(result)


@app.command()
def upcycle(
    model: Annotated[str, typer.Argument(help="A dense model: a folder, a hub id, or minilm.")],
    out: Annotated[Path, typer.Argument(help="Folder of the new model.")],
    experts: Annotated[int, typer.Option(min=1)] = 8,
    top_k: Annotated[int, typer.Option(min=1, help="Experts per token.")] = 2,
    every: Annotated[int, typer.Option(min=1, help="Every how many layers one gets experts.")] = 2,
    published: Annotated[
        bool,
        typer.Option("--published", help="As Nomic Embed v2 did: raw router weights, dense biases dropped."),
    ] = False,
    seed: int = 0,
    overwrite: Overwrite = False,
    json_: Json = False,
) -> None:
    """Turn a dense encoder into a Mixture of Experts; by default its vectors stay the same.

    Example: `moembed upcycle minilm models/minilm-moe --experts 8 --top-k 2`
    """
    from dataclasses import replace

    from moembed.model.embedder import Embedder
    from moembed.model.folder import read_folder
    from moembed.model.router import RouterConfig
    from moembed.recipe import locate_base, require_free
    from moembed.weights.upcycle import UpcycleConfig
    from moembed.weights.upcycle import upcycle as convert

    require_free(out, overwrite)
    options = UpcycleConfig(
        num_experts=experts,
        every=every,
        keep_biases=not published,
        router=RouterConfig(top_k=top_k, normalize=None if published else 1.0),
        seed=seed,
    )
    parts = read_folder(locate_base(model))
    config, state = convert(parts.config, parts.state, options)
    made = Embedder(replace(parts, config=config, state=state))
    made.save_pretrained(out)
    facts = {"out": str(out), "parameters": made.num_parameters(), "active": made.num_parameters(active=True)}
    if json_:
        print_json(facts)
    else:
        print(f"{out}: {facts['parameters']:,} parameters, {facts['active']:,} active per token")


@app.command()
def evaluate(
    models: Annotated[list[str], typer.Argument(help="Models: folders, hub ids, minilm, or bm25.")],
    tasks: Annotated[list[Path], typer.Option("--tasks", help="BEIR-layout folders (JSONL/TSV or Parquet).")],
    metrics: Annotated[str, typer.Option(help="Comma-separated.")] = "ndcg@10,recall@10,mrr@10",
    dtype: Dtype = "auto",
    out: Annotated[Path | None, typer.Option(help="Also write the JSON result to this file.")] = None,
    json_: Json = False,
) -> None:
    """Retrieval quality with 95 % bootstrap intervals over queries, and differences to the last model.

    Example: `moembed evaluate runs/demo minilm bm25 --tasks data/scifact data/nfcorpus`
    """
    from moembed.evaluate.compare import Comparison, compare
    from moembed.evaluate.tasks import evaluate_bm25, evaluate_retrieval, load_task

    names = [name.strip() for name in metrics.split(",") if name.strip()]
    loaded = [load_task(task) for task in tasks]
    scores: dict[str, dict[str, Any]] = {task.name: {} for task in loaded}
    for name in models:
        model = None if name == "bm25" else _load(name, dtype)
        for task in loaded:
            if model is None:
                scores[task.name][name] = evaluate_bm25(task, names).per_query
                continue
            encode = _Counted(model, f"{name} on {task.name}", len(task.queries) + len(task.documents))
            with encode:
                result = evaluate_retrieval(task, encode.query, encode.document, names)
            scores[task.name][name] = result.per_query
            if encode.truncated:
                say(
                    f"note: {name} cut {encode.truncated} texts of {task.name} "
                    f"at {model.tokenizer.max_length} tokens"
                )
    compared: dict[str, Comparison] = {task: compare(by_model) for task, by_model in scores.items()}
    answer = {
        task.name: {
            "queries": len(task.queries),
            "documents": len(task.documents),
            "notes": task.notes,
            "metrics": compared[task.name].metrics,
            "differences": compared[task.name].differences,
        }
        for task in loaded
    }
    if out:
        out.write_text(json.dumps(answer, indent=2) + "\n", encoding="utf-8")
    if json_:
        print_json(answer)
        return
    for task in loaded:
        for note in task.notes:
            say(f"note: {task.name}: {note}")
        rows = [
            [model, *(interval(cell) for cell in cells.values())]
            for model, cells in compared[task.name].metrics.items()
        ]
        title = f"{task.name}: {len(task.queries):,} queries, {len(task.documents):,} documents"
        print_table(title, ["model", *names], rows)


@app.command()
def embed(
    source: Annotated[Path, typer.Argument(help="JSONL, Parquet or CSV.")],
    model: Annotated[str, typer.Option(help="A folder, a run folder, a hub id, or minilm.")],
    out: Annotated[Path, typer.Option(help="Folder of vectors; run the same command again to resume.")],
    column: Annotated[str, typer.Option(help="Column that holds the text.")] = "text",
    role: Annotated[
        Literal["document", "query", "none"], typer.Option(help="Whose prompt to use.")
    ] = "document",
    dim: Annotated[int | None, typer.Option(help="Keep the first dim coordinates.")] = None,
    dtype: Dtype = "auto",
    json_: Json = False,
) -> None:
    """Stream a file of texts to a folder of float32 vectors; resumable after any interruption.

    Example: `moembed embed corpus.parquet --model runs/demo --out vectors/corpus`
    """
    summary = _embed(source, model, out, column, role, dim, dtype)
    print_json(summary) if json_ else print(summary["message"])


@app.command()
def index(
    source: Annotated[Path, typer.Argument(help="JSONL, Parquet or CSV of documents.")],
    model: Annotated[str, typer.Option(help="A folder, a run folder, a hub id, or minilm.")],
    out: Annotated[Path, typer.Option(help="Folder of the index; run the same command again to resume.")],
    column: Annotated[str, typer.Option(help="Column that holds the text.")] = "text",
    dim: Annotated[int | None, typer.Option(help="Keep the first dim coordinates.")] = None,
    dtype: Dtype = "auto",
    json_: Json = False,
) -> None:
    """Build a searchable index of documents.

    Example: `moembed index corpus.jsonl --model runs/demo --out corpus.index`
    """
    summary = _embed(source, model, out, column, "document", dim, dtype)
    if json_:
        print_json(summary)
        return
    print(summary["message"])
    print(f'search it:  moembed search {out} "your question"')


@app.command()
def search(
    index: Annotated[Path, typer.Argument(help="An index folder, or a run folder that holds one.")],
    query: Annotated[str, typer.Argument(help="What to look for.")],
    k: Annotated[int, typer.Option("-k", min=1, help="How many results.")] = 5,
    model: Annotated[str | None, typer.Option(help="Default: the model that made the index.")] = None,
    json_: Json = False,
) -> None:
    """Exact cosine search with the model that made the index.

    Example: `moembed search runs/demo "read a parquet file lazily"`
    """
    from moembed.search.index import Index

    folder = (
        index if (index / "manifest.json").exists() or not (index / "index").is_dir() else index / "index"
    )
    opened = Index.open(folder)
    made_by = opened.manifest.get("model_path")
    if model is None and made_by is None:
        raise UserError(f"{folder} does not say which model made it; name it with --model")
    beside = folder / str(made_by)
    embedder = _load(model or (str(beside) if beside.exists() else str(made_by)), "float32")
    opened.require_space(embedder.space_id(opened.manifest["prompt_name"], opened.dim))
    hits = opened.search(embedder.encode_query([query], dim=opened.dim), k)
    rows = opened.rows(hits.index[0])
    found = [{"score": round(float(s), 4), **row} for s, row in zip(hits.score[0], rows, strict=True)]
    if json_:
        print_json(found)
        return
    column = opened.manifest["column"]
    for hit in found:
        rest = "  ".join(str(value) for key, value in hit.items() if key not in ("score", column))
        print(f"{hit['score']:.3f}  {rest}".rstrip())
        lines = [line for line in str(hit[column]).splitlines() if line.strip()][:3]
        print("".join(f"         {line[:100]}\n" for line in lines), end="")


@app.command()
def inspect(
    model: Annotated[str, typer.Argument(help="A folder, a run folder, a hub id, or minilm.")],
    json_: Json = False,
) -> None:
    """What a model is: layers, experts, prompts, pooling, total and active parameters.

    Example: `moembed inspect runs/demo`
    """
    from moembed.recipe import describe, locate_base

    facts = describe(locate_base(model))
    if json_:
        print_json(facts)
    else:
        print_table(
            str(model), ["", ""], [[key.replace("_", " "), _fact(value)] for key, value in facts.items()]
        )


def _fact(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, dict):
        return ", ".join(f"{key}: {item!r}" for key, item in value.items()) or "none"
    return str(value)


def _load(name: str, dtype: str) -> Embedder:
    from moembed.model.embedder import Embedder
    from moembed.recipe import best_dtype, locate_base

    return Embedder.from_pretrained(locate_base(name), dtype=best_dtype() if dtype == "auto" else dtype)


class _Counted:
    """Both roles of a model behind one progress bar, counting the texts that were cut."""

    def __init__(self, model: Embedder, what: str, total: int) -> None:
        self.model, self.truncated = model, 0
        self.bar = progress_bar(what, total)

    def __enter__(self) -> None:
        self.advance = self.bar.__enter__()

    def __exit__(self, *error: Any) -> None:
        self.bar.__exit__(*error)

    def query(self, texts: list[str]) -> Any:
        return self._encode(texts, "query")

    def document(self, texts: list[str]) -> Any:
        return self._encode(texts, "document")

    def _encode(self, texts: list[str], role: str) -> Any:
        vectors, truncated = self.model.encode_counted(
            texts, self.model.role_prompt(role), progress=self.advance
        )
        self.truncated += truncated
        return vectors


def _embed(
    source: Path, model: str, out: Path, column: str, role: str, dim: int | None, dtype: str
) -> dict[str, Any]:
    from dataclasses import asdict

    from moembed.search.embed import embed_file

    embedder = _load(model, dtype)
    chosen: Any = None if role == "none" else role
    with progress_bar(f"embedding {source.name}", None) as advance:
        done = 0

        def show(rows: int) -> None:
            nonlocal done
            advance(rows - done)
            done = rows

        summary = embed_file(
            embedder, source, out, column=column, role=chosen, dim=dim, model_path=model, progress=show,
            prompt_name=embedder.role_prompt(chosen) if chosen else None,
        )  # fmt: skip
    return {**asdict(summary), "path": str(summary.path), "message": str(summary)}
