"""What is wrong with the values of a config, in our words."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from moembed.types import UserError

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


def require_digits(value: Any, path: str = "") -> None:
    """Refuse whole numbers that no machine number holds, at any depth."""
    if isinstance(value, dict):
        for key, item in value.items():
            require_digits(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, (list, tuple)):
        for number, item in enumerate(value):
            require_digits(item, f"{path}.{number}")
    elif isinstance(value, int) and abs(value) >= _LARGEST:
        raise UserError(f"{path} must be below 2^63, not a number of {len(str(abs(value)))} digits")


def sentences(kind: type[BaseModel], values: Any, error: ValidationError) -> list[str]:
    """One for each key that is wrong: what it must be, and what was given.

    Of unknown keys, these alone: the other problems may be a consequence.
    """
    problems: Sequence[Any] = error.errors(include_url=False)
    unknown = [problem for problem in problems if problem["type"] == "extra_forbidden"]
    if unknown:
        return [_unknown(kind, _keys(values, problem)) for problem in unknown]
    by_key: dict[str, list[Any]] = {}  # the branches of a union complain one by one, of the same key
    for problem in problems:
        by_key.setdefault(".".join(map(str, _keys(values, problem))), []).append(problem)
    above = {key[:end] for key in by_key for end, mark in enumerate(key) if mark == "."}
    return [_complaint(key, problems) for key, problems in by_key.items() if key not in above]


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
