"""The queue of commits of one process: those that wait together share one write."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from vagoth import transaction
from vagoth.errors import RegistryError, VagothError
from vagoth.model import Change, Commit, RecordChange, new_txid
from vagoth.registry import rules
from vagoth.registry.ahead import Ahead
from vagoth.registry.head import Head
from vagoth.registry.lines import Line, LineChange, Mark
from vagoth.registry.threads import settled

_AT_ONCE = 100
_ON_LOOP = 100  # changes; more are decided on another thread

_Outcome = Commit | VagothError | None


class _Done(asyncio.Future[Commit | None]):
    """The outcome of a commit. It can be cancelled for as long as it waits in the queue."""

    def __init__(self, give_up: Callable[[], bool]) -> None:
        super().__init__(loop=asyncio.get_running_loop())
        self._give_up = give_up

    def cancel(self, msg: Any | None = None) -> bool:
        """Now if it was not begun; else whoever waits hears of it once it is settled."""
        return self._give_up() and super().cancel(msg)


class _Wanted:
    """A commit that somebody waits for."""

    def __init__(
        self,
        changes: Sequence[Change],
        expect: Mapping[str, str | None],
        absent: Collection[str],
        give_up: Callable[[_Wanted], bool],
        source: str,
    ) -> None:
        self.changes = changes
        self.expect = expect
        self.absent = absent
        self.transaction = transaction.current() or transaction.Transaction(new_txid(), source, "")
        self.done = _Done(lambda: give_up(self))

    def settle(self, outcome: _Outcome) -> None:
        if isinstance(outcome, VagothError):
            self.done.set_exception(outcome)
            self.done.exception()  # seen, even if nobody waits any more
        else:
            self.done.set_result(outcome)


class Writer:
    """Makes commits, in the order in which they came.

    ``committed`` is called after each write.
    """

    def __init__(self, head: Head, committed: Callable[[], None]) -> None:
        self._head = head
        self._committed = committed
        self._queue: deque[_Wanted] = deque()
        self._task: asyncio.Task[None] | None = None
        self._user = transaction.user_name()

    async def commit(
        self, changes: Sequence[Change], expect: Mapping[str, str | None], absent: Collection[str]
    ) -> Commit | None:
        """Make all changes, or none. A cancellation is raised once the outcome is settled."""
        wanted = _Wanted(changes, expect, absent, self._give_up, self._user)
        self._queue.append(wanted)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._write(), name="vagoth-registry-write")
        return await wanted.done

    def _give_up(self, wanted: _Wanted) -> bool:
        if wanted in self._queue:
            self._queue.remove(wanted)
            return True
        return False

    async def close(self) -> asyncio.CancelledError | None:
        """Wait until all that was begun is settled; return a cancellation, to be raised later."""
        return await settled(self._task) if self._task is not None else None

    async def _write(self) -> None:
        while self._queue:
            batch: list[_Wanted] = []
            outcomes: list[_Outcome]
            try:
                async with self._head.exclusively():
                    # Not before: whoever still waits here can be cancelled at once.
                    batch = [self._queue.popleft() for _ in range(min(len(self._queue), _AT_ONCE))]
                    outcomes = await self._write_together(batch)
            except BaseException as error:
                if not batch:
                    batch = list(self._queue)
                    self._queue.clear()
                outcomes = [self._given_up(error)] * len(batch)
                if not isinstance(error, Exception):
                    self._settle(batch, outcomes)
                    raise
            self._settle(batch, outcomes)
            # Those who just heard may want more, and another process may want its turn.
            await asyncio.sleep(0)

    async def _write_together(self, batch: Sequence[_Wanted]) -> list[_Outcome]:
        lines: list[Line] = []
        if sum(len(wanted.changes) for wanted in batch) > _ON_LOOP:
            # Nobody else writes meanwhile: the view that it reads stays as it is.
            decisions = await self._head.threads.run(self._decide, batch, lines)
        else:
            decisions = self._decide(batch, lines)
        marks = await self._append(lines) if lines else []
        written = zip(lines, marks, strict=True)
        outcomes: list[_Outcome] = []
        for decision in decisions:
            if isinstance(decision, VagothError):
                outcomes.append(decision)
            elif not decision:
                outcomes.append(None)
            else:
                line, mark = next(written)
                outcomes.append(self._head.advance(line, mark, decision))
        if lines:
            self._committed()
        return outcomes

    def _decide(
        self, batch: Sequence[_Wanted], lines: list[Line]
    ) -> list[tuple[RecordChange, ...] | VagothError]:
        """Decide each on top of those before it; add the lines of those that change something.

        None of them is told before all are durable: even a refusal may be due to one before it.
        """
        now = time.time()
        view = self._head.view
        ahead = Ahead(view) if len(batch) > 1 else None
        decisions: list[tuple[RecordChange, ...] | VagothError] = []
        for wanted in batch:
            seq = self._head.mark.seq + len(lines) + 1
            try:
                changes = rules.decide(
                    view if ahead is None else ahead,
                    wanted.changes,
                    expect=wanted.expect,
                    absent=wanted.absent,
                    revision=str(seq),
                    now=now,
                )
            except VagothError as error:
                decisions.append(error)
                continue
            decisions.append(changes)
            if changes:
                tx = wanted.transaction
                encoded = tuple(LineChange.of(change) for change in changes)
                lines.append(Line(seq, 0, tx.id, now, tx.source, tx.reason, encoded))
                if ahead is not None:
                    for change in changes:
                        ahead.apply(change)
        return decisions

    async def _append(self, lines: Sequence[Line]) -> list[Mark]:
        head = self._head
        if not head.store.is_attached:
            making = head.threads.start(head.store.establish, tuple(head.view), head.mark)
            await settled(making)
            head.mark = making.result()
        # It may be on disk from here on: then it must be published, even if the loop is ending.
        writing = head.threads.start(head.store.append, lines, head.mark)
        await settled(writing)
        return writing.result()

    @staticmethod
    def _settle(batch: Sequence[_Wanted], outcomes: Sequence[_Outcome]) -> None:
        for wanted, outcome in zip(batch, outcomes, strict=True):
            wanted.settle(outcome)

    def _given_up(self, error: BaseException) -> VagothError:
        if isinstance(error, VagothError):
            return error
        given_up = RegistryError(f"{self._head.store.path}: the commit was given up: {error!r}")
        given_up.__cause__ = error
        return given_up
