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
import gc
import logging
import math
import random
import time
from collections import deque
from collections.abc import (
    AsyncIterator,
    Callable,
    Collection,
    Iterator,
    Mapping,
    Sequence,
)
from concurrent.futures import ThreadPoolExecutor
from contextlib import (
    AbstractAsyncContextManager,
    asynccontextmanager,
    contextmanager,
    suppress,
)
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from vagoth import transaction
from vagoth.errors import InvalidInput, RegistryError, VagothError, WatchGap
from vagoth.model import Change, Commit, Holder, Put, Record, RecordChange, new_txid
from vagoth.registry import rules
from vagoth.registry.ahead import Ahead
from vagoth.registry.base import Registry
from vagoth.registry.files import trouble
from vagoth.registry.journal import Entry, Line, LineChange, Mark
from vagoth.registry.locks import NodeLocks
from vagoth.registry.store import Store, apply

log = logging.getLogger(__name__)

#: How often other processes' commits are looked for.
FOLLOW_S = 0.025
#: How long a commit waits for other processes' commits before it gives up.
LOCK_WAIT_S = 30.0
#: How long after the last commit the journal is folded, and how long at most after the first.
FOLD_AFTER_S = 0.5
FOLD_WITHIN_S = 30.0
_FOLD_AGAIN_S = 0.05
_FOLD_PATIENCE_S = 10.0
_COMMITS_AT_ONCE = 100
_PUBLISH_AT_ONCE = 100
_CHANGES_ON_LOOP = 100

_Outcome = Commit | VagothError | None
T = TypeVar("T")


