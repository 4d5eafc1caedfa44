"""YAML file + dotted overrides -> a strict pydantic model.

``load(TrainConfig, "recipes/finetune.yaml", ["steps=100", "optim.learning_rate=1e-4"])`` reads the file,
applies the overrides from left to right (each value is read as YAML) and validates. ``${NAME}`` and
``${NAME:-default}`` in a text stand for an environment variable. An unknown key is refused together with the
nearest known one. ``dump`` writes the resolved config that is saved with every run, and
``config_hash`` names it in records.
"""

from __future__ import annotations

import copy
import difflib
import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from moembed.types import UserError


class Strict(BaseModel):
    """Base of every config: unknown keys are errors, numbers are finite, values cannot be reassigned."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


Config = TypeVar("Config", bound=Strict)


def load(kind: type[Config], path: str | Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """Read ``path`` (optional), apply ``key.sub=value`` overrides and validate as ``kind``.

    Raises:
        UserError: missing file, broken YAML, an override without ``=``, unknown keys, wrong values, an
            environment variable that is not set.
    """
    values = _read(Path(path)) if path else {}
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not key:
            raise UserError(f"override {override!r} is not of the form key=value")
        _set(values, key.split("."), _parse(text, override), override)
    return validate(kind, _expanded(values))


def resolve(kind: type[Config], given: Any, overrides: Mapping[str, Any]) -> Config:
    """What Python callers pass as a config: one of ``kind``, a mapping, or a YAML file; then ``overrides``.

    Keys of ``overrides`` may be dotted, ``{"optim.learning_rate": 1e-4}``.

    Raises:
        UserError: as ``load``.
    """
    if isinstance(given, kind):
        values = _given(given)
    elif isinstance(given, Mapping):
        values = copy.deepcopy(dict(given))
    elif isinstance(given, (str, os.PathLike)):
        values = _read(Path(given))
    else:
        raise UserError(f"a config is a {kind.__name__}, a dict or a YAML file, not a {type(given).__name__}")
    for key, value in overrides.items():
        keys, inner = key.split("."), values
        for part in keys[:-1]:
            if isinstance(inner.get(part), BaseModel):
                inner[part] = _given(inner[part])
            inner = inner[part] if isinstance(inner.get(part), dict) else {}
        _set(values, keys, value, key)
    return validate(kind, _expanded(values))


def _given(config: BaseModel) -> dict[str, Any]:
    """The values that were given to a config; what it was not told stays a default."""
    return {name: getattr(config, name) for name in config.model_fields_set}


def validate(kind: type[Config], values: dict[str, Any], where: str = "") -> Config:
    """``kind(**values)`` with pydantic's complaints turned into one sentence of ours.

    Raises:
        UserError: every wrong value with its key, what was given and what is expected; of unknown keys, these
            alone, for the rest may be a consequence.
    """
    try:
        _require_digits(values)
        return kind.model_validate(values)
    except ValidationError as error:
        problems = "; ".join(_sentences(kind, values, error.errors(include_url=False)))
    except UserError as error:
        problems = str(error)
    raise UserError(f"{where}: {problems}" if where else problems)


def dump(config: Strict) -> str:
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def config_hash(config: Strict) -> str:
    """First 12 hex digits of the SHA-256 of the resolved config: equal configs, equal names."""
    return hashlib.sha256(dump(config).encode()).hexdigest()[:12]


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"no such recipe: {path}") from None
    except OSError as error:
        raise UserError(f"cannot read the recipe {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text") from None
    values = _parse(text, str(path)) or {}
    if not isinstance(values, dict):
        raise UserError(f"{path} holds a {type(values).__name__}, not the keys of a recipe")
    return values


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads ``1e-4`` as a string; people mean a number."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def _parse(text: str, where: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        problem = getattr(error, "problem", None) or " ".join(str(error).split())
        raise UserError(f"{where} is not valid YAML{place}: {problem}") from None
    except RecursionError:
        raise UserError(f"{where} is nested too deeply") from None


def _expanded(value: Any) -> Any:
    """Every ``${NAME}`` and ``${NAME:-default}`` replaced, in texts at any depth."""
    if isinstance(value, dict):
        return {key: _expanded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_expanded(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    return re.sub(r"\$\{(\w+)(?::-([^}]*))?\}", _variable, value) if isinstance(value, str) else value


def _variable(match: re.Match[str]) -> str:
    name, default = match.groups()
    if found := os.environ.get(name) or default:
        return found
    raise UserError(f"the environment variable {name}, which the recipe names, is not set")


def _set(values: dict[str, Any], keys: list[str], value: Any, override: str) -> None:
    for key in keys[:-1]:
        child = values.get(key)
        if child is None:
            child = values[key] = {}
        if not isinstance(child, dict):
            raise UserError(f"override {override!r}: {key!r} is a value, it has no keys of its own")
        values = child
    values[keys[-1]] = value


# ---- what is wrong with a value, in our words --------------------------------------------------------------

_EXPECTED = {
    "int": "a whole number",
    "float": "a number",
    "finite_number": "a finite number",
    "bool": "true or false",
    "string": "text",
    "tuple": "a list",
    "list": "a list",
    "dict": "keys with values",
    "mapping": "keys with values",
    "path": "a path",
    "none": "null",
    "greater_than": "above {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "below {lt}",
    "less_than_equal": "at most {le}",
    "multiple_of": "a multiple of {multiple_of}",
    "literal_error": "{expected}",
    "enum": "{expected}",
    "union_tag_invalid": "one of {expected_tags}",
    "string_too_short": "text of at least {min_length} characters",
    "string_too_long": "text of at most {max_length} characters",
    "string_pattern_mismatch": "text of the form {pattern}",
}
_LARGEST = 2**63  # no counter, size or seed is larger


def _require_digits(value: Any, path: str = "") -> None:
    """Refuse whole numbers that no machine number holds, at any depth."""
    if isinstance(value, dict):
        for key, item in value.items():
            _require_digits(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, (list, tuple)):
        for number, item in enumerate(value):
            _require_digits(item, f"{path}.{number}")
    elif isinstance(value, int) and abs(value) >= _LARGEST:
        raise UserError(f"{path} must be below 2^63, not a number of {len(str(abs(value)))} digits")


def _sentences(kind: type[BaseModel], values: Any, problems: Sequence[Any]) -> list[str]:
    unknown = [problem for problem in problems if problem["type"] == "extra_forbidden"]
    if unknown:
        return [_unknown(kind, _keys(values, problem)) for problem in unknown]
    by_key: dict[str, list[Any]] = {}  # the branches of a union complain one by one, of the same key
    for problem in problems:
        by_key.setdefault(".".join(map(str, _keys(values, problem))), []).append(problem)
    deepest = [key for key in by_key if not any(other.startswith(f"{key}.") for other in by_key)]
    return [_complaint(key, by_key[key]) for key in deepest]


def _complaint(key: str, problems: Sequence[Any]) -> str:
    first = problems[0]
    if first["type"] in ("value_error", "assertion_error"):
        said = first["msg"].partition(", ")[2]
        return f"{key}: {said}" if key else said
    if first["type"] in ("missing", "union_tag_not_found"):
        return f"key {key!r} is missing"
    if first["type"] in ("too_short", "too_long"):
        return f"{key} must have {_length(first)}, not {first['ctx']['actual_length']}"
    kinds = [problem for problem in problems if problem["type"] not in ("too_short", "too_long")]
    expected = list(dict.fromkeys(map(_expected, kinds)))
    return f"{key or 'the value'} must be {' or '.join(expected)}, not {_shown(first['input'])}"


def _expected(problem: Any) -> str:
    kind, context = problem["type"], problem.get("ctx", {})
    if kind.startswith(("model", "dataclass")):
        return "keys with values"
    stem = re.sub(r"_(type|parsing|from_float|parsing_size|unicode)$", "", kind)
    if stem in _EXPECTED:
        return _EXPECTED[stem].format(**context)
    said = problem["msg"].removeprefix("Input should be ")
    return said[:1].lower() + said[1:]


def _length(problem: Any) -> str:
    context = problem["ctx"]
    bound, word = ("min_length", "at least") if problem["type"] == "too_short" else ("max_length", "at most")
    return f"{word} {context[bound]} {'entry' if context[bound] == 1 else 'entries'}"


def _shown(value: Any) -> str:
    if isinstance(value, (dict, list, tuple)):
        return f"a {'list' if isinstance(value, (list, tuple)) else 'group of keys'}"
    text = yaml.safe_dump(value).split()[0] if value is None or isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _unknown(kind: type[BaseModel], keys: Sequence[Any]) -> str:
    """An unknown key, and the key that was meant: of this name elsewhere, else the most similar."""
    path, name = ".".join(map(str, keys)), str(keys[-1])
    beside = ".".join(map(str, keys[:-1]))
    known = [".".join(map(str, key)) for key in _all_keys(kind)]
    # positions in a list are part of a path that a user writes, and not of the names that there are
    plain = ".".join(str(key) for key in keys[:-1] if not isinstance(key, int))
    siblings = {
        key.rpartition(".")[2]: f"{beside}.{key.rpartition('.')[2]}".lstrip(".")
        for key in known
        if key.rpartition(".")[0] == plain
    }
    elsewhere = {key.rpartition(".")[2]: key for key in reversed(known)}
    for names, cutoff in ((elsewhere, 1.0), (siblings, 0.6), (elsewhere, 0.8), (siblings, 0.55)):
        if close := difflib.get_close_matches(name, names, n=1, cutoff=cutoff):
            return f"unknown key {path!r}, did you mean {names[close[0]]!r}?"
    return f"unknown key {path!r}; known are {', '.join(siblings.values())}"


def _keys(values: Any, problem: Any) -> list[Any]:
    """The keys and positions that the user wrote on the way to a problem.

    Pydantic's way also names the members of unions, and what its validators made of the values.
    """
    keys, here = [], values
    for part in problem["loc"]:
        listed = isinstance(here, (list, tuple)) and isinstance(part, int) and part < len(here)
        if listed or (isinstance(here, dict) and part in here):
            here = here[part]
            keys.append(part)
    return [*keys, problem["loc"][-1]] if problem["type"] == "missing" else keys


def _models(annotations: Sequence[Any]) -> list[type[BaseModel]]:
    """The models in annotations, which may be optional, in lists or in unions."""
    found: list[type[BaseModel]] = []
    pending = list(annotations)
    while pending:
        annotation = pending.pop(0)
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            found.append(annotation)
        else:
            pending.extend(get_args(annotation))
    return found


def _all_keys(kind: type[BaseModel], above: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """The path of every key, the upper ones first; positions in lists are left out."""
    keys = [(*above, name) for name in kind.model_fields]
    for name, field in kind.model_fields.items():
        for model in _models([field.annotation]):
            if len(above) < 8:
                keys += _all_keys(model, (*above, name))
    return keys
