"""What a file says and nobody reads is told."""

from __future__ import annotations

import warnings
from pathlib import Path


def note_unread(file: Path, keys: set[str]) -> None:
    """Say once which keys of a file are not read."""
    if keys:
        warnings.warn(f"{file}: not read, and without effect here: {', '.join(sorted(keys))}", stacklevel=3)
