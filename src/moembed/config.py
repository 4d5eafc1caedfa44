"""YAML file + dotted overrides -> a strict pydantic model.

``load(TrainConfig, "recipes/finetune.yaml", ["steps=100", "optim.learning_rate=1e-4"])`` reads the file,
applies the overrides from left to right (each value is read as YAML) and validates. ``${NAME}`` and
``${NAME:-default}`` in a text stand for an environment variable. An unknown key is refused together with the
nearest known one. ``dump`` writes the resolved config that is saved with every run, and
``config_hash`` names it in records.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from moembed.types import UserError


class Strict(BaseModel):
    """Base of every config: unknown keys are errors, values cannot be reassigned."""

    model_config = ConfigDict(extra="forbid", frozen=True)


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


def validate(kind: type[Config], values: dict[str, Any], where: str = "") -> Config:
    """``kind(**values)`` with pydantic's complaints turned into one sentence."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        found = error.errors()
        places = {problem["loc"] for problem in found}
        # a list that lost its wrong entries is "too short" as well: that is no mistake of its own
        first = [
            problem
            for problem in found
            if problem["type"] != "too_short"
            or not any(place[: len(problem["loc"])] == problem["loc"] != place for place in places)
        ]
        problems = "; ".join(_sentence(kind, problem) for problem in first)
        raise UserError(f"{where}: {problems}" if where else problems) from None


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
        raise UserError(f"{where} is not valid YAML: {' '.join(str(error).split())}") from None


def _expanded(value: Any) -> Any:
    """Every ``${NAME}`` and ``${NAME:-default}`` replaced, in texts at any depth."""
    if isinstance(value, dict):
        return {key: _expanded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_expanded(item) for item in value]
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


def _sentence(kind: type[BaseModel], problem: Any) -> str:
    path = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        known = _known_keys(kind, problem["loc"][:-1])
        close = difflib.get_close_matches(str(problem["loc"][-1]), known, n=1, cutoff=0.0)
        return f"unknown key {path!r}" + (f", did you mean {close[0]!r}?" if close else "")
    if problem["type"] == "missing":
        return f"key {path!r} is missing"
    return f"{path or 'value'}: {problem['msg'].removeprefix('Value error, ')}"


def _known_keys(kind: type[BaseModel], loc: Sequence[Any]) -> list[str]:
    """Field names of the (nested, optional, listed) model that ``loc`` leads to."""
    for part in loc:
        if part not in kind.model_fields:
            continue  # a list position or the name of a union member
        pending = [kind.model_fields[part].annotation]
        while pending:
            annotation = pending.pop()
            if isinstance(annotation, type) and issubclass(annotation, BaseModel):
                kind = annotation
                break
            pending.extend(get_args(annotation))
    return list(kind.model_fields)
