"""Recipes: a file, then overrides from left to right, then strict validation with one clear sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, ValidationError

from moembed.config import Strict, config_hash, dump, load, resolve, validate
from moembed.types import UserError


class Optim(Strict):
    rate: float = 0.5
    betas: tuple[float, float] = (0.9, 0.999)


class Recipe(Strict):
    steps: int = Field(default=1, ge=1)
    name: str = "plain"
    optim: Optim = Optim()
    sources: tuple[Optim, ...] = ()
    extra: Optim | None = None
    depths: dict[int, float] | None = Field(default=None, min_length=1)
    choice: Literal["a", "b"] = "a"
    either: int | tuple[float, ...] = 0


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text("steps: 3\noptim:\n  rate: 0.25\n", encoding="utf-8")
    return path


def test_defaults_then_file_then_overrides(recipe: Path) -> None:
    assert load(Recipe) == Recipe()
    assert load(Recipe, recipe) == Recipe(steps=3, optim=Optim(rate=0.25))
    made = load(Recipe, recipe, ["steps=4", "steps=5", "optim.betas=[0.1, 0.2]", "extra.rate=2"])
    assert made == Recipe(steps=5, optim=Optim(rate=0.25, betas=(0.1, 0.2)), extra=Optim(rate=2.0))


@pytest.mark.parametrize("text", ["1e-4", "1E-4", "1.e-4", "+1e-4", "0.0001", "1.0e-4"])
def test_an_exponent_is_a_number_in_files_and_overrides(text: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(f"optim: {{rate: {text}}}\n")
    assert load(Recipe, path).optim.rate == load(Recipe, None, [f"optim.rate={text}"]).optim.rate == 1e-4


def test_an_exponent_suits_an_integer_too() -> None:
    assert load(Recipe, None, ["steps=1e3"]).steps == 1000


@pytest.mark.parametrize("name", ["nan", "infinity", "step-1e4", "a=b", "e5"])
def test_words_stay_words(name: str) -> None:
    assert load(Recipe, None, [f"name={name}"]).name == name


def test_null_and_quotes_are_yaml() -> None:
    made = load(Recipe, None, ["extra=null", 'name="12"'])
    assert made.extra is None
    assert made.name == "12"


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"steps: [1", "is not valid YAML"),
        (b"- 1\n- 2\n", "holds a list"),
        (b"just words", "holds a str"),
        (b"name: \xff\xfe", "is not UTF-8"),
        (b"steps: 1\nname: a\nsteps: 2\n", r"is not valid YAML \(line 3, column 1\): the key 'steps' stands"),
        (b"optim: {rate: 1, rate: 2}\n", r"is not valid YAML .*: the key 'rate' stands there twice"),
        (b"name: 2024-02-31\n", "is not valid YAML: day"),
    ],
)
def test_a_broken_file_is_named(content: bytes, complaint: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"broken.yaml {complaint}"):
        load(Recipe, path)


def test_a_value_that_holds_itself_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("name: a\nextra: &self {inner: *self}\n")
    with pytest.raises(UserError, match=r"^a value holds itself: an anchor"):
        load(Recipe, path)


def test_keys_of_an_anchor_may_be_said_again(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(
        "optim: &one {rate: 1}\nextra: &two {<<: *one, rate: 2}\nsources: [{<<: *two, rate: 3}]\n"
    )
    found = load(Recipe, path)
    assert (found.optim.rate, found.extra, found.sources[0].rate) == (1, Optim(rate=2), 3)


def test_a_text_may_begin_at_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    path = tmp_path / "r.yaml"
    path.write_text("name: ~/runs/mine\n")
    assert load(Recipe, path).name == f"{tmp_path}/runs/mine"
    assert (
        load(Recipe, path, ["name=~/a"]).name == resolve(Recipe, {"name": "~/a"}, {}).name == f"{tmp_path}/a"
    )
    assert load(Recipe, path, ["name=a~/b"]).name == "a~/b"


@pytest.mark.parametrize("name", ["*.jsonl", "runs/try #2", "my file  # 1.jsonl", "a#b", "a=b c"])
def test_a_command_line_has_no_comments(name: str) -> None:
    assert load(Recipe, None, [f"name={name}"]).name == name


def test_an_empty_file_means_the_defaults(tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    assert load(Recipe, tmp_path / "empty.yaml") == Recipe()


def test_a_missing_file_or_a_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no such recipe: .*nowhere.yaml"):
        load(Recipe, tmp_path / "nowhere.yaml")
    with pytest.raises(UserError, match=f"cannot read the recipe {tmp_path}"):
        load(Recipe, tmp_path)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("steps", "override 'steps' is not of the form key=value"),
        ("=3", "override '=3' is not of the form key=value"),
        ("steps.more=3", "override 'steps.more=3': 'steps' is a value, it has no keys of its own"),
        ("steps=[", "steps=[ is not valid YAML"),
        ("stesp=3", "unknown key 'stesp', did you mean 'steps'?"),
        ("optim.rat=3", "unknown key 'optim.rat', did you mean 'optim.rate'?"),
        ("rate=1", "unknown key 'rate', did you mean 'optim.rate'?"),
        ("optim.steps=1", "unknown key 'optim.steps', did you mean 'steps'?"),
        ("xyz=1", "unknown key 'xyz'; known are steps, name, optim, sources, extra, depths, choice, either"),
        ("extra.bets=[1, 2]", "unknown key 'extra.bets', did you mean 'extra.betas'?"),
        ("sources=[{rte: 1}]", "unknown key 'sources.0.rte', did you mean 'sources.0.rate'?"),
        ("steps=many", "steps must be a whole number, not 'many'"),
        ("steps=1.5", "steps must be a whole number, not 1.5"),
        ("steps=0", "steps must be at least 1, not 0"),
        ("steps=null", "steps must be a whole number, not null"),
        ("steps=12345678901234567890123", "steps must be below 2^63, not a number of 23 digits"),
        ("optim.rate=.inf", "optim.rate must be a finite number, not inf"),
        ("optim.rate=.nan", "optim.rate must be a finite number, not nan"),
        ("optim.rate=[1]", "optim.rate must be a number, not a list"),
        ("optim=3", "optim must be keys with values, not 3"),
        ("name=[a]", "name must be text, not a list"),
        ("depths={}", "depths must have at least 1 entry, not 0"),
        ("depths={a: 1}", "depths.a must be a whole number, not 'a'"),
        ("choice=c", "choice must be 'a' or 'b', not 'c'"),
        ("either={}", "either must be a whole number or a list, not a group of keys"),
        ("either=[x]", "either.0 must be a number, not 'x'"),
        (
            "sources=[{rate: x, kind: y}]",
            "'sources.0.kind'; known are sources.0.rate, sources.0.betas",
        ),
    ],
)
def test_a_wrong_override_gets_one_sentence(override: str, sentence: str, recipe: Path) -> None:
    with pytest.raises(UserError) as error:
        load(Recipe, recipe, ["name=x", "optim.rate=1", override])
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_every_problem_is_named_at_once_and_where() -> None:
    with pytest.raises(UserError, match=r"^base\.yaml: steps must .*; optim\.rate must .*") as error:
        validate(Recipe, {"steps": "x", "optim": {"rate": "y"}}, where="base.yaml")
    assert str(error.value).count(";") == 1


def test_a_missing_key_is_named() -> None:
    class Needs(Strict):
        base: str

    with pytest.raises(UserError, match=r"^key 'base' is missing$"):
        load(Needs)


def test_values_cannot_be_reassigned() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Recipe().steps = 2  # type: ignore[misc]


values = st.fixed_dictionaries(
    {},
    optional={
        "steps": st.integers(1, 5),
        "name": st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=8),
        "optim": st.fixed_dictionaries({"rate": st.floats(allow_nan=False, allow_infinity=False)}),
        "extra": st.none() | st.just({"rate": 1e-7}),
    },
)


def test_environment_variables_are_filled_in_at_any_depth(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PLACE", "here")
    monkeypatch.delenv("NOWHERE", raising=False)
    path = tmp_path / "r.yaml"
    path.write_text("name: ${PLACE}/${NOWHERE:-x/y}-$5 ${}\nsources: [{rate: '${RATE:-0.25}'}]")
    found = load(Recipe, path)
    assert found.name == "here/x/y-$5 ${}"
    assert found.sources[0].rate == 0.25
    assert load(Recipe, path, ["name=${PLACE}"]).name == "here"
    assert load(Recipe, path, ["name=a${NOWHERE:-}b"]).name == "ab"
    with pytest.raises(UserError, match="variable NOWHERE, which the recipe names, is not set"):
        load(Recipe, path, ["name=${NOWHERE}"])


@given(values, values)
def test_a_dump_reads_back_and_the_hash_names_the_content(a: dict[str, Any], b: dict[str, Any]) -> None:
    first, second = validate(Recipe, a), validate(Recipe, b)
    assert validate(Recipe, yaml.safe_load(dump(first))) == first
    assert (config_hash(first) == config_hash(second)) == (dump(first) == dump(second))
    assert len(config_hash(first)) == 12


def test_a_dotted_override_does_not_reach_into_what_was_given() -> None:
    """Neither into the values of an override before it: the next caller gives them again."""
    base, common = {"steps": 2, "extra": {"rate": 1.0}}, {"optim": {"rate": 1.0}}
    changed = resolve(Recipe, base, common | {"optim.rate": 2.0, "extra.rate": 3.0})
    assert (changed.optim.rate, changed.extra) == (2.0, Optim(rate=3.0))
    assert (base, common) == ({"steps": 2, "extra": {"rate": 1.0}}, {"optim": {"rate": 1.0}})