class _Wanted:
    """A commit that somebody waits for."""

    def __init__(
        self, changes: Sequence[Change], expect: Mapping[str, str | None], absent: Collection[str]
    ) -> None:
        self.changes = changes
        self.expect = expect
        self.absent = absent
        self.transaction = transaction.current() or transaction.Transaction(
            new_txid(), transaction.user_name(), ""
        )
        self.done: asyncio.Future[Commit | None] = asyncio.get_running_loop().create_future()

    def settle(self, outcome: _Outcome) -> None:
        if isinstance(outcome, VagothError):
            self.done.set_exception(outcome)
            self.done.exception()  # seen, even if nobody waits any more
        else:
            self.done.set_result(outcome)


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
        self._store = Store(self.path)
        self._locks = NodeLocks(self.path.with_name(f"{self.path.name}.locks"))
        self._mark = Mark()
        self._guard = asyncio.Lock()  # one of us at a time reads on, commits or folds
        self._queue: deque[_Wanted] = deque()
        self._writer: asyncio.Task[None] | None = None
        self._follower: asyncio.Task[None] | None = None
        self._folder: asyncio.Task[None] | None = None
        self._own_seq = 0  # our last commit; a process without one folds nothing
        self._folded_seq = 0
        self._last_commit = 0.0
        self._failure: RegistryError | None = None
        self._is_open = False

    @property
    def position(self) -> str:
        """Where the view stands: the store, the commit's number, and its byte in the journal."""
        return self._store.position(self._mark)

    @property
    def location(self) -> str:
        """The path of the file."""
        return str(self.path)

    async def open(self) -> None:
        """Read the store, and follow it from there on. Changes no byte."""
        self._threads = ThreadPoolExecutor(1, "vagoth-registry")
        self._slow_threads = ThreadPoolExecutor(1, "vagoth-registry-slow")
        try:
            await self._run(self._load)
        except BaseException:
            self._store.close()
            self._threads.shutdown(wait=False)
            self._slow_threads.shutdown(wait=False)
            raise
        self._failure = None
        self._is_open = True
        self._follower = asyncio.create_task(self._follow(), name="vagoth-registry-follow")

    async def close(self) -> None:
        """Wait for commits that were begun, fold them into ``store.json``, and let go of all."""
        if not self._is_open:
            return
        self._is_open = False
        for task in (self._follower, self._folder):
            if task is not None:
                task.cancel()
                await _settled(task)
        if self._writer is not None:
            await _settled(self._writer)
        try:
            await self._fold_at_last()
        finally:
            self._end_watches(self._failure)
            self._threads.shutdown()
            self._slow_threads.shutdown()
            self._store.close()

    async def refresh(self) -> None:
        """Catch up with all that any process had committed before the call."""
        self._check_usable()
        async with self._guard:
            await self._catch_up(is_locked=False)

    # --- commits ------------------------------------------------------------------------

    async def commit(
        self,
        changes: Sequence[Change],
        *,
        expect: Mapping[str, str | None],
        absent: Collection[str] = (),
    ) -> Commit | None:
        """Make all changes, or none; see :meth:`vagoth.registry.base.Registry.commit`.

        Commits that wait at the same time share one write, in the order in which they came.
        """
        self._check_usable()
        if len(changes) > self.max_changes:
            raise InvalidInput(
                "changes", len(changes), f"at most {self.max_changes} changes in one commit"
            )
        prepare = self._prepared
        if len(changes) > _CHANGES_ON_LOOP:
            owned = await asyncio.get_running_loop().run_in_executor(
                self._slow_threads, prepare, tuple(changes)
            )
            self._check_usable()
        else:
            owned = prepare(changes)
        wanted = _Wanted(owned, dict(expect), tuple(absent))
        self._queue.append(wanted)
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write(), name="vagoth-registry-write")
        try:
            await asyncio.wait({wanted.done})
        except asyncio.CancelledError:
            if wanted in self._queue:
                self._queue.remove(wanted)
            else:
                await _settled(wanted.done)
            raise
        return wanted.done.result()

    def _prepared(self, changes: Sequence[Change]) -> list[Change]:
        """The changes as they will be read back: nothing in them is the caller's any more."""
        owned: list[Change] = []
        size = 0
        for change in changes:
            if not isinstance(change, Put):
                owned.append(change)
                continue
            data = _encoded(change.record)
            size += len(data)
            if size > self.max_bytes:
                raise InvalidInput("changes", size, f"at most {self.max_bytes} bytes in one commit")
            owned.append(Put(_decoded(data, change.record)))
        return owned

    async def _write(self) -> None:
        """Commit what is queued until nothing is."""
        while self._queue:
            batch: list[_Wanted] = []
            outcomes: list[_Outcome]
            try:
                async with self._guard, self._store_locked():
                    # Not before: whoever still waits here can be cancelled at once.
                    count = min(len(self._queue), _COMMITS_AT_ONCE)
                    batch = [self._queue.popleft() for _ in range(count)]
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

    @staticmethod
    def _settle(batch: Sequence[_Wanted], outcomes: Sequence[_Outcome]) -> None:
        for wanted, outcome in zip(batch, outcomes, strict=True):
            wanted.settle(outcome)

    def _given_up(self, error: BaseException) -> VagothError:
        if isinstance(error, VagothError):
            return error
        given_up = RegistryError(f"{self.path}: the commit was given up: {error!r}")
        given_up.__cause__ = error
        return given_up

    @asynccontextmanager
    async def _store_locked(self) -> AsyncIterator[None]:
        """Hold the store's lock, and have read all that is in the store. Needs the guard."""
        deadline = time.monotonic() + LOCK_WAIT_S
        pause_s = 0.0005
        while not await self._has_lock():
            if time.monotonic() > deadline:
                raise self._store.lock.is_held_for(LOCK_WAIT_S)
            # Uneven steps: writers that wait in step would wake in step and starve one another.
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.5))
            pause_s = min(pause_s * 1.5, 0.01)
            await self._catch_up(is_locked=False)
        try:
            await self._catch_up(is_locked=True)
            yield
        finally:
            self._store.lock.release()

    async def _has_lock(self) -> bool:
        try:
            return self._store.lock.try_exclusive()
        except FileNotFoundError as error:
            if self._store.id:
                # Do not make a new, empty directory where a store of ours went away.
                await self._catch_up(is_locked=False)
                raise trouble(error, "written", self.path) from error
            await self._run(self._store.make_directory)
            return self._store.lock.try_exclusive()

    async def _write_together(self, batch: Sequence[_Wanted]) -> list[_Outcome]:
        """Decide each commit on top of those before it, and write all with one sync."""
        now = time.time()
        ahead = Ahead(self.view)
        outcomes: list[tuple[RecordChange, ...] | VagothError] = []
        lines: list[Line] = []
        for wanted in batch:
            seq = self._mark.seq + len(lines) + 1
            try:
                changes = rules.decide(
                    ahead,
                    wanted.changes,
                    expect=wanted.expect,
                    absent=wanted.absent,
                    revision=str(seq),
                    now=now,
                )
            except VagothError as error:
                outcomes.append(error)
                continue
            outcomes.append(changes)
            if changes:
                tx = wanted.transaction
                encoded = tuple(LineChange.of(change) for change in changes)
                lines.append(Line(seq, 0, tx.id, now, tx.source, tx.reason, encoded))
                for change in changes:
                    ahead.apply(change)
        if not lines:
            return [None if isinstance(outcome, tuple) else outcome for outcome in outcomes]
        commits = zip(lines, await self._append(lines), strict=True)
        results: list[_Outcome] = []
        for outcome in outcomes:
            if not isinstance(outcome, tuple):
                results.append(outcome)
            elif not outcome:
                results.append(None)
            else:
                line, mark = next(commits)
                results.append(self._advance(line, mark, outcome))
        self._want_folding()
        return results

    async def _append(self, lines: Sequence[Line]) -> list[Mark]:
        loop = asyncio.get_running_loop()
        if not self._store.is_attached:
            records = tuple(self.view)
            self._mark = await self._run(lambda: self._store.establish(records, self._mark))
        # From here on it may be on disk: it must be published even if the loop is ending.
        written = loop.run_in_executor(self._threads, self._store.append, lines, self._mark)
        await _settled(written)
        return written.result()

    def _advance(self, line: Line, mark: Mark, changes: tuple[RecordChange, ...]) -> Commit:
        """Make a commit true in the view, and the view's place in the journal with it."""
        self._mark = mark
        commit = self._commit_of(line, mark, changes)
        self._publish(commit)
        return commit

    def _commit_of(self, line: Line, mark: Mark, changes: tuple[RecordChange, ...]) -> Commit:
        return Commit(
            position=self._store.position(mark),
            txid=line.txid,
            time=line.time,
            source=line.source,
            reason=line.reason,
            changes=changes,
        )

    # --- other processes ----------------------------------------------------------------

    def _load(self) -> None:
        with _no_garbage():
            records, self._mark = self._store.load()
            while self._store.is_attached:
                entries = self._store.read(self._mark, is_locked=False)
                if not entries:
                    break
                apply(entries, records)
                self._mark = entries[-1].mark
            self.view.load(records.values())

    async def _follow(self) -> None:
        """Publish other processes' commits as they come; end all watches if that cannot go on."""
        while True:
            await asyncio.sleep(FOLLOW_S)
            if self._guard.locked():
                continue  # whoever holds it reads on as well
            try:
                if self._store.has_news():
                    async with self._guard:
                        await self._catch_up(is_locked=False)
            except Exception as error:
                self._fail(error)
                return

    async def _catch_up(self, *, is_locked: bool) -> None:
        """Publish what others have committed since we looked. Needs the guard."""
        try:
            if not self._store.has_news():
                return
            if not self._store.is_attached:
                await self._attach()
            while self._store.is_attached:
                entries = await self._run(lambda: self._store.read(self._mark, is_locked=is_locked))
                if not entries:
                    return
                for number, entry in enumerate(entries, 1):
                    self._advance(entry.line, entry.mark, tuple(self._changes_of(entry)))
                    if number % _PUBLISH_AT_ONCE == 0:
                        await asyncio.sleep(0)
        except (RegistryError, InvalidInput) as error:
            self._fail(error)
            raise self._failure or error from error

    def _changes_of(self, entry: Entry) -> Iterator[RecordChange]:
        for change in entry.line.changes:
            record = change.after or change.gone
            assert record is not None
            before = self.view.get(record.id)
            if change.after is None:
                expected: str | None = record.revision
            else:
                expected = str(change.was.get("revision", "")) if change.was is not None else None
            if (before.revision if before else None) != expected:
                raise RegistryError(
                    f"commit {entry.line.seq} of {self.path} does not follow from what was read:"
                    f" {record.name} was another",
                    cure="open the store anew",
                )
            yield RecordChange(before, change.after)

    async def _attach(self) -> None:
        """Look for a store where there was none, or none with a journal."""
        is_empty = not self._store.id and not len(self.view)
        records, mark = await self._run(lambda: self._store.load(from_start=is_empty))
        known = {record.id: record for record in self.view}
        self._mark = mark
        if records != known:
            self.view.load(records.values())
            self._end_watches(WatchGap(f"{self.path} was changed as a whole", cure="watch anew"))

    def _fail(self, error: Exception) -> None:
        if self._failure is None:
            if isinstance(error, RegistryError):
                self._failure = error
            else:
                self._failure = RegistryError(f"{self.path} cannot be followed: {error}")
                self._failure.__cause__ = error
            log.error("%s", self._failure)
            self._end_watches(self._failure)

    # --- folding ------------------------------------------------------------------------

    def _want_folding(self) -> None:
        self._last_commit = time.monotonic()
        self._own_seq = self._mark.seq
        if self._is_open and (self._folder is None or self._folder.done()):
            self._folder = asyncio.create_task(self._fold_when_quiet(), name="vagoth-registry-fold")

    async def _fold_when_quiet(self) -> None:
        """Fold our commits when there were none for a while, or have been for too long."""
        latest = time.monotonic() + FOLD_WITHIN_S
        while self._folded_seq < self._own_seq:
            rest = min(self._last_commit + FOLD_AFTER_S, latest) - time.monotonic()
            if rest > 0:
                await asyncio.sleep(rest)
                continue
            try:
                if not await self._fold():
                    await asyncio.sleep(_FOLD_AGAIN_S)
            except RegistryError as error:
                # The commits are safe in the journal; only the readable file is behind.
                log.warning("not folded: %s", error)
                return
            latest = time.monotonic() + FOLD_WITHIN_S

    async def _fold(self) -> bool:
        """Write ``store.json``; whether it now holds all that the view held."""
        mark = self._mark
        if not await self._run(self._store.is_folded, mark.seq):
            records = tuple(self.view)
            if not await self._run_slowly(self._store.stage, records, mark):
                return False
            async with self._guard, self._store_locked():
                await self._run(self._store.fold, mark)
        self._folded_seq = mark.seq
        return True

    async def _fold_at_last(self) -> None:
        if self._failure is not None or not self._own_seq:
            return
        deadline = time.monotonic() + _FOLD_PATIENCE_S
        try:
            while not await self._fold():
                if time.monotonic() > deadline:
                    raise RegistryError(f"another process keeps writing {self.path}")
                await asyncio.sleep(_FOLD_AGAIN_S)
        except RegistryError as error:
            log.warning("not folded: %s", error)

    # --- the past -----------------------------------------------------------------------

    async def _commits_after(self, position: str, until: str) -> Sequence[Commit]:
        self._check_usable()
        return await self._run_slowly(lambda: self._past(position, until))

    def _past(self, position: str, until: str) -> list[Commit]:
        entries = self._store.past(position, until)
        return [self._restored(entry) for entry in entries]

    def _restored(self, entry: Entry) -> Commit:
        changes = tuple(change.restored() for change in entry.line.changes)
        return self._commit_of(entry.line, entry.mark, changes)

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
                and (node_id is None or node_id in map(_id_of, line.changes))
            )

        def page(mark: Mark) -> tuple[list[Commit], Mark]:
            entries, rest = self._store.page_back(mark)
            return [self._restored(entry) for entry in entries if is_wanted(entry.line)], rest

        self._check_open()
        mark = self._mark
        left = math.inf if limit is None else limit
        while left > 0 and mark.end:
            here = mark
            commits, mark = await self._run_slowly(lambda here=here: page(here))
            for commit in commits:
                if left <= 0:
                    return
                left -= 1
                yield commit

    # --- node locks -----------------------------------------------------------------------

    def lock(self, node_id: str, *, wait_s: float = 0.0) -> AbstractAsyncContextManager[Holder]:
        """The node's lock; see :meth:`vagoth.registry.base.Registry.lock`."""
        self._check_open()
        name = self.view.name_of(node_id) or node_id
        return self._locks.lock(node_id, name, wait_s=wait_s)

    async def holder(self, node_id: str) -> Holder | None:
        """Who holds the node's lock, if anybody does."""
        return await self._locks.holder(node_id)

    # --- threads --------------------------------------------------------------------------

    def _check_open(self) -> None:
        if not self._is_open:
            raise RegistryError(f"{self.path} is not open")

    def _check_usable(self) -> None:
        self._check_open()
        if self._failure is not None:
            raise RegistryError(self._failure.message, cure=self._failure.cure)

    async def _run(self, call: Callable[..., T], *args: Any) -> T:
        """Run it on the thread for commits, to its end even if we are cancelled meanwhile."""
        return await _to_its_end(self._threads, call, *args)

    async def _run_slowly(self, call: Callable[..., T], *args: Any) -> T:
        """The same on a thread of its own, so that no commit waits for it."""
        return await _to_its_end(self._slow_threads, call, *args)


