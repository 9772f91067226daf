"""Worker threads for what blocks, so that cancelling never leaves it half done."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")


class Kept(asyncio.Future[T]):
    """The outcome of what cannot be stopped. Who waits for it and is cancelled hears so then.

    A thread goes on whatever becomes of who waits: it would work behind the back of whoever comes
    next, with the lock released.
    """

    def cancel(self, msg: Any | None = None) -> bool:
        """Not now: the task that waits is cancelled when this is done."""
        return False


_Work = tuple[Kept[Any], Callable[..., Any], tuple[Any, ...]]


class _Worker:
    """One thread that does one thing after another. Half as far away as an executor's."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._loop: asyncio.AbstractEventLoop | None = None
        self._work: SimpleQueue[_Work | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def start(self, call: Callable[..., T], args: tuple[Any, ...]) -> Kept[T]:
        if self._thread is None:
            self._loop = asyncio.get_running_loop()
            # Ends with the process even if nobody closed it: nothing is on its way then that
            # anybody was told of.
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()
        done: Kept[T] = Kept(loop=self._loop)
        self._work.put((done, call, args))
        return done

    def close(self) -> None:
        if self._thread is not None:
            self._work.put(None)
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        assert self._loop is not None
        while (work := self._work.get()) is not None:
            done, call, args = work
            try:
                result = call(*args)
            except BaseException as error:
                told: tuple[Any, ...] = (_failed, done, error)
            else:
                told = (done.set_result, result)
            with suppress(RuntimeError):  # the loop has ended, and nobody waits any more
                self._loop.call_soon_threadsafe(*told)
            del work, done, call, args, told


def _failed(done: Kept[Any], error: BaseException) -> None:
    done.set_exception(error)
    done.exception()  # seen, even if who waits is cancelled


class Threads:
    """Two threads: one for commits, one for long work that no commit should wait for."""

    def __init__(self, name: str) -> None:
        self._quick = _Worker(name)
        self._slow = _Worker(f"{name}-slow")

    def start(self, call: Callable[..., T], *args: Any) -> Kept[T]:
        """Begin it on the thread for commits."""
        return self._quick.start(call, args)

    async def run(self, call: Callable[..., T], *args: Any) -> T:
        """Run it on the thread for commits, to its end even if we are cancelled meanwhile."""
        return await self._quick.start(call, args)

    async def run_slowly(self, call: Callable[..., T], *args: Any) -> T:
        """The same on the thread for long work."""
        return await self._slow.start(call, args)

    def close(self) -> None:
        """End the threads. Nothing may run on them any more."""
        self._quick.close()
        self._slow.close()


async def settled(future: asyncio.Future[Any]) -> asyncio.CancelledError | None:
    """Wait until it is done, however often we are cancelled; return that, to be raised later."""
    cancelled = None
    while not future.done():
        try:
            if isinstance(future, Kept):
                await future
            else:
                await asyncio.wait({future})
        except asyncio.CancelledError as error:
            cancelled = error
        except BaseException:
            break  # its own, which is in the future
    return cancelled
