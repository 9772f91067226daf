"""Calls of one connection to libvirt: on threads, a few at once, each with a deadline."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import traceback
from collections import deque
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from vagoth.drivers.libvirt.threads import threads

# libvirtd serves five calls of one client at once, and needs the fifth for its keepalive.
AT_ONCE = 4

T = TypeVar("T")


class Abandoned(Exception):
    """Nobody waits for the call any more, and it has changed nothing yet: it ends here."""


class Call:
    """What a function on a worker tells of itself while it runs."""

    def __init__(self, what: str) -> None:
        #: What is done, as a noun: ``the start of web1``.
        self.what = what
        self._lock = threading.Lock()
        self._was_sent = False
        self._is_abandoned = False

    def about_to_change(self) -> None:
        """Say, on the worker, that the next request changes something.

        If the answer is lost after that, nobody knows whether it happened; before, nothing did.
        """
        with self._lock:
            if self._is_abandoned:
                raise Abandoned
            self._was_sent = True

    def abandon(self) -> bool:
        """Give the call up. Returns whether a change was sent; if not, none will be."""
        with self._lock:
            self._is_abandoned = True
            return self._was_sent

    @property
    def was_sent(self) -> bool:
        """Whether a request that changes something was sent, or is about to be."""
        with self._lock:
            return self._was_sent


class _Job(Generic[T]):
    def __init__(
        self,
        call: Call,
        function: Callable[[], T] | None,
        timeout_s: float | None,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self.call = call
        # Without one, it only holds a place.
        self.function = function
        self.timeout_s = timeout_s
        self.future: asyncio.Future[T] = loop.create_future()
        self.timer: asyncio.TimerHandle | None = None


class Workers:
    """The threads that serve one connection.

    :param overdue: told of a call that has not ended in its time. It cannot be ended from here:
        what it waits for must be taken away, and then :meth:`fail` be called.
    """

    def __init__(self, overdue: Callable[[Call, float], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._overdue = overdue
        self._queued: deque[_Job[Any]] = deque()
        self._running: set[_Job[Any]] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._failed: Callable[[Call], BaseException] | None = None

    def submit(
        self, call: Call, function: Callable[[], T], *, timeout_s: float | None
    ) -> asyncio.Future[T]:
        """Have ``function`` called on a worker, as soon as fewer than four calls run.

        A cancelled call goes on in its thread, and goes on to count.

        :param timeout_s: longest time from when it begins, in seconds; none if it may take as
            long as it takes
        """
        job = _Job(call, function, timeout_s, self._loop)
        self._enqueue(job)
        return job.future

    async def hold(self) -> Callable[[], None]:
        """Take the place of one call, for work that another connection's worker does with this
        one's connection. Returns what gives it back, to be called on the loop.
        """
        job: _Job[None] = _Job(Call("a call of another host"), None, None, self._loop)
        self._enqueue(job)
        try:
            await job.future
        except asyncio.CancelledError:
            self._give_back(job)
            raise
        return lambda: self._give_back(job)

    def fail(self, why: Callable[[Call], BaseException]) -> None:
        """Fail all calls that wait or run, and all that will be made."""
        self._failed = why
        for job in (*self._queued, *self._running):
            _settle(job, None, why(job.call))
        self._queued.clear()

    @property
    def is_idle(self) -> bool:
        """Whether no thread is in a call."""
        return not self._running

    async def idle(self) -> None:
        """Wait until no thread is in a call any more."""
        await self._idle.wait()

    def _enqueue(self, job: _Job[Any]) -> None:
        if self._failed is not None:
            job.future.set_exception(self._failed(job.call))
            return
        self._queued.append(job)
        self._next()

    def _next(self) -> None:
        while self._queued and len(self._running) < AT_ONCE:
            job = self._queued.popleft()
            if job.future.done():
                continue
            self._running.add(job)
            self._idle.clear()
            if job.function is None:
                _settle(job, None, None)
                continue
            if job.timeout_s is not None:
                job.timer = self._loop.call_later(job.timeout_s, self._late, job)
            threads.run(_thread_job(self._loop, job.function, self._ended, job))

    def _late(self, job: _Job[Any]) -> None:
        assert job.timeout_s is not None
        self._overdue(job.call, job.timeout_s)

    def _ended(self, job: _Job[Any], value: Any, error: BaseException | None) -> None:
        if job.timer is not None:
            job.timer.cancel()
        _settle(job, value, error)
        self._give_back(job)

    def _give_back(self, job: _Job[Any]) -> None:
        self._running.discard(job)
        if not self._running:
            self._idle.set()
        self._next()


def _settle(job: _Job[Any], value: Any, error: BaseException | None) -> None:
    if job.future.done():
        return
    if error is None:
        job.future.set_result(value)
    else:
        job.future.set_exception(error)


def _thread_job(
    loop: asyncio.AbstractEventLoop,
    function: Callable[[], T],
    ended: Callable[[_Job[T], T | None, BaseException | None], None],
    job: _Job[T],
) -> Callable[[], None]:
    def run() -> None:
        value: T | None = None
        error: BaseException | None = None
        try:
            value = function()
        except BaseException as caught:
            release_frames(caught)
            error = caught
        # The loop may have ended meanwhile; then nobody waits for this.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(ended, job, value, error)

    return run


async def on_thread(function: Callable[[], T]) -> T:
    """What ``function`` returns, called on a thread: for opening and closing a connection."""
    loop = asyncio.get_running_loop()
    job = _Job(Call(""), function, None, loop)
    threads.run(_thread_job(loop, function, _settle, job))
    return await job.future


def release_frames(error: BaseException | None) -> None:
    """Empty the frames that an exception holds, and those of its causes.

    They hold libvirt's objects, and whoever drops the last reference to one makes a call: on the
    loop's thread, which also carries the SSH connection, that call would wait for itself.
    """
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
