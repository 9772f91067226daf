"""The registry contract: commits in, a view and a stream of commits out.

A registry keeps records in a file, a server or memory. What it promises is the same:

* ``commit`` is atomic and durable when it returns, and is compared record by record.
* ``view`` then holds it and all commits before it; other processes' commits arrive by
  themselves, and always before our own next commit is decided.
* ``watch`` hands over each commit once, in order, and never skips: it raises
  :class:`~vagoth.errors.WatchGap` rather than leave one out.
* ``lock`` is exclusive across processes and dies with its holder.

``tests/registry/conformance.py`` shows all of it for any implementation.
"""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Self

from vagoth.errors import NodeNotFound, StaleRevision, WatchGap
from vagoth.model import Change, Commit, Holder, Put, Record
from vagoth.view import View

log = logging.getLogger(__name__)

#: A watcher that has not taken this many commits gets a WatchGap instead of the next one.
WATCH_BACKLOG = 10_000
_UPDATE_TRIES = 50


class Watch(AsyncIterator[Commit]):
    """Commits in order, from the moment it was made on. Close it, or use ``async with``.

    ``past`` gives commits that came before that, after a position; an iteration reads them
    as it goes.
    """

    def __init__(
        self,
        closed: Callable[[Watch], None],
        *,
        past: Callable[[str], Awaitable[Sequence[Commit]]] | None = None,
        since: str = "",
    ) -> None:
        self._waiting: deque[Commit] = deque()
        self._arrived = asyncio.Event()
        self._closed = closed
        self._end: BaseException | None = None
        self._past = past
        self._since = since
        self._read: deque[Commit] = deque()

    def feed(self, commit: Commit) -> None:
        """Hand over one commit. For registries only."""
        if self._end is not None:
            return
        if len(self._waiting) >= WATCH_BACKLOG:
            self.end(WatchGap(f"a watcher fell {WATCH_BACKLOG} commits behind", cure="watch anew"))
            return
        self._waiting.append(commit)
        self._arrived.set()

    def end(self, reason: BaseException | None = None) -> None:
        """End the stream after what is already waiting: with ``reason``, or quietly."""
        if self._end is None:
            self._end = reason if reason is not None else StopAsyncIteration()
        self._arrived.set()

    async def __anext__(self) -> Commit:
        while self._past is not None and not self._read:
            # Cancelled here, nothing is lost: it is read again from the same position.
            commits = await self._past(self._since)
            if commits:
                self._since = commits[-1].position
                self._read.extend(commits)
            else:
                self._past = None
        if self._read:
            return self._read.popleft()
        while not self._waiting:
            if self._end is not None:
                raise self._end
            self._arrived.clear()
            await self._arrived.wait()
        return self._waiting.popleft()

    def close(self) -> None:
        """Stop receiving."""
        self.end()
        self._closed(self)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        self.close()


