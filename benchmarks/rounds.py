"""The other end of :func:`benchmarks.programs.kept_open`: rounds on request."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable


def serve(round: Callable[[], object]) -> None:
    """Do one round for each line of standard input, and print the seconds it took; to its end."""
    say("ready")
    for _ in sys.stdin:
        begun = time.perf_counter()
        round()
        say(repr(time.perf_counter() - begun))


def say(line: str) -> None:
    """Print a line at once: somebody waits for it."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
