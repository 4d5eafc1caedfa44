"""`moembed serve` as a process of its own, with two workers: they count together, and end together."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx2
import numpy as np

from conftest import Run
from moembed.embedder import Embedder

COMMAND = [sys.executable, "-m", "moembed", "serve"]


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def ask(url: str, path: str = "/v1/embeddings", **body: object) -> httpx2.Response:
    """On a connection of its own, so that either worker may answer."""
    if body:
        return httpx2.post(url + path, json=body, timeout=20)
    return httpx2.get(url + path, timeout=20)


def counted(url: str) -> int:
    pattern = r'moembed_requests_total{route="/v1/embeddings",status="200"} (\d+)'
    found = re.search(pattern, ask(url, "/metrics").text)
    return int(found[1]) if found else 0


def is_ready(url: str) -> bool:
    try:
        return ask(url, "/health").status_code == 200 and "moembed_ready 1.0" in ask(url, "/metrics").text
    except httpx2.TransportError:
        return False


def test_two_workers_from_start_to_end(served_embedder: Embedder, tmp_path: Path) -> None:
    served_embedder.save_pretrained(tmp_path / "tiny")
    errors = (tmp_path / "errors").open("w+")
    environment = os.environ | {"TMPDIR": str(tmp_path), "OMP_NUM_THREADS": "2"}
    options = [str(tmp_path / "tiny"), "port=0", "--workers", "2", "--dtype", "float32"]
    process = subprocess.Popen([*COMMAND, *options], stderr=errors, env=environment)
    try:

        def said() -> str:
            errors.seek(0)
            return errors.read()

        wait_for(lambda: "serving tiny" in said() or process.poll() is not None)
        (url,) = re.findall(r"http://[\d.:]+", said())
        wait_for(lambda: is_ready(url))
        for _ in range(6):
            vector = ask(url, input="a mole digs").json()["data"][0]["embedding"]
            assert np.allclose(vector, served_embedder.encode("a mole digs"), atol=1e-5)
        assert counted(url) == 6

        # one worker dies at once; what it had counted stays, and another takes its place
        workers = re.findall(r"Started server process \[(\d+)\]", said())
        assert len(workers) == 2
        os.kill(int(workers[0]), signal.SIGKILL)
        wait_for(lambda: said().count("Started server process") == 3 and is_ready(url))
        assert "by signal 9" in said()
        for _ in range(4):
            assert ask(url, input="an owl").status_code == 200
        assert counted(url) == 10

        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        assert said().splitlines()[-1].startswith("stopped")
        assert not list(tmp_path.glob("moembed-metrics-*"))
        assert "Traceback" not in said()
    finally:
        process.kill()
        process.wait(10)
        errors.close()


def test_a_key_file_that_is_not_there_is_known_before_the_model_is_loaded(run: Run, tmp_path: Path) -> None:
    code, _, err = run("serve", "no-such-model", "--api-key-file", tmp_path / "none", "port=0")
    assert code == 2
    assert "cannot read the keys" in err


def test_a_port_that_another_server_has_is_a_sentence_before_the_model_is_loaded(run: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        code, out, err = run("serve", "no-such-model", f"port={other.getsockname()[1]}")
    assert code == 2
    assert out == ""
    assert err.startswith("error: cannot listen on 127.0.0.1")
    assert err.count("\n") == 1
