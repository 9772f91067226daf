"""Programs as contenders: commands timed as a whole, and processes that are kept open."""

from __future__ import annotations

import asyncio
import contextlib
import shlex
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from benchmarks.timing import BenchmarkFailed, Contender
from tests.lab import CommandFailed, process

TIMEOUT_S = 60.0
ROOT = Path(__file__).parents[1]


def command(
    name: str,
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    stdin: str | None = None,
    shown: str | None = None,
    is_ours: bool = False,
) -> Contender:
    """A command, timed from its start to its end, its output going into a pipe.

    :param env: its whole environment
    :param shown: how the command is shown, where the real one has paths that nobody needs
    """

    async def run() -> float:
        begun = time.perf_counter()
        try:
            await process.run(*argv, env=env, stdin=stdin, timeout_s=TIMEOUT_S)
        except CommandFailed as error:
            raise BenchmarkFailed(f"{name}: {error}") from error
        return time.perf_counter() - begun

    return Contender(name, shown or shlex.join(argv), run, is_ours)


@asynccontextmanager
async def kept_open(
    name: str,
    module: str,
    arguments: Sequence[str],
    *,
    env: Mapping[str, str],
    shown: str,
    is_ours: bool = False,
) -> AsyncIterator[Contender]:
    """A module of ours that connects once, and then times a round whenever it is told to.

    It prints a line when it is ready. For each line that it reads it does one round, and prints
    how long that took, in seconds; see :mod:`benchmarks.rounds`.
    """
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", module, *arguments),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env=env,
        cwd=ROOT,
    )
    assert child.stdin is not None
    assert child.stdout is not None
    requests, answers = child.stdin, child.stdout

    async def answer() -> str:
        try:
            async with asyncio.timeout(TIMEOUT_S):
                line = await answers.readline()
        except TimeoutError:
            raise BenchmarkFailed(f"{name}: no answer within {TIMEOUT_S:g} s") from None
        if not line:
            raise BenchmarkFailed(f"{name}: {module} ended")
        return line.decode().strip()

    async def run() -> float:
        requests.write(b"\n")
        said = await answer()
        try:
            return float(said)
        except ValueError:
            raise BenchmarkFailed(f"{name}: {module} said {said!r}, and no time") from None

    try:
        await answer()
        yield Contender(name, shown, run, is_ours)
    finally:
        # At the end of its input it closes what it has open, and ends.
        requests.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(5):
                await child.wait()
        if child.returncode is None:
            child.kill()
            await child.wait()
