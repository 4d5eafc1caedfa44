"""The source code of another commit, to be measured beside this one."""

from __future__ import annotations

import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory

from moembed.machine import ROOT
from moembed.types import UserError


@contextmanager
def source_tree(name: str) -> Iterator[Path]:
    """The folder that holds the package ``moembed`` of a checkout's folder, or of a commit of this checkout.

    Raises:
        UserError: it is neither.
    """
    for folder in (Path(name) / "src", Path(name)):
        if (folder / "moembed" / "__init__.py").is_file():
            yield folder.resolve()
            return
    git = ["git", "-C", str(ROOT), "archive", "--format=tar", name, "src"]
    try:
        archive = subprocess.run(git, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        raise UserError(
            f"{name!r} is neither a folder with src/moembed nor a commit of this checkout: give one of them"
        ) from None
    with TemporaryDirectory() as place:
        with tarfile.open(fileobj=BytesIO(archive)) as tar:
            tar.extractall(place, filter="data")
        yield Path(place) / "src"