class Registry(ABC):
    """Keeps records. Open it with ``async with``, on the event loop that will use it."""

    #: The most changes, and bytes of encoded changes, that one atomic commit may hold. A larger
    #: one is refused with InvalidInput; writers in bulk split what need not be atomic.
    max_changes: int = 128
    max_bytes: int = 1_500_000

    def __init__(self) -> None:
        self.view = View()
        self._watches: list[Watch] = []
        self._listeners: list[Callable[[Commit], None]] = []

    @abstractmethod
    async def open(self) -> None:
        """Read what is kept, fill the view and begin to follow other processes' commits.

        Opening changes nothing: a registry that is not there yet is empty, and is made by the
        first commit.

        :raises InvalidInput: what is found is not a registry of ours
        :raises RegistryError: it cannot be read, or is damaged
        """

    @abstractmethod
    async def close(self) -> None:
        """Finish what was begun, end all watches and let go of everything. May be repeated."""

    @property
    @abstractmethod
    def position(self) -> str:
        """Where the view stands in the stream of commits: opaque, for ``watch(since=…)``."""

    @property
    @abstractmethod
    def location(self) -> str:
        """Where the registry is kept, for people to read."""

    @abstractmethod
    async def commit(
        self,
        changes: Sequence[Change],
        *,
        expect: Mapping[str, str | None],
        absent: Collection[str] = (),
    ) -> Commit | None:
        """Make all changes, or none. Durable, and in the view, when it returns.

        txid, source and reason come from :mod:`vagoth.transaction`. The rules are those of
        :func:`vagoth.registry.rules.decide`, applied to the newest records there are.

        :param expect: the revision at which each record was read; ``None``: there was no such
            record. Each record that is changed or deleted must stand in it, others may.
        :param absent: keys that nobody may hold
        :return: the commit, or nothing where nothing would have changed
        :raises StaleRevision: a record is no longer at its revision; decide anew
        :raises Taken: an id, name or key has another owner
        :raises InvalidInput: a change is malformed, or there are too many for one commit
        :raises RegistryError: it could not be written, and is not there
        :raises asyncio.CancelledError: as soon as its outcome is settled: nobody is told of a
            commit that then happens after all
        """

    @abstractmethod
    async def refresh(self) -> None:
        """Catch up: the view then holds all that any process had committed before the call.

        For decisions that are not made by a commit alone, such as those under a node lock,
        whose last holder's commits may not have arrived by themselves yet.

        :raises RegistryError: it could not be read
        """

    def watch(self, since: str | None = None) -> Watch:
        """Every commit from now on, or from ``since`` (a position) on; subscribed at once.

        :raises WatchGap: what followed ``since`` is no longer kept, or the watcher fell behind;
            raised by the iteration
        """
        if since is None:
            watch = Watch(self._forget)
        else:
            until = self.position  # what comes later is fed to the watch

            async def past(position: str) -> Sequence[Commit]:
                return await self._commits_after(position, until)

            watch = Watch(self._forget, past=past, since=since)
        self._watches.append(watch)
        return watch

    def listen(self, listener: Callable[[Commit], None]) -> Callable[[], None]:
        """Call ``listener`` with each commit, once it is in the view; returns what stops that.

        It is called on the event loop and must not wait. An error in it is logged.
        """
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    @abstractmethod
    async def _commits_after(self, position: str, until: str) -> Sequence[Commit]:
        """The first commits after ``position``, as many as are convenient; none after ``until``.

        :raises WatchGap: they are not all kept, or ``position`` is not one of this registry
        """

    @abstractmethod
    def history(
        self,
        *,
        node_id: str | None = None,
        txid: str | None = None,
        since: float | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[Commit]:
        """Past commits, newest first, that meet every condition given.

        :param since: seconds since the epoch
        """

    @abstractmethod
    def lock(self, node_id: str, *, wait_s: float = 0.0) -> AbstractAsyncContextManager[Holder]:
        """The node's lock, exclusive across processes and within this one; dies with the process.

        :param wait_s: how long to wait for another holder to let go
        :raises Busy: it is held; the error names the holder, its txid and since when
        """

    @abstractmethod
    async def holder(self, node_id: str) -> Holder | None:
        """Who holds the node's lock, if anybody does."""

    async def update(self, node_id: str, change: Callable[[Record], Record]) -> Record:
        """Change one record by a function of what it is now, however many others write it.

        :param change: called anew with the newest record whenever another writer came first
        :return: the record as committed
        :raises NodeNotFound: there is no such record, or no longer
        """
        for _ in range(_UPDATE_TRIES):
            before = self.view.get(node_id)
            if before is None:
                raise NodeNotFound(node_id)
            try:
                await self.commit([Put(change(before))], expect={node_id: before.revision})
            except StaleRevision:
                continue
            after = self.view.get(node_id)
            if after is None:
                raise NodeNotFound(node_id)
            return after
        raise StaleRevision(f"{node_id} is changed by others faster than it can be read")

    def _forget(self, watch: Watch) -> None:
        if watch in self._watches:
            self._watches.remove(watch)

    def _publish(self, commit: Commit) -> None:
        """Make a commit true in the view, and hand it to everybody who watches."""
        for change in commit.changes:
            self.view.apply(change)
        for listener in tuple(self._listeners):
            try:
                listener(commit)
            except Exception:
                log.exception("a listener failed on commit %s", commit.txid)
        for watch in tuple(self._watches):
            watch.feed(commit)

    def _end_watches(self, reason: BaseException | None = None) -> None:
        for watch in tuple(self._watches):
            watch.end(reason)
        self._watches.clear()

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()
