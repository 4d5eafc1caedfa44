"""What the small files of a sentence-transformers folder say of texts and scores: lengths, prompts, …

Every key is read, is known to change no vector, is refused, or is named in a warning.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moembed.files import read_json
from moembed.folder.unread import note_unread
from moembed.types import UserError

SENTENCE_TRANSFORMERS = "config_sentence_transformers.json"
# sentence-transformers reads the first of these that says anything; the first is the name it writes.
TRANSFORMER_FILES = tuple(
    f"sentence_{name}_config.json"
    for name in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
# Where these files may hold arguments for the class of the tokenizer, the model and its config.
_TOKENIZER, _MODEL, _CONFIG = (
    (f"{new}_kwargs", f"{old}_args")
    for new, old in (("processor", "tokenizer"), ("model", "model"), ("config", "config"))
)
_HARMLESS = {"trust_remote_code", "revision", "token", "cache_dir", "local_files_only", "use_fast"}
_HARMLESS |= {"torch_dtype", "dtype", "attn_implementation", "add_pooling_layer", "use_safetensors"}
_HARMLESS |= {"low_cpu_mem_usage", "device_map"}
_OF_TRANSFORMER = {"max_seq_length", "do_lower_case", "modality_config", "module_output_name", "unpad_inputs"}
_OF_TRANSFORMER |= {"transformer_task", *_TOKENIZER, *_MODEL, *_CONFIG}
_OF_MODEL = {"model_type", "__version__", "prompts", "default_prompt_name", "similarity_fn_name"}
_OF_MODEL |= {"matryoshka_dims", "truncate_dim"}
TOKENIZER_KEYS = ("do_lower_case", *_TOKENIZER)  # what a saved model needs to make the same tokens again
_SIMILARITIES = ("cosine", "dot", "euclidean", "manhattan")


@dataclass(frozen=True)
class TransformerSettings:
    """Of the encoder's texts. ``max_length`` None: nothing is said; ``options`` go to the tokenizer."""

    max_length: int | None = None
    lowercase: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    file: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ModelSettings:
    """Of the whole model: prompts by name, how its vectors are meant to be compared, lengths trained for."""

    prompts: dict[str, str]
    default_prompt: str | None
    similarity: str | None
    dims: tuple[int, ...]
    truncate_dim: int | None


def read_transformer_settings(folder: Path, task: str = "feature-extraction") -> TransformerSettings:
    """The first of ``TRANSFORMER_FILES`` that says anything, and ``model_max_length`` of the tokenizer.

    Args:
        task: what the model has to be for; a file that says nothing means that.

    Raises:
        UserError: a damaged file, a length that is none, arguments that would change the encoder.
    """
    files = [folder / name for name in TRANSFORMER_FILES if (folder / name).exists()]
    nothing: tuple[Path, dict[str, Any]] = (folder, {})
    file, values = next(((file, found) for file in files if (found := read_json(file))), nothing)
    for key in _CONFIG:
        if overrides := set(values.get(key) or {}) - _HARMLESS:
            raise UserError(
                f"{file}: {key} changes {', '.join(sorted(overrides))} of config.json, which is not "
                "supported: write the values into config.json"
            )
    stated = values.get("transformer_task", task)
    if stated != task:
        raise UserError(f"{file}: transformer_task {stated!r} is not supported, only {task!r}")
    unread = {f"{key}.{name}" for key in _MODEL for name in set(values.get(key) or {}) - _HARMLESS}
    note_unread(file, unread | {key for key in set(values) - _OF_TRANSFORMER if values[key] is not None})

    options: dict[str, Any] = {}
    for key in reversed(_TOKENIZER):
        options |= {name: value for name, value in (values.get(key) or {}).items() if name not in _HARMLESS}
    places = [
        (file, "model_max_length", options.pop("model_max_length", None)),
        (file, "max_seq_length", values.get("max_seq_length")),
    ]
    tokenizer = folder / "tokenizer_config.json"
    if tokenizer.exists():
        places.append((tokenizer, "model_max_length", read_json(tokenizer).get("model_max_length")))
    limit = next((_length(*place) for place in places if place[2] is not None), None)
    return TransformerSettings(limit, bool(values.get("do_lower_case")), options, values)


def _length(file: Path, key: str, value: Any) -> int:
    """A count of tokens; transformers writes "no limit" as 1e30."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 1 or value != value // 1:
        raise UserError(f"{file}: {key} must be a count of tokens, not {value!r}")
    return int(value)


def read_model_settings(folder: Path, normalised: bool) -> ModelSettings:
    """``config_sentence_transformers.json``.

    Args:
        normalised: whether the folder's own modules make vectors of length 1.

    Raises:
        UserError: a damaged file, a model of another kind, prompts that are no texts.
    """
    file = folder / SENTENCE_TRANSFORMERS
    values = read_json(file) if file.exists() else {}
    kind = values.get("model_type", "SentenceTransformer")
    if kind != "SentenceTransformer":
        raise UserError(f"{file}: this is a {kind}, not a model that makes one vector of a text")
    prompts = values.get("prompts") or {}
    if not isinstance(prompts, dict):
        raise UserError(f"{file}: prompts must be texts by name, not a {type(prompts).__name__}")
    for name, text in prompts.items():
        if text is not None and not isinstance(text, str):
            raise UserError(f"{file}: the prompt {name!r} is a {type(text).__name__}, not a text")
    similarity, default = values.get("similarity_fn_name"), values.get("default_prompt_name")
    if similarity not in (None, *_SIMILARITIES):
        raise UserError(
            f"{file}: similarity_fn_name {similarity!r} is not known (known: {', '.join(_SIMILARITIES)})"
        )
    if not normalised and similarity in ("dot", "euclidean", "manhattan"):
        made_for = "the dot product" if similarity == "dot" else f"the {similarity} distance"
        warnings.warn(
            f"{folder}: this model was made for {made_for} of vectors that are not of length 1; here every "
            "vector has length 1, so texts may rank in another order",
            stacklevel=2,
        )
    elif not normalised:
        warnings.warn(
            f"{folder} has no Normalize module, so its vectors are not of length 1 in sentence-transformers; "
            "here every vector has length 1, and cosines are the same",
            stacklevel=2,
        )
    elif similarity == "manhattan":
        warnings.warn(f"{folder}: made for the manhattan distance; ranked by the cosine here", stacklevel=2)
    dims = values.get("matryoshka_dims") or []
    if not isinstance(dims, list) or not all(type(dim) is int and dim > 0 for dim in dims):
        raise UserError(f"{file}: matryoshka_dims must be a list of counts, not {dims!r}")
    cut = values.get("truncate_dim")
    if cut is not None and not (type(cut) is int and cut > 0):
        raise UserError(f"{file}: truncate_dim must be a count of coordinates, not {cut!r}")
    note_unread(file, {key for key in set(values) - _OF_MODEL if values[key] is not None})
    known = {name: text for name, text in prompts.items() if text is not None}
    if default is not None and default not in known:
        names = ", ".join(sorted(known)) or "none"
        raise UserError(f"{file}: the default prompt is {default!r}, and no prompt has that name ({names})")
    return ModelSettings(known, default, similarity, tuple(dims), cut)
