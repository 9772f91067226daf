"""A registry in a TinyDB file, for any number of processes on one machine.

Four things lie side by side::

    store.json           all records, for TinyDB and for reading by hand; mode 0600
    store.json.journal   every commit, one a line; what counts, and the history
    store.json.lock      the lock between writers
    store.json.locks/    a lock for each node that is being worked on

A commit is made when its line is appended to the journal and synced. ``store.json`` is written
anew from time to time (*folding*), by processes that commit: half a second after their last
commit, and when they close. Processes that only read change no byte. Keep the files together;
``store.json`` alone, taken when all processes have closed it, is a whole copy without history.

Other processes' commits are noticed by looking at the files' sizes every 25 ms, which costs a
few microseconds. The files must be on a file system with ``flock``, so on a local disk.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from vagoth.errors import InvalidInput, RegistryError
from vagoth.model import Change, Commit, Holder
from vagoth.registry import garbage
from vagoth.registry.base import Registry
from vagoth.registry.folder import Folder
from vagoth.registry.head import Head
from vagoth.registry.lines import Line, Mark
from vagoth.registry.locks import NodeLocks
from vagoth.registry.prepare import prepared
from vagoth.registry.store import Pruning, Store
from vagoth.registry.threads import Threads, settled
from vagoth.registry.upkeep import StoreInfo, Upkeep
from vagoth.registry.writer import Writer

_CHANGES_ON_LOOP = 100


class TinyDBRegistry(Registry):
    """A registry kept in a TinyDB file. See :class:`~vagoth.registry.base.Registry`.

    :param path: the file, ``store.json``; it need not exist, nor its directory
    :param state_dir: where callers keep what belongs to the store and is not part of it; the
        registry itself puts nothing there. Default: a directory beside the file
    """

    max_changes = 10_000
    max_bytes = 64 << 20

    def __init__(self, path: Path, *, state_dir: Path | None = None) -> None:
        super().__init__()
        # Through symbolic links: renaming over one would part it from the file that it names.
        self.path = Path(path).expanduser().resolve()
        self.state_dir = state_dir or self.path.with_name(f"{self.path.name}.state")
        self._locks = NodeLocks(self.path.with_name(f"{self.path.name}.locks"))
        self._begin()
        self._is_open = False

    def _begin(self) -> None:
        self._store = Store(self.path)
        self._threads = Threads("vagoth-registry")
        self._head = Head(
            self._store,
            self.view,
            self._threads,
            publish=self._publish,
            end_watches=self._end_watches,
        )
        self._folder = Folder(self._head)
        self._writer = Writer(self._head, self._folder.committed)
        self._upkeep = Upkeep(self._head, self._folder, self._locks)

    @property
    def position(self) -> str:
        """Where the view stands: the store, the commit's number, and its byte in the journal."""
        return self._store.position(self._head.mark)

    @property
    def location(self) -> str:
        """The path of the file."""
        return str(self.path)

    async def open(self) -> None:
        """Read the store, and follow it from there on. Changes no byte."""
        self._begin()
        try:
            await self._threads.run(self._head.load)
        except BaseException:
            self._store.close()
            self._threads.close()
            raise
        self._is_open = True
        self._is_at_rest = garbage.rest(len(self.view))
        self._follower = asyncio.create_task(self._head.follow(), name="vagoth-registry-follow")

    async def close(self) -> None:
        """Wait for commits that were begun, fold them into ``store.json``, and let go of all."""
        if not self._is_open:
            return
        self._is_open = False
        self._follower.cancel()
        try:
            interrupted = [
                await settled(self._follower),
                await self._folder.stop(),
                await self._writer.close(),
            ]
            await self._folder.close()
        finally:
            self._end_watches(self._head.failure)
            self._threads.close()
            self._store.close()
            if self._is_at_rest:
                garbage.wake()
        for cancelled in filter(None, interrupted):
            raise cancelled

    async def refresh(self) -> None:
        """Catch up with all that any process had committed before the call."""
        self._check_usable()
        await self._head.refresh()

    async def commit(
        self,
        changes: Sequence[Change],
        *,
        expect: Mapping[str, str | None],
        absent: Collection[str] = (),
    ) -> Commit | None:
        """Make all changes, or none; see :meth:`vagoth.registry.base.Registry.commit`.

        Commits that wait at the same time share one write, in the order in which they came.

        :raises OutcomeUnknown: the disk failed while it was written, and again when it was to be
            taken back
        """
        self._check_usable()
        if len(changes) > self.max_changes:
            raise InvalidInput(
                "changes", len(changes), f"at most {self.max_changes} changes in one commit"
            )
        expect, absent = dict(expect), tuple(absent)
        if len(changes) > _CHANGES_ON_LOOP:
            given = tuple(changes)
            owned = await self._threads.run_slowly(
                lambda: prepared(given, max_bytes=self.max_bytes)
            )
            self._check_usable()
        else:
            owned = prepared(changes, max_bytes=self.max_bytes)
        return await self._writer.commit(owned, expect, absent)

    async def compact(self) -> None:
        """Have ``store.json`` hold all records; see :meth:`Upkeep.compact`."""
        self._check_usable()
        await self._upkeep.compact()

    async def prune(self, older_than: float, *, dry_run: bool = False) -> Pruning:
        """Forget history; see :meth:`Upkeep.prune`. :param dry_run: only tell how much it is."""
        self._check_usable()
        if dry_run:
            return await self._upkeep.prunable(older_than)
        return await self._upkeep.prune(older_than)

    async def info(self) -> StoreInfo:
        """How the store is; see :class:`StoreInfo`."""
        self._check_usable()
        return await self._upkeep.info()

    async def _commits_after(self, position: str, until: str) -> Sequence[Commit]:
        self._check_usable()
        return await self._threads.run_slowly(self._past, position, until)

    def _past(self, position: str, until: str) -> list[Commit]:
        return [self._head.restored(entry) for entry in self._store.past(position, until)]

    async def history(
        self,
        *,
        node_id: str | None = None,
        txid: str | None = None,
        since: float | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[Commit]:
        """Past commits, newest first, that meet every condition given.

        The journal is read as it is asked for. Its order is the order of the commits, whatever
        the clock said.
        """

        def is_wanted(line: Line) -> bool:
            return (
                (txid is None or line.txid == txid)
                and (since is None or line.time >= since)
                and (node_id is None or any(change.id == node_id for change in line.changes))
            )

        def page(mark: Mark) -> tuple[list[Commit], Mark]:
            entries, rest = self._store.page_back(mark)
            return [self._head.restored(entry) for entry in entries if is_wanted(entry.line)], rest

        self._check_open()
        mark = self._head.mark
        left = math.inf if limit is None else limit
        while left > 0 and mark.end:
            self._check_open()
            commits, mark = await self._threads.run_slowly(page, mark)
            for commit in commits:
                if left <= 0:
                    return
                left -= 1
                yield commit

    def lock(self, node_id: str, *, wait_s: float = 0.0) -> AbstractAsyncContextManager[Holder]:
        """The node's lock; see :meth:`vagoth.registry.base.Registry.lock`."""
        self._check_open()
        name = self.view.name_of(node_id) or node_id
        return self._locks.lock(node_id, name, wait_s=wait_s)

    async def holder(self, node_id: str) -> Holder | None:
        """Who holds the node's lock, if anybody does."""
        return await self._locks.holder(node_id)

    def _check_open(self) -> None:
        if not self._is_open:
            raise RegistryError(f"{self.path} is not open")

    def _check_usable(self) -> None:
        self._check_open()
        failure = self._head.failure
        if failure is not None:
            raise RegistryError(failure.message, cure=failure.cure)
