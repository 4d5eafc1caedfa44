"""What README.md and docs/serving.md say of serving is so: their commands, settings and manifests."""

from __future__ import annotations

import configparser
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")

from doc_pages import ROOT, Block, blocks, run_block
from live_server import live
from moembed.embedder import Embedder
from moembed.serve.app import create_app
from moembed.serve.settings import PREFIX, ServeSettings

PAGE = ROOT / "docs" / "serving.md"
DEPLOY = ROOT / "deploy"
ADDRESS = "http://127.0.0.1:8000"
ASKED = [
    block
    for page in (ROOT / "README.md", PAGE)
    for block in blocks(page)
    if "test_serving_page.py runs it" in block.not_run
]


# ---- what can be run ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def url(served_embedder: Embedder) -> Iterator[str]:
    with live(served_embedder) as address:
        yield address


@pytest.mark.parametrize("block", ASKED, ids=str)
def test_what_the_pages_ask_the_server(
    block: Block, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "openai" in block.text:
        pytest.importorskip("openai")
    if "langchain" in block.text:
        pytest.importorskip("langchain_openai")
    monkeypatch.chdir(tmp_path)
    write_task(tmp_path / "data" / "scifact")
    text = block.text.replace(ADDRESS, url)
    if block.language == "sh" and text.startswith("curl"):
        if shutil.which("curl") is None:
            pytest.skip("there is no curl here")
        done = subprocess.run(["bash", "-euc", text], capture_output=True, check=True, timeout=30)
        assert len(json.loads(done.stdout)["data"]) == 1
        return
    assert block.language in ("sh", "python")
    replaced = Block(block.page, block.line, block.language, text, "", block.output)
    run_block(replaced, {"__name__": "page"}, {})


def write_task(folder: Path) -> None:
    (folder / "qrels").mkdir(parents=True)
    texts = ["moles eat worms", "owls hunt voles", "the night is long"]
    rows = [json.dumps({"_id": str(n), "text": text}) + "\n" for n, text in enumerate(texts)]
    (folder / "corpus.jsonl").write_text("".join(rows))
    (folder / "queries.jsonl").write_text("".join(rows))
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n0\t0\t1\n1\t1\t1\n2\t2\t1\n")


def test_both_pages_show_curl_the_openai_client_and_our_own() -> None:
    assert {block.page for block in ASKED} == {"README.md", "serving.md"}
    for page in ("README.md", "serving.md"):
        shown = "".join(block.text for block in ASKED if block.page == page)
        assert all(word in shown for word in ("curl", "from openai import", "moembed import Client")), page


# ---- settings ----------------------------------------------------------------------------------------------


def settings_table() -> str:
    """The settings as the page shows them."""
    lines = ["| setting | default | |", "| --- | --- | --- |"]
    for name, field in ServeSettings.model_fields.items():
        default = "" if field.is_required() or field.default in (None, "", ()) else f"`{field.default}`"
        lines.append(f"| `{name}` | {default} | {field.description} |")
    return "\n".join(lines)


def test_the_table_of_settings_is_that_of_the_program() -> None:
    """Where it fails, put the table that it prints between the two comments."""
    shown = re.search(
        r"<!-- settings -->\n(.*?)\n<!-- end of settings -->", PAGE.read_text("utf-8"), re.DOTALL
    )
    assert shown
    assert shown[1].strip() == settings_table(), settings_table()


# ---- what is deployed --------------------------------------------------------------------------------------


def block_of(language: str) -> str:
    (found,) = (block.text for block in blocks(PAGE) if block.language == language)
    return found


def is_setting(variable: str) -> bool:
    return variable.removeprefix(PREFIX).lower() in ServeSettings.model_fields


def routes(served_embedder: Embedder) -> set[str]:
    from moembed.serve.served import ServedModel

    app = create_app(ServeSettings(model="runs/demo"), ServedModel("demo", served_embedder))
    return set(app.openapi()["paths"])


def test_every_variable_is_a_setting() -> None:
    files = [*(path for path in DEPLOY.iterdir() if path.is_file()), PAGE, ROOT / "README.md"]
    named = {name for path in files for name in re.findall(rf"{PREFIX}[A-Z_]+", path.read_text("utf-8"))}
    assert len(named) > 4
    assert not [name for name in named if not is_setting(name)]


def test_the_image_holds_what_it_names(served_embedder: Embedder) -> None:
    text = (DEPLOY / "Dockerfile").read_text("utf-8")
    copied = [
        word
        for line in re.findall(r"^COPY (?!--from)(.+)$", text, re.MULTILINE)
        for word in line.split()[:-1]
    ]
    let_in = (DEPLOY / "Dockerfile.dockerignore").read_text("utf-8").splitlines()
    for name in copied:
        assert (ROOT / name).exists(), name
        assert f"!{name}" in let_in, name
    stages = re.findall(r"^FROM (\S+)", text, re.MULTILINE)
    assert len(stages) == 2
    assert re.search(r"^USER 10001$", text, re.MULTILINE), "it must not run as root"
    (path,) = set(re.findall(r"\+ '(/[a-z]+)'", text))
    assert path in routes(served_embedder)
    extras = re.search(r"'\.\[([a-z,]+)\]'", text)
    assert extras
    assert "serve" in extras[1].split(",")


def test_the_compose_file_waits_longer_than_the_server_drains(served_embedder: Embedder) -> None:
    service = yaml.safe_load((DEPLOY / "compose.yaml").read_text("utf-8"))["services"]["moembed"]
    assert seconds(service["stop_grace_period"]) > int(service["environment"][f"{PREFIX}DRAIN_SECONDS"])
    assert all(port.startswith("127.0.0.1:") for port in service["ports"]), "nothing is open to the world"
    assert service["read_only"]
    assert service["cap_drop"] == ["ALL"]
    checked = re.search(r":8000(/[a-z]+)", " ".join(service["healthcheck"]["test"]))
    assert checked
    assert checked[1] in routes(served_embedder)
    assert (DEPLOY / service["build"]["context"]).resolve() == ROOT
    assert (ROOT / service["build"]["dockerfile"]).is_file()


def test_the_manifest_of_kubernetes_asks_routes_that_are_there(served_embedder: Embedder) -> None:
    deployment, service = yaml.safe_load_all(block_of("yaml"))
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    known = routes(served_embedder)
    for name in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert container[name]["httpGet"]["path"] in known
    variables = {entry["name"]: entry["value"] for entry in container["env"]}
    assert pod["terminationGracePeriodSeconds"] > float(variables[f"{PREFIX}DRAIN_SECONDS"]) + 5
    assert service["spec"]["selector"] == deployment["spec"]["selector"]["matchLabels"]
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}


def test_the_unit_of_systemd_starts_the_server() -> None:
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read_string(block_of("ini"))
    service: dict[str, Any] = dict(unit["Service"])
    assert service["ExecStart"].split()[1] == "serve"
    assert int(service["TimeoutStopSec"]) > ServeSettings.model_fields["drain_seconds"].default
    assert service["DynamicUser"] == "yes"


def seconds(text: str) -> int:
    return int(text.removesuffix("s"))
