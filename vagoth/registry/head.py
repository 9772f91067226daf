"""Where a view stands in its store, and how it moves on."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager

from vagoth.errors import InvalidInput, RegistryError, WatchGap
from vagoth.model import Commit, RecordChange
from vagoth.registry.files import trouble
from vagoth.registry.garbage import no_garbage
from vagoth.registry.lines import Entry, Line, Mark
from vagoth.registry.store import Pruned, Store, apply
from vagoth.registry.threads import Threads, settled
from vagoth.view import View

log = logging.getLogger(__name__)

#: How often other processes' commits are looked for.
FOLLOW_S = 0.025
#: How long a commit waits for other processes' commits before it gives up.
LOCK_WAIT_S = 30.0
_PUBLISH_AT_ONCE = 100


class Head:
    """A store, the view of it, and the place in its journal that the view shows.

    View and ``mark`` always move together and on the event loop: whatever is cancelled, the view
    shows the commits up to the mark, and what comes after it is still to be read.
    """

    def __init__(
        self,
        store: Store,
        view: View,
        threads: Threads,
        *,
        publish: Callable[[Commit], None],
        end_watches: Callable[[BaseException | None], None],
    ) -> None:
        self.store = store
        self.view = view
        self.threads = threads
        self.mark = Mark()
        self.failure: RegistryError | None = None
        self._publish = publish
        self._end_watches = end_watches
        self._guard = asyncio.Lock()  # one of us at a time reads on, commits or folds

    def load(self) -> None:
        """Read the store into the view. Blocks."""
        with no_garbage():
            records, self.mark = self.store.load()
            while self.store.is_attached:
                try:
                    entries = self.store.read(self.mark, is_locked=False)
                except Pruned:
                    records, self.mark = self.store.load()
                    continue
                if not entries:
                    break
                apply(entries, records)
                self.mark = entries[-1].mark
            self.view.load(records.values())

    async def follow(self) -> None:
        """Publish other processes' commits as they come; end all watches if that cannot go on."""
        while True:
            await asyncio.sleep(FOLLOW_S)
            if self._guard.locked():
                continue  # whoever holds it reads on as well
            try:
                if self.store.has_news(self.mark):
                    await self.refresh()
            except Exception as error:
                self._fail(error)
                return

    async def refresh(self) -> None:
        """Publish all that was committed before the call."""
        async with self._guard:
            await self._catch_up(is_locked=False)

    @asynccontextmanager
    async def exclusively(self) -> AsyncIterator[None]:
        """Hold the store's lock, and have read all that is in the store.

        :raises RegistryError: others hold it for too long, or the store cannot be read or written
        """
        deadline = time.monotonic() + LOCK_WAIT_S
        pause_s = 0.0005
        while True:
            async with self._guard:
                if await self._has_lock():
                    try:
                        await self._catch_up(is_locked=True)
                        yield
                    finally:
                        self.store.lock.release()
                    return
            if time.monotonic() > deadline:
                raise self.store.lock.is_held_for(LOCK_WAIT_S)
            # Uneven steps: writers that wait in step would wake in step and starve one another.
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.5))
            pause_s = min(pause_s * 1.5, 0.01)

    def advance(self, line: Line, mark: Mark, changes: tuple[RecordChange, ...]) -> Commit:
        """Make a commit true in the view, and move the mark behind it."""
        self.mark = mark
        commit = self.commit_of(line, mark, changes)
        self._publish(commit)
        return commit

    def commit_of(self, line: Line, mark: Mark, changes: tuple[RecordChange, ...]) -> Commit:
        """The commit that a line tells of."""
        return Commit(
            position=self.store.position(mark),
            txid=line.txid,
            time=line.time,
            source=line.source,
            reason=line.reason,
            changes=changes,
        )

    def restored(self, entry: Entry) -> Commit:
        """The commit that an entry tells of, worked out from it alone."""
        changes = tuple(change.restored() for change in entry.line.changes)
        return self.commit_of(entry.line, entry.mark, changes)

    async def _has_lock(self) -> bool:
        try:
            return self.store.lock.try_exclusive()
        except FileNotFoundError as error:
            if self.store.id:
                # Do not make a new, empty directory where a store of ours went away.
                await self._catch_up(is_locked=False)
                raise trouble(error, "written", self.store.path) from error
            await self.threads.run(self.store.make_directory)
            return self.store.lock.try_exclusive()

    async def _catch_up(self, *, is_locked: bool) -> None:
        """Publish what others have committed since we looked. Needs the guard."""
        try:
            if not self.store.has_news(self.mark):
                return
            if not self.store.is_attached:
                await self._attach()
            while self.store.is_attached:
                try:
                    entries = await self.threads.run(self.store.read, self.mark, is_locked)
                except Pruned as error:
                    await self._attach(str(error))
                    continue
                if not entries:
                    return
                for number, entry in enumerate(entries, 1):
                    self.advance(entry.line, entry.mark, tuple(self._changes_of(entry)))
                    if number % _PUBLISH_AT_ONCE == 0:
                        await asyncio.sleep(0)
        except (RegistryError, InvalidInput) as error:
            raise self._fail(error) from error

    async def _attach(self, gap: str = "") -> None:
        """Look for a store where there was none, or none with a journal; or for one pruned.

        :param gap: why commits were missed, if they were
        """
        is_empty = not self.store.id and not len(self.view)
        loading = self.threads.start(self.store.load, is_empty)
        # What was read counts even if we are cancelled: the store is another one from now on.
        cancelled = await settled(loading)
        records, self.mark = loading.result()
        if gap or records != {record.id: record for record in self.view}:
            self.view.load(records.values())
            gap = gap or f"{self.store.path} was changed as a whole"
            self._end_watches(WatchGap(gap, cure="watch anew"))
        if cancelled is not None:
            raise cancelled

    def _changes_of(self, entry: Entry) -> Iterator[RecordChange]:
        for change in entry.line.changes:
            before = self.view.get(change.id)
            if (before.revision if before else None) != change.revision_before:
                raise RegistryError(
                    f"commit {entry.line.seq} of {self.store.path} does not follow from what was"
                    f" read: {before.name if before else change.id} was another",
                    cure="open the store anew",
                )
            yield RecordChange(before, change.after)

    def _fail(self, error: Exception) -> RegistryError:
        """From now on nothing can be trusted to be up to date: say so, once, to everybody."""
        if self.failure is None:
            self.failure = (
                error
                if isinstance(error, RegistryError)
                else RegistryError(f"{self.store.path} cannot be followed: {error}")
            )
            log.error("%s", self.failure)
            self._end_watches(self.failure)
        return RegistryError(self.failure.message, cure=self.failure.cure)
