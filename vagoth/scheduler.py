"""Jobs: actions on their way. In order for one node, in parallel across nodes, bounded per host."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext
from enum import StrEnum
from typing import Any

from vagoth.errors import OutcomeUnknown, VagothError
from vagoth.model import new_id
from vagoth.transaction import current, transaction

log = logging.getLogger(__name__)

JOBS_KEPT = 1000


class JobState(StrEnum):
    """How far a job is; the last four are ends."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"
    UNKNOWN = "unknown"


class Job:
    """One action on one node. Await it for its result, or its error; ``cancel`` it.

    ``step`` says what it is doing; ``fraction`` how far that is (0 to 1), where known. Times are
    seconds since the epoch.
    """

    def __init__(self, action: str, node_id: str, node: str, txid: str) -> None:
        self.id = new_id()[:6]
        self.action = action
        self.node_id = node_id
        self.node = node
        self.txid = txid
        self.state = JobState.WAITING
        self.step = ""
        self.fraction: float | None = None
        self.created = time.time()
        self.started: float | None = None
        self.ended: float | None = None
        self.result: Any = None
        self.error: BaseException | None = None
        self.notes: list[str] = []
        self._task: asyncio.Task[Any] | None = None

    def __repr__(self) -> str:
        return f"<Job {self.id}: {self.action} {self.node}, {self.state}>"

    def __await__(self) -> Generator[Any, None, Any]:
        assert self._task is not None
        return self._wait().__await__()

    async def _wait(self) -> Any:
        assert self._task is not None
        try:
            return await asyncio.shield(self._task)
        except asyncio.CancelledError:
            if self._task.done():
                raise
            # It is the waiter who was cancelled: the job goes with him, and he learns its end.
            self._task.cancel()
            await asyncio.wait([self._task])
            raise

    @property
    def is_over(self) -> bool:
        """Whether it has ended, in whatever way."""
        return self.ended is not None

    def cancel(self) -> None:
        """Ask it to end. It first finds out what is true; what it did is not undone."""
        if self._task is not None:
            self._task.cancel()

    def report(self, step: str, fraction: float | None = None) -> None:
        """Say what is being done now."""
        self.step, self.fraction = step, fraction

    def note(self, text: str) -> None:
        """Keep something for the person who reads the outcome."""
        self.notes.append(text)
        log.info("%s %s: %s", self.action, self.node, text)


class Scheduler:
    """Runs jobs.

    :param jobs_per_host: how many jobs may talk to one host at once
    """

    def __init__(self, *, jobs_per_host: int = 4) -> None:
        self._jobs_per_host = jobs_per_host
        self._slots: dict[str, asyncio.Semaphore] = {}
        self._turns: dict[str, asyncio.Lock] = {}
        self._active: dict[str, Job] = {}
        self._over: deque[Job] = deque(maxlen=JOBS_KEPT)
        self._listeners: list[Callable[[Job], None]] = []

    def submit(
        self,
        action: str,
        node_id: str,
        node: str,
        run: Callable[[Job], Awaitable[Any]],
        *,
        in_order: bool = True,
    ) -> Job:
        """Have ``run`` called, once all earlier jobs of that node are over.

        :param in_order: false for what need not wait, and nothing waits for
        The job shares the transaction in force, or opens one of its own.
        """
        outer = current()
        with transaction(reason="" if outer else f"{action} {node}") as tx:
            job = Job(action, node_id, node, tx.id)
            # asyncio's lock is handed over in the order in which it was asked for.
            turn = self._turns.setdefault(node_id, asyncio.Lock()) if in_order else None
            job._task = asyncio.create_task(
                self._run(job, run, turn), name=f"{action} {node} ({job.id})"
            )
        self._active[job.id] = job
        job._task.add_done_callback(lambda task: self._ended(job, task))
        return job

    def jobs(self) -> list[Job]:
        """Those on their way, and the last thousand that are over; oldest first."""
        return sorted([*self._over, *self._active.values()], key=lambda job: job.created)

    def active(self) -> list[Job]:
        """Those that wait or run."""
        return list(self._active.values())

    def on_end(self, listener: Callable[[Job], None]) -> Callable[[], None]:
        """Call ``listener`` with each job that ends; returns what stops that."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    @asynccontextmanager
    async def slots(self, host_ids: Iterable[str]) -> AsyncIterator[None]:
        """Hold one of the places that each of these hosts has for jobs."""
        async with AsyncExitStack() as stack:
            # In one order for all, so that two jobs cannot each hold what the other waits for.
            for host_id in sorted(set(host_ids)):
                slot = self._slots.setdefault(host_id, asyncio.Semaphore(self._jobs_per_host))
                await stack.enter_async_context(slot)
            yield

    async def close(self) -> None:
        """Cancel what is on its way, and wait until each has found out what is true."""
        tasks = [job._task for job in self._active.values() if job._task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _run(
        self,
        job: Job,
        run: Callable[[Job], Awaitable[Any]],
        turn: asyncio.Lock | None,
    ) -> Any:
        async with turn or nullcontext():
            return await self._run_now(job, run)

    async def _run_now(self, job: Job, run: Callable[[Job], Awaitable[Any]]) -> Any:
        job.state = JobState.RUNNING
        job.started = time.time()
        log.info("%s %s: begun", job.action, job.node)
        try:
            job.result = await run(job)
        except asyncio.CancelledError as error:
            job.state, job.error = JobState.CANCELLED, error
            log.info("%s %s: cancelled", job.action, job.node)
            raise
        except OutcomeUnknown as error:
            job.state, job.error = JobState.UNKNOWN, error
            log.info("%s %s: outcome unknown: %s", job.action, job.node, error)
            raise
        except VagothError as error:
            job.state, job.error = JobState.FAILED, error
            log.info("%s %s: failed: %s", job.action, job.node, error)
            raise
        except BaseException as error:
            job.state, job.error = JobState.FAILED, error
            log.exception("%s %s: failed", job.action, job.node)
            raise
        job.state = JobState.DONE
        log.info("%s %s: done", job.action, job.node)
        return job.result

    def _ended(self, job: Job, task: asyncio.Task[Any]) -> None:
        job.ended = time.time()
        if task.cancelled() and job.state is not JobState.CANCELLED:
            job.state = JobState.CANCELLED
        if not task.cancelled():
            task.exception()
        self._active.pop(job.id, None)
        self._over.append(job)
        if not any(other.node_id == job.node_id for other in self._active.values()):
            self._turns.pop(job.node_id, None)
        for listener in tuple(self._listeners):
            listener(job)