@contextmanager
def _no_garbage() -> Iterator[None]:
    """Hold off the search for cycles: records have none, and looking for them takes three times
    as long as reading them."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


async def _to_its_end(threads: ThreadPoolExecutor, call: Callable[..., T], *args: Any) -> T:
    future = asyncio.get_running_loop().run_in_executor(threads, call, *args)
    try:
        await asyncio.wait({future})
    except asyncio.CancelledError:
        # A thread cannot be stopped: what it does would go on behind the back of whoever comes
        # next, with the lock released.
        await _settled(future)
        with suppress(BaseException):
            future.result()
        raise
    return future.result()


async def _settled(future: asyncio.Future[Any]) -> None:
    """Wait until it is done, however often we are cancelled meanwhile."""
    while not future.done():
        with suppress(asyncio.CancelledError):
            await asyncio.wait({future})


def _id_of(change: LineChange) -> str:
    record = change.after or change.gone
    return record.id if record is not None else ""


def _encoded(record: Record) -> bytes:
    """The record as JSON.

    :raises InvalidInput: something in it has no JSON
    """
    try:
        for field in ("definition", "metadata"):
            for path, value in _floats(field, getattr(record, field)):
                if not math.isfinite(value):
                    raise InvalidInput(path, value, "a finite number")
        return msgspec.json.encode(record)
    except InvalidInput:
        raise
    except (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError) as error:
        raise InvalidInput(
            "record",
            record.name,
            "plain data",
            message=f"{record.name}: cannot be stored: {error}",
            cure="use only text, numbers, true, false, null, lists and mappings",
        ) from error


def _decoded(data: bytes, given: Record) -> Record:
    try:
        return msgspec.json.decode(data, type=Record)
    except msgspec.DecodeError as error:
        raise InvalidInput(
            "record", given.name, "a record", message=f"{given.name}: {error}"
        ) from error


def _floats(path: str, value: Any) -> Iterator[tuple[str, float]]:
    if isinstance(value, float):
        yield path, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(item, str):
                yield from _floats(f"{path}.{key}", item)
    elif isinstance(value, list | tuple | set | frozenset):
        for number, item in enumerate(value):
            if not isinstance(item, str):
                yield from _floats(f"{path}[{number}]", item)
