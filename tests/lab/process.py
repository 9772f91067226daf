"""Commands run to their end, bounded in time, on any event loop."""

import asyncio
import contextlib
import os
import signal
from collections.abc import Coroutine, Mapping
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

from tests.lab.errors import CommandFailed


async def run(
    *argv: str,
    stdin: str | None = None,
    timeout_s: float = 30,
    check: bool = True,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> CompletedProcess[str]:
    """Run a command and return what it printed.

    If the caller is cancelled or the time is up, the command is killed before this returns.

    :param stdin: what the command reads; without it, nothing
    :param env: its whole environment; without it, ours
    :raises CommandFailed: it ended with a status other than 0 (only with ``check``), or was killed
        because the time was up
    """
    process = await asyncio.create_subprocess_exec(
        *argv,
        stdin=asyncio.subprocess.DEVNULL if stdin is None else asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=env,
        cwd=cwd,
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(timeout_s):
            out, err = await process.communicate(None if stdin is None else stdin.encode())
    except TimeoutError:
        await _kill(process)
        raise CommandFailed(argv, f"no end after {timeout_s} s", "") from None
    except BaseException:
        await _kill(process)
        raise
    status = process.returncode
    assert status is not None
    done = CompletedProcess(
        list(argv), status, out.decode(errors="replace"), err.decode(errors="replace")
    )
    if check and status != 0:
        outcome = signal.Signals(-status).name if status < 0 else f"exit status {status}"
        raise CommandFailed(argv, outcome, done.stdout + done.stderr)
    return done


async def _kill(process: asyncio.subprocess.Process) -> None:
    # The whole group: nsenter's child would outlive it, and asyncio's wait() lasts until nobody
    # holds the pipes any more.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    # A daemon it started has left the group, and may be long in letting go of them.
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(process.wait(), 5)


async def together(*steps: Coroutine[Any, Any, None]) -> None:
    """Run steps at the same time; if one fails, cancel the others, and raise its error alone."""
    try:
        async with asyncio.TaskGroup() as group:
            for step in steps:
                group.create_task(step)
    except BaseExceptionGroup as errors:
        first: BaseException = errors
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        raise first from None
