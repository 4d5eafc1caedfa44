"""Our models for the runner of mteb: its encoder protocol, its model card, its cache of results.

Importing this imports mteb, which takes seconds and seeds the random generators of Python, numpy and torch.

Source: Muennighoff et al., *MTEB: Massive Text Embedding Benchmark* (2023), and the library mteb, version 2.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from moembed.embedder import Embedder
from moembed.encoding import ROLES, Bar, View, no_bar
from moembed.evaluation.files import load_any
from moembed.types import UserError

try:
    import mteb
    from mteb.models.model_meta import ModelMeta, ScoringFunction
    from mteb.similarity_functions import cos_sim, pairwise_cos_sim
except ModuleNotFoundError as error:
    raise UserError(f"MTEB needs the library mteb ({error}): pip install 'moembed[eval]'") from None

from moembed.evaluation.mteb_tasks import local_task

# mteb hands over so many texts at a time; the model makes its own batches of all of them
_ENCODE: Any = {"batch_size": 1024, "show_progress_bar": False}


@dataclass(slots=True)
class Asked:
    """What a task asked of the model: the prompt by role, None for no prompt, and how many texts were cut."""

    prompts: dict[str, str | None] = field(default_factory=dict)
    texts: int = 0
    truncated: int = 0


class MtebEncoder:
    """An Embedder as mteb's runner takes it: ``mteb.evaluate(MtebEncoder(model, "org/name"), tasks)``.

    Args:
        name: ``org/name``, under which results are kept.
        revision: default: a hash of all that the vectors depend on, so that no result outlives its model.
        dim: keep the first ``dim`` coordinates, then normalise again (Matryoshka).
        batch_tokens: most tokens computed at a time.
        progress: ``progress(what, total)`` is entered for every list of texts and gives ``advance(count)``.

    Attributes:
        mteb_model_meta: see ``model_meta``.
        asked: by task, of the tasks that were computed and not found in a cache.
    """

    def __init__(
        self,
        model: Embedder,
        name: str,
        revision: str | None = None,
        *,
        dim: int | None = None,
        batch_tokens: int | None = None,
        progress: Bar | None = None,
    ) -> None:
        self.model, self.dim, self.batch_tokens = model, dim, batch_tokens
        self.progress = progress or no_bar
        self.mteb_model_meta = model_meta(model, name, revision, dim)
        self.asked: dict[str, Asked] = {}

    def encode(
        self,
        inputs: Iterable[dict[str, Any]],
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        prompt_type: Any = None,
        **kwargs: Any,
    ) -> np.ndarray:
        """Unit vectors float32 ``(texts, dim)`` of batches that hold a list ``text``.

        Documents come with their title in front, as ``beir.load_task`` has it. mteb's batch size is not ours,
        for a row does not depend on its batch.
        """
        role = prompt_type.value if prompt_type else None
        prompt = self.prompt_name(task_metadata, role)
        texts = [text for batch in inputs for text in batch["text"]]
        with self.progress(f"{task_metadata.name}, {role or hf_split}", len(texts)) as advance:
            prefix, view = self.model.tokenizer.prompt(prompt), View(dim=self.dim)
            found = self.model.vectors(
                texts,
                role=role,
                prompt=prefix,
                view=view,
                progress=advance,
                batch_tokens=self.batch_tokens,
            )
        asked = self.asked.setdefault(task_metadata.name, Asked())
        asked.prompts[role or task_metadata.type] = prompt
        asked.texts += len(texts)
        asked.truncated += found.truncated
        return found.array

    def prompt_name(self, task: Any, role: str | None) -> str | None:
        """The prompt for a task in a role, the most special one the model has.

        The first that exists of task-role, task, type-role, type and role, the order of mteb; else the
        default prompt, else None. Roles and types go by every name that `Embedder.role_prompt` knows.
        """
        prompts, roles = self.model.tokenizer.prompts, ROLES[role] if role else ()
        types = next((names for names in ROLES.values() if task.type in names), (task.type,))
        special = [n for what in (task.name, *types) for n in (*(f"{what}-{r}" for r in roles), what)]
        return next((n for n in (*special, *roles) if n in prompts), self.model.tokenizer.default_prompt)

    def similarity(self, embeddings1: Any, embeddings2: Any) -> np.ndarray:
        """Cosines of all pairs, ``(N, K)``."""
        return np.asarray(cos_sim(embeddings1, embeddings2))

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> np.ndarray:
        """Cosines row by row, ``(N,)``."""
        return np.asarray(pairwise_cos_sim(embeddings1, embeddings2))


def model_meta(model: Embedder, name: str, revision: str | None = None, dim: int | None = None) -> ModelMeta:
    """What mteb keeps on a model.

    mteb counts active parameters without the vocabulary table, so of a mixture of experts they are
    ``num_parameters(active=True)`` less the table. A shorter ``dim`` and another dtype than float32 are
    experiments: mteb keeps their results apart.
    """
    spec, tokenizer = model.encoder.spec, model.tokenizer
    table = spec.vocab_size * spec.width
    varied = {"embed_dim": dim, "dtype": None if model.dtype == "float32" else model.dtype}
    return ModelMeta(
        loader=None,
        name=name,
        revision=revision or _digest(model),
        release_date=None,
        languages=None,
        n_parameters=model.num_parameters(),
        n_embedding_parameters=table,
        n_active_parameters_override=model.num_parameters(active=True) - table if spec.moe else None,
        memory_usage_mb=None,
        max_tokens=tokenizer.max_length,
        embed_dim=dim or model.dim,
        license=None,
        open_weights=True,
        public_training_code=None,
        public_training_data=None,
        framework=["PyTorch", "safetensors"],
        similarity_fn_name=ScoringFunction.COSINE,
        use_instructions=bool(tokenizer.prompts),
        training_datasets=None,
        experiment_kwargs={key: value for key, value in varied.items() if value} or None,
    )


def _digest(model: Embedder) -> str:
    tokenizer = model.tokenizer
    prompts = sorted(tokenizer.prompts.items())
    facts = [model.space(), prompts, tokenizer.default_prompt, tokenizer.max_length]
    if tokenizer.truncation_side == "left":  # which end of a long text is read
        facts.append("left")
    return hashlib.sha256(repr(tuple(facts)).encode()).hexdigest()[:40]


def find_tasks(names: Sequence[str]) -> list[Any]:
    """Tasks of mteb, each once: of a benchmark (``NanoBEIR``, ``MTEB(eng, v2)``) all, else the one so called.

    A path stands for the task it holds, see ``files.load_any``.

    Raises:
        UserError: no such task or benchmark, or a task of more than text.
    """
    found: dict[str, Any] = {}
    for name in names:
        for task in _named(name):
            if set(task.modalities) != {"text"}:
                other = ", ".join(sorted({*task.modalities} - {"text"}))
                raise UserError(f"mteb's task {task.metadata.name} holds {other}: the model reads text alone")
            found.setdefault(task.metadata.name, task)
    return list(found.values())


def _named(name: str) -> list[Any]:
    if Path(name).exists():
        return [local_task(load_any(name))]
    try:
        return list(mteb.get_benchmark(name))
    except KeyError:
        pass
    try:
        return [mteb.get_task(name)]
    except KeyError:
        known = [task.metadata.name for task in mteb.get_tasks()]
        known += [benchmark.name for benchmark in mteb.get_benchmarks()]
        close = difflib.get_close_matches(name, known, n=1)
        hint = f", did you mean {close[0]!r}?" if close else ""
        raise UserError(f"mteb has no task or benchmark {name!r}, and there is no such file{hint}") from None


def evaluate_task(encoder: MtebEncoder, task: Any, folder: Path) -> Any:
    """The ``TaskResult`` of one task by mteb's own runner, kept in the format and the cache of mteb.

    What ``folder/results/ORG__MODEL/REVISION/TASK.json`` holds of the same data is not computed again; a
    file that was damaged is written anew.

    Raises:
        UserError: the data of the task cannot be loaded.
    """
    cache = mteb.ResultCache(folder)
    if task.is_aggregate:
        parts = [evaluate_task(encoder, part, folder) for part in task.metadata.tasks]
        result = task.combine_task_results(parts)
        cache.save_to_cache(result, encoder.mteb_model_meta)
        return result
    known = _known(encoder, task, cache)
    if known and not known.get_missing_evaluations(task):
        return known
    was_loaded = task.data_loaded
    _load(task)
    result = mteb.evaluate(
        encoder,
        task,
        cache=cache,
        overwrite_strategy="only-missing" if known else "always",
        co2_tracker=False,
        show_progress_bar=False,
        encode_kwargs=_ENCODE,
    )
    if not was_loaded:
        task.unload_data()
    return result.task_results[0]


def _known(encoder: MtebEncoder, task: Any, cache: Any) -> Any:
    """What the cache holds of a task; None if that is nothing, damaged or of other data."""
    try:
        known = cache.load_task_result(task.metadata.name, encoder.mteb_model_meta)
    except (ValueError, KeyError):
        return None
    return known if known and known.is_mergeable(task) else None


def _load(task: Any) -> None:
    try:
        task.load_data()
    except Exception as error:  # of the hub, of its client, of the file formats: any kind
        raise UserError(
            f"the data of mteb's task {task.metadata.name} cannot be loaded "
            f"({' '.join(str(error).split()) or type(error).__name__}): check the network, log in with "
            "`hf auth login` if they are not public, or leave the task out"
        ) from error
