"""Worker threads for what blocks, so that cancelling never leaves it half done."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

T = TypeVar("T")


class Threads:
    """Two threads: one for commits, one for long work that no commit should wait for."""

    def __init__(self, name: str) -> None:
        self._quick = ThreadPoolExecutor(1, name)
        self._slow = ThreadPoolExecutor(1, f"{name}-slow")

    def start(self, call: Callable[..., T], *args: Any) -> asyncio.Future[T]:
        """Begin it on the thread for commits."""
        return asyncio.get_running_loop().run_in_executor(self._quick, call, *args)

    async def run(self, call: Callable[..., T], *args: Any) -> T:
        """Run it on the thread for commits, to its end even if we are cancelled meanwhile."""
        return await _to_its_end(self.start(call, *args))

    async def run_slowly(self, call: Callable[..., T], *args: Any) -> T:
        """The same on the thread for long work."""
        loop = asyncio.get_running_loop()
        return await _to_its_end(loop.run_in_executor(self._slow, call, *args))

    def close(self) -> None:
        """End the threads. Nothing may run on them any more."""
        self._quick.shutdown()
        self._slow.shutdown()


async def settled(future: asyncio.Future[Any]) -> asyncio.CancelledError | None:
    """Wait until it is done, however often we are cancelled; return that, to be raised later."""
    cancelled = None
    while not future.done():
        try:
            await asyncio.wait({future})
        except asyncio.CancelledError as error:
            cancelled = error
    return cancelled


async def _to_its_end(future: asyncio.Future[T]) -> T:
    # A thread cannot be stopped: what it does would go on behind the back of whoever comes next,
    # with the lock released.
    cancelled = await settled(future)
    if cancelled is not None:
        with suppress(BaseException):
            future.result()
        raise cancelled
    return future.result()


@contextmanager
def no_garbage() -> Iterator[None]:
    """Hold off the search for cycles, which records have not.

    Looking for them takes three times as long as reading the records.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
