"""Ctrl-C before a command has begun: while the command line, or what the command needs, is imported."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

START = "import os, signal, sys, time\nfrom moembed.__main__ import entry\n"
INTERRUPT = "os.kill(os.getpid(), signal.SIGINT)\n"


def start(code: str, **options: Any) -> subprocess.CompletedProcess[str]:
    code = f"{START}{code}\nsys.exit(entry())"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, **options)


def test_while_the_command_line_is_imported(tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text(f"import os, signal\n{INTERRUPT}")
    done = start(f"sys.path.insert(0, {str(tmp_path)!r})")
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "stopped: nothing more was written\n")


def test_in_an_import_that_swallows_it(tmp_path: Path) -> None:
    swallowed = f"try:\n    {INTERRUPT}    time.sleep(50)\nexcept KeyboardInterrupt:\n    pass\n"
    (tmp_path / "needed.py").write_text(f"import os, signal, time\n{swallowed}")
    begin = f"sys.path.insert(0, {str(tmp_path)!r})\nimport moembed.cli\n"
    began = time.monotonic()
    done = start(f"{begin}def main():\n    import needed\n    time.sleep(50)\nmoembed.cli.main = main")
    assert (done.returncode, done.stderr) == (130, "stopped: nothing more was written\n")
    assert time.monotonic() - began < 40  # neither sleep has ended


def test_where_the_shell_has_it_ignored_it_stays_so() -> None:
    def ignore() -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    main = f"import moembed.cli\ndef main():\n    {INTERRUPT}    return 7\nmoembed.cli.main = main"
    assert start(main, preexec_fn=ignore).returncode == 7


def test_the_module_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "moembed", "--version"], capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stdout.strip()
