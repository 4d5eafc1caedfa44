"""The model card: README.md of a model folder, with the metadata the hub reads."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from moembed.compare.estimates import Difference
from moembed.compare.formatting import difference, estimate, p_value
from moembed.compare.verdict import is_real
from moembed.evaluation.result import EvaluatedTask, EvaluationResult
from moembed.files import read_json, write_text
from moembed.folder.modules import PooledHead, encoder_folder
from moembed.folder.read import Settings, read_config, read_settings
from moembed.model.encoder import num_parameters
from moembed.model.spec import EncoderSpec


def write_card(
    folder: Path,
    name: str,
    base: str | None = None,
    data: Sequence[str] = (),
    results: EvaluationResult | None = None,
    license: str | None = None,
) -> None:
    """Write ``README.md`` into a model folder. The arguments are those of ``card``.

    Raises:
        UserError: not a model folder.
    """
    spec = read_config(folder)
    family = read_json(encoder_folder(folder) / "config.json")["model_type"]
    text = card(spec, read_settings(folder, spec), name, family, base, data, results, license)
    write_text(folder / "README.md", text)


def card(
    spec: EncoderSpec,
    settings: Settings,
    name: str,
    family: str = "moembed",
    base: str | None = None,
    data: Sequence[str] = (),
    results: EvaluationResult | None = None,
    license: str | None = None,
) -> str:
    """The card as Markdown. What is not known is left out, never guessed.

    Args:
        name: what users will load: a hub id or a folder.
        family: the ``model_type`` it is stored under.
        base: the model it was made from. A hub id also goes into the metadata; of a path only the last part
            is told.
        data: what it was trained on; of paths only the last part is told.
        results: of an evaluation of this model and others.
        license: of this model.
    """
    parts = [
        f"---\n{yaml.safe_dump(_metadata(spec, family, base, license), sort_keys=False)}---",
        f"# {_title(name)}",
        _what(spec, settings),
        _facts(spec, settings),
        _training(base, data),
        *(_results(results) if results else ()),
        _prompts(settings),
        _usage(spec, settings, name, family),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _metadata(spec: EncoderSpec, family: str, base: str | None, license: str | None) -> dict[str, Any]:
    library = "sentence-transformers" if _known_to_transformers(spec, family) else "moembed"
    tags = [library, "sentence-similarity", "feature-extraction", "moembed"]
    values = {"library_name": library, "pipeline_tag": "sentence-similarity"}
    values |= {"license": license} if license else {}
    values |= {"base_model": base} if base and _is_hub_id(base) else {}
    return values | {"tags": list(dict.fromkeys(tags)) + (["mixture-of-experts"] if spec.moe else [])}


def _known_to_transformers(spec: EncoderSpec, family: str) -> bool:
    """Its NomicBERT has no experts: it would load such a folder as a wrong dense model."""
    return not (family == "nomic_bert" and spec.moe)


def _is_hub_id(name: str) -> bool:
    return bool(re.fullmatch(r"[\w.-]+/[\w.-]+", name)) and not Path(name).exists()


def _last(name: str) -> str:
    path, *rest = name.split("; ")  # what a source says of its licence follows
    return "; ".join([path if _is_hub_id(path) else Path(path).name, *rest])


def _title(name: str) -> str:
    path = Path(name)
    return _last(str(path.parent)) if path.name == "model" else _last(name)  # the model of a run folder


def _what(spec: EncoderSpec, settings: Settings) -> str:
    kind = "sparse Mixture-of-Experts" if spec.moe else "dense"
    return (
        f"A {kind} text embedding model, made with moembed: it turns a text into a vector of length 1 with "
        f"{_dim(spec, settings)} coordinates. The cosine (or dot product) of two vectors says how near the "
        "texts are in meaning."
    )


def _dim(spec: EncoderSpec, settings: Settings) -> int:
    modules = settings.modules
    return modules.head.dim(modules.pooling.dim(spec.width))


def _pooling(modules: PooledHead) -> str:
    """Pooling and what follows it, in words."""
    steps = [f"a dense layer ({step.activation})" for step in modules.head.dense]
    return ", then ".join([modules.pooling.summary, *steps, "L2 normalisation"])


def _facts(spec: EncoderSpec, settings: Settings) -> str:
    behind = settings.modules.num_parameters(spec.width)
    rows = [("Parameters", f"{num_parameters(spec) + behind:,}")]
    if moe := spec.moe:
        shared = f", {moe.num_shared_experts} shared" if moe.num_shared_experts else ""
        rows += [
            ("Active per token", f"{num_parameters(spec, active=True) + behind:,}"),
            ("Experts", f"{moe.num_experts} in each of {len(spec.moe_layers)} layers{shared}"),
            ("Experts per token", f"{moe.experts_per_token}"),
        ]
    rows += [
        ("Layers", f"{spec.num_layers}"),
        ("Dimensions", f"{_dim(spec, settings)}"),
        *([("Trained to be cut to", ", ".join(map(str, settings.dims)))] if settings.dims else []),
        ("Longest text", f"{settings.max_length} tokens"),
        ("Pooling", _pooling(settings.modules)),
    ]
    return "\n".join(["| | |", "|---|---|", *(f"| {what} | {value} |" for what, value in rows)])


def _training(base: str | None, data: Sequence[str]) -> str:
    lines = [f"- Base: {_last(base)}"] if base else []
    lines += [f"- Data: {', '.join(_last(item) for item in data)}"] if data else []
    return "## Training\n\n" + "\n".join(lines) if lines else ""


def _results(results: EvaluationResult) -> list[str]:
    return [_task(name, task, results.reference) for name, task in results.tasks.items()]


def _task(name: str, task: EvaluatedTask, reference: str) -> str:
    columns = list(next(iter(task.metrics.values())))
    amounts = f"{task.items:,} items"
    if task.documents is not None:
        amounts = f"{task.items:,} queries, {task.documents:,} documents"
    lines = [
        f"## Results: {name}",
        "",
        f"{amounts}; 95 % bootstrap intervals.",
        "",
        f"| | {' | '.join(columns)} |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for system, cells in task.metrics.items():
        lines.append(f"| {_last(system)} | {' | '.join(estimate(cells[c]) for c in columns)} |")
    for system, gaps in task.differences.items():
        lines += [""] if not lines[-1].startswith("- ") else []
        told = (f"{c} {_gap(gaps[c])}" for c in columns)
        lines.append(f"- {_last(system)} − {_last(reference)}: {', '.join(told)}")
    return "\n".join([*lines, *(f"\n{note}" for note in task.notes)])


def _gap(gap: Difference) -> str:
    doubt = "" if is_real(gap) else ", no clear difference"
    return f"{difference(gap)} ({p_value(gap.p_holm)}{doubt})"


def _prompts(settings: Settings) -> str:
    if not settings.prompts:
        return "## Prompts\n\nNone: texts are embedded as they are."
    told = json.dumps(settings.prompts, indent=2, ensure_ascii=False)
    default = f" Without a name, `{settings.default_prompt}` is used." if settings.default_prompt else ""
    return f"## Prompts\n\nPut in front of a text, by name.{default}\n\n```json\n{told}\n```"


def _usage(spec: EncoderSpec, settings: Settings, name: str, family: str) -> str:
    call = "\n".join(
        [
            f"model = {{}}({json.dumps(name)})",
            'queries = model.encode_query(["how do moles find worms?"])',
            'documents = model.encode_document(["A mole smells in stereo.", "Owls hunt at night."])',
            "print(queries @ documents.T)",
        ]
    )
    ours = f"from moembed import Embedder\n\n{call.format('Embedder.from_pretrained')}"
    imports = "import moembed  # makes the architecture known\n" if family == "moembed" else ""
    theirs = f"{imports}from sentence_transformers import SentenceTransformer\n\n"
    sentence_transformers = f"```python\n{theirs}{call.format('SentenceTransformer')}\n```"
    if not _known_to_transformers(spec, family):
        sentence_transformers = "Not without remote code: the NomicBERT of transformers has no experts."
    query = settings.prompts.get("query", "") + "how do moles find worms?"
    client = "\n".join(
        [
            "from openai import OpenAI",
            "",
            'client = OpenAI(base_url="http://localhost:8000/v1", api_key="none")',
            f"answer = client.embeddings.create(model={json.dumps(name)}, input=[{json.dumps(query)}])",
            "print(answer.data[0].embedding)",
        ]
    )
    return "\n\n".join(
        [
            "## Usage",
            f"With moembed:\n\n```python\n{ours}\n```",
            f"With sentence-transformers:\n\n{sentence_transformers}",
            "With an OpenAI client, against a server that offers `/v1/embeddings`; the prompt is part of the "
            f"text:\n\n```python\n{client}\n```",
        ]
    )
