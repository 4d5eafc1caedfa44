"""Settings: a flag wins over the environment, that over a file, that over the default; mistakes are named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from conftest import Run
from moembed.serve.settings import ServeSettings, load_settings
from moembed.types import UserError


def test_where_each_setting_comes_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text("port: 1\nmax_texts: 2\nname: file\ncors_origins: [https://a.example]\n")
    monkeypatch.setenv("MOEMBED_SERVE_PORT", "3")
    monkeypatch.setenv("MOEMBED_SERVE_NAME", "environment")
    monkeypatch.setenv("MOEMBED_SERVE_API_KEYS", "one, two")
    settings, origin = load_settings({"model": "m", "name": "flag", "host": None}, file)
    assert (settings.port, settings.max_texts, settings.served_name) == (3, 2, "flag")
    assert settings.keys() == ["one", "two"]
    assert settings.cors_origins == ("https://a.example",)
    named = {name: origin[name] for name in ("model", "name", "port", "max_texts", "host", "api_keys")}
    assert named == {
        "model": "flag", "name": "flag", "port": "environment", "max_texts": "file", "host": "default",
        "api_keys": "environment",
    }  # fmt: skip
    assert set(origin) == set(ServeSettings.model_fields)


def test_a_file_of_variables(tmp_path: Path) -> None:
    file = tmp_path / "serve.env"
    file.write_text("MOEMBED_SERVE_PORT=7\nMOEMBED_SERVE_MODEL=m\n")
    settings, origin = load_settings({}, file)
    assert (settings.port, settings.model, origin["port"]) == (7, "m", "file")


def test_a_file_of_variables_that_is_no_text(tmp_path: Path) -> None:
    file = tmp_path / "serve.env"
    file.write_bytes(b"MOEMBED_SERVE_NAME=m\xfcll\n")
    with pytest.raises(UserError, match="cannot read the settings"):
        load_settings({"model": "m"}, file)


def test_origins_are_as_browsers_name_them() -> None:
    settings, _ = load_settings({"model": "m", "cors_origins": "https://a.example/, https://b.example"})
    assert settings.cors_origins == ("https://a.example", "https://b.example")


@pytest.mark.parametrize(
    ("flags", "text", "said"),
    [
        ({}, "", "name the model"),
        ({"model": "m", "port": -1}, "", "port must be at least 0"),
        ({"model": "m", "port": "many"}, "", "port must be a whole number"),
        ({"model": "m", "dtype": "float8"}, "", "dtype"),
        ({"model": "m", "prot": "8000"}, "", "did you mean 'port'"),
        ({"model": "m"}, "prot: 1", "did you mean 'port'"),
        ({"model": "m"}, "- port", "keys with values"),
        ({"model": "m"}, "port: [", "cannot read"),
        ({"model": "m"}, "1: 2", "the key 1"),
        ({"model": "m", "root_path": "api"}, "", "write /api"),
        ({"model": "m", "max_wait": 0}, "", "max_wait must be above 0"),
        ({"model": "m"}, "max_body_bytes: 2000\nbodies_bytes: 1999", "less than the 2000 that one body"),
        ({"model": "m", "api_keys": ["a", " "]}, "", "must not be empty"),
        ({"model": "m"}, "api_keys: []", "give at least one key"),
    ],
)
def test_mistakes_are_one_sentence(tmp_path: Path, flags: dict[str, object], text: str, said: str) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text(text)
    with pytest.raises(UserError) as raised:
        load_settings(flags, file)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_variable_that_is_no_setting_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOEMBED_SERVE_PROT", "1")
    with pytest.raises(UserError, match="MOEMBED_SERVE_PROT"):
        load_settings({"model": "m"})


def test_files_of_keys(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# ours\nfirst\n\n second \n")
    settings, _ = load_settings({"model": "m", "api_key_file": file, "api_keys": ["zero"]})
    assert settings.keys() == ["zero", "first", "second"]
    file.write_text("# none\n")
    with pytest.raises(UserError, match="no key"):
        settings.keys()
    file.unlink()
    with pytest.raises(UserError, match="cannot read"):
        settings.keys()


@pytest.mark.parametrize(
    ("model", "name"),
    [("runs/demo", "demo"), ("runs/demo/", "demo"), ("owner/name", "name"), ("minilm", "minilm")],
)
def test_the_name_is_the_last_part_of_the_path(model: str, name: str) -> None:
    assert ServeSettings(model=model).served_name == name


def test_the_command_shows_them_without_keys(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOEMBED_SERVE_API_KEYS", "very-secret")
    code, out, _ = run("serve", "m", "max_texts=5", "--show-settings")
    assert code == 0
    lines = {line.split()[0]: line for line in out.splitlines()}
    assert set(lines) == set(ServeSettings.model_fields)
    assert lines["max_texts"].split()[1:3] == ["5", "flag"]
    assert lines["api_keys"].split()[2] == "environment"
    assert "very-secret" not in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["m", "max_texts"], "write name=value"),
        (["m", "port=1", "--port", "2"], "port is given twice"),
        (["m", "max_texts=0"], "max_texts must be at least 1"),
        (["no-such-folder", "port=0"], "no-such-folder"),
    ],
)
def test_mistakes_on_the_command_line(run: Run, arguments: list[str], said: str) -> None:
    code, _, err = run("serve", *arguments)
    assert code == 2
    assert said in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1


def test_a_file_of_keys_as_windows_writes_it(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_bytes("\ufeffone\r\n\r\n  # ours\r\n two \r\n".encode())
    assert ServeSettings(model="m", api_key_file=file).keys() == ["one", "two"]


@pytest.mark.parametrize("key", ["sch\u00fcssel", "two words", "a\x00b"])
def test_a_key_that_no_request_can_bring_is_refused(tmp_path: Path, key: str) -> None:
    file = tmp_path / "keys"
    file.write_text(f"fine\n{key}\n", encoding="utf-8")
    with pytest.raises(UserError, match="key 2 has a space") as raised:
        ServeSettings(model="m", api_key_file=file).keys()
    assert key not in str(raised.value)
    with pytest.raises(UserError, match="bearer key cannot have"):
        load_settings({"model": "m", "api_keys": [key]})


@pytest.mark.parametrize("name", ["API_KEYS", "HOST"])
def test_an_empty_variable_opens_no_server(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """No key would let everyone in, and no host would be every address of the machine."""
    monkeypatch.setenv(f"MOEMBED_SERVE_{name}", "")
    with pytest.raises(UserError, match=name.lower()):
        load_settings({"model": "m"})


def test_how_much_work_may_wait_is_a_flag_a_variable_and_a_key(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text("max_wait: 3\nmodel: m\n")

    def told(*flags: str) -> tuple[float, str]:
        code, out, err = run("serve", *flags, "--config", file, "--show-settings", "--json")
        assert code == 0, err
        found = json.loads(out)["max_wait"]
        return found["value"], found["from"]

    assert told() == (3, "file")
    monkeypatch.setenv("MOEMBED_SERVE_MAX_WAIT", "4")
    assert told() == (4, "environment")
    assert told("--max-wait", "5") == told("m", "max_wait=5") == (5, "flag")
