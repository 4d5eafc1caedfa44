"""The process of the command line, also as ``python -m moembed``: Ctrl-C ends it from its first moment on."""

from __future__ import annotations

import signal
import sys
from types import FrameType

_AGAIN_SECONDS = 0.5


def entry() -> int:
    """Run the command of ``sys.argv``; its exit code."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where the shell had it ignored
        signal.signal(signal.SIGINT, _stop)
    try:
        from moembed.cli import main

        return main()
    except KeyboardInterrupt:
        print("stopped: nothing more was written", file=sys.stderr)
        return 130
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _stop(number: int, frame: FrameType | None) -> None:
    """Ctrl-C as always; in the middle of an import it is said again until the command has ended.

    An import may swallow it: PyTorch's goes on without NumPy if that is interrupted, and so would a command
    that nobody wants any more.
    """
    if _imports(frame):
        signal.signal(signal.SIGALRM, _stop)
        signal.setitimer(signal.ITIMER_REAL, _AGAIN_SECONDS)
    raise KeyboardInterrupt


def _imports(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


if __name__ == "__main__":
    sys.exit(entry())
