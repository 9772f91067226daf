"""A store's files together: ``store.json``, its journal and the lock between its writers.

Everything here blocks, and belongs on a worker thread unless it says otherwise. Only one thread
at a time may use a :class:`Store`; :meth:`Store.past` and :meth:`Store.page_back` excepted.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import msgspec

from vagoth.errors import InvalidInput, RegistryError, WatchGap
from vagoth.model import Record
from vagoth.registry.files import make_directory, trouble
from vagoth.registry.journal import Journal
from vagoth.registry.lines import Entry, Line, Mark, seal, sum_of
from vagoth.registry.locks import StoreLock
from vagoth.registry.storefile import (
    FORMAT,
    Content,
    Folded,
    Meta,
    Stamp,
    StoreFile,
    records_in,
    stamp,
    stamp_of,
)

_ENTRIES_AT_ONCE = 500
_LOAD_TRIES = 20
_NO_STORE = "-"


class Pruned(RegistryError):
    """Commits that were not read yet are no longer in the journal: load the store anew."""


class Pruning(NamedTuple):
    """How much of a journal was forgotten."""

    commits: int
    size_bytes: int


class Store:
    """The files of one store, and which ones they were when we last looked."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.id = ""
        self.lock = StoreLock(path.with_name(f"{path.name}.lock"))
        self._file = StoreFile(path)
        self._journal: Journal | None = None
        self._retired: list[Journal] = []
        self.journal_path = path.with_name(f"{path.name}.journal")
        self._journal_stamp: Stamp | None = None
        self._stamp: Stamp | None = None
        self._durable = 0

    def position(self, mark: Mark) -> str:
        """The mark as a position to give away. May run on the loop."""
        return f"{self.id[:8] or _NO_STORE}:{mark.seq}:{mark.end}"

    def close(self) -> None:
        """Close all files."""
        self._file.close()
        self.lock.close()
        self._follow_journal(None)
        for journal in self._retired:
            journal.close()
        self._retired.clear()

    # --- reading ----------------------------------------------------------------------

    def load(self, from_start: bool = False) -> tuple[dict[str, Record], Mark]:
        """The records that are kept, and the place in the journal behind which to read on.

        :param from_start: no records, and the start of the journal, if it holds everything
        :raises InvalidInput: what is there is not ours
        :raises RegistryError: it cannot be read, is damaged, or does not belong together
        """
        for _ in range(_LOAD_TRIES):
            try:
                return self._load(from_start)
            except RegistryError:
                # Folded and pruned between looking at the one file and at the other?
                if not self._has_moved():
                    raise
        return self._load(from_start)

    def _load(self, from_start: bool) -> tuple[dict[str, Record], Mark]:
        self._follow_journal(None)
        self._journal_stamp = stamp_of(self.journal_path)
        content = self._load_content()
        opened = Journal.open(self.journal_path)
        if opened is not None and content is None:
            content = self._load_content()  # both may have been made since we looked
        if opened is not None:
            self._journal_stamp = stamp(os.fstat(opened.fileno()))
        self._follow_journal(opened)
        self._stamp = content.stamp if content else None
        if content is None:
            return self._rebuilt(opened) if opened else ({}, Mark())
        is_ours = content.is_ours
        records = records_in(content, self.path, is_ours=is_ours)
        self.id = content.meta.store
        folded = content.meta.journal
        if opened is None:
            if self._journal_stamp is not None and content.has_history:
                raise RegistryError(
                    f"{self.journal_path} is damaged at byte 0: its first line is missing, and"
                    f" {self.path} was written from it",
                    cure="restore it from a copy; or move it away: the file beside it holds all"
                    " nodes, without history",
                )
            return records, Mark(folded.seq if folded else 0)
        if not is_ours:
            raise self._changed()
        if opened.header.store != self.id:
            raise RegistryError(
                f"{opened.path} belongs to another store than {self.path}",
                cure="put the two files together that were together",
            )
        base = opened.header.base
        if from_start and base == 0:
            return {}, Mark(0, 0, opened.start)
        return records, self._found(opened, folded)

    def has_news(self, mark: Mark) -> bool:
        """Whether there is something to read after ``mark``.

        Takes microseconds; may run on the loop.

        :raises RegistryError: the store is gone, or is another one
        """
        if self._journal is None:
            return (
                stamp_of(self.journal_path) != self._journal_stamp
                or stamp_of(self.path) != self._stamp
            )
        found = stamp_of(self.journal_path)
        if found is None:
            raise self._gone(self.journal_path)
        if self._journal_stamp is None or found[:2] != self._journal_stamp[:2]:
            return True  # pruned, or another one
        # With a torn tail that is so again and again, until the next writer cuts it off.
        if found[2] != mark.end - self._journal.pruned:
            return True
        found = stamp_of(self.path)
        if found is None and self._stamp is not None:
            raise self._gone(self.path)
        return found != self._stamp

    @property
    def is_attached(self) -> bool:
        """Whether there is a journal to follow; else :meth:`load` looks for one."""
        return self._journal is not None

    def read(self, mark: Mark, is_locked: bool) -> list[Entry]:
        """Some of the commits after ``mark`` that will not be taken back; none: no more now.

        :param is_locked: we hold the store's lock, and so nobody is writing
        :raises Pruned: not all commits after ``mark`` are kept
        :raises RegistryError: the journal or the store is damaged, or is another one
        """
        self._check_journal(mark)
        self._check_file()
        assert self._journal is not None
        is_shared = not is_locked and self.lock.try_shared()
        until = None if is_locked or is_shared else self.lock.settled()
        try:
            missing = mark.end - self._journal.end
            if missing > 0:
                raise RegistryError(
                    f"{self.journal_path} has {missing} bytes less than before",
                    cure="restore it from a copy",
                )
            entries = list(islice(self._journal.entries(mark, until), _ENTRIES_AT_ONCE))
        finally:
            if is_shared:
                self.lock.release()
        if entries:
            self._durable = max(self._durable, entries[-1].line.durable)
        return entries

    def past(self, position: str, until: str) -> list[Entry]:
        """The first commits after a position that was given away, and none after another.

        :raises WatchGap: the position is not of this store, or is not kept
        """
        first, last = self._mark(position), self._mark(until)
        if first.seq > last.seq:
            raise WatchGap(f"{position!r} is ahead of what was read of {self.path}")
        if first.seq == last.seq:
            return []
        journal = self._journal
        if journal is None or first.seq < journal.header.base:
            raise self._forgotten(position)
        return list(islice(journal.entries(first, last.end), _ENTRIES_AT_ONCE))

    def page_back(self, mark: Mark) -> tuple[list[Entry], Mark]:
        """Some of the commits up to ``mark``, newest first, and the mark to go on from."""
        journal = self._journal  # may be pruned meanwhile
        if journal is None or mark.end <= journal.start:
            return [], Mark()
        entries, begin = journal.entries_back(mark)
        return entries, Mark(mark.seq - len(entries), 0, begin)

    # --- writing: only with the store's lock held ---------------------------------------

    def make_directory(self) -> None:
        """Make the directory that the files lie in, durably. Needs no lock."""
        try:
            make_directory(self.path.parent)
        except OSError as error:
            raise trouble(error, "made", self.path.parent) from error

    def establish(self, records: Iterable[Record], mark: Mark) -> Mark:
        """Make the journal, if there is none, and with it the store.

        :return: where the first line will stand
        """
        if self._journal is not None:
            return mark
        if stamp_of(self.path) != self._stamp:
            raise self._changed()
        self.id = self.id or secrets.token_hex(16)
        self.lock.mark(0)
        if not self._file.stage(records, self._meta(Mark(mark.seq))):
            raise RegistryError(f"another process is writing {self.path}", cure="try again")
        self._stamp = self._file.publish()
        self._journal = Journal.create(self.journal_path, store=self.id, base=mark.seq)
        self._journal_stamp = stamp(os.fstat(self._journal.fileno()))
        self._durable = mark.seq
        return Mark(mark.seq, 0, self._journal.start)

    def append(self, commits: Iterable[Line], mark: Mark) -> list[Mark]:
        """Make these commits durable, all with one write.

        :return: where each of them stands
        :raises RegistryError: they could not be written, and are not there
        :raises OutcomeUnknown: they could not be written, nor taken back
        """
        assert self._journal is not None
        marks = []
        data = []
        end = mark.end
        for commit in commits:
            raw = seal(msgspec.structs.replace(commit, durable=self._durable))
            marks.append(Mark(commit.seq, end, end + len(raw), sum_of(raw)))
            data.append(raw)
            end += len(raw)
        self.lock.mark(mark.end)
        self._journal.append(b"".join(data), mark)
        self._durable = marks[-1].seq
        # Who opens the store while the next writer holds the lock must see these.
        with suppress(RegistryError):
            self.lock.mark(end)
        return marks

    # --- folding ------------------------------------------------------------------------

    def is_folded(self, seq: int) -> bool:
        """Whether ``store.json`` holds everything up to that commit."""
        found = self._file.tail()
        return found is not None and found[0].journal is not None and found[0].journal.seq >= seq

    def stage(self, records: Iterable[Record], mark: Mark) -> bool:
        """Write ``store.json`` anew, beside the old one. Needs no lock.

        :return: whether it was; not if another process is doing the same
        """
        if self._journal is not None:
            # The last line may be from a writer that was killed before it synced: after a power
            # cut the store would then be ahead of its journal.
            self._journal.sync()
        return self._file.stage(records, self._meta(mark))

    def fold(self, mark: Mark) -> None:
        """Put what was staged in place, unless what is there is as new. Needs the lock.

        :raises RegistryError: another program wrote the file meanwhile
        """
        try:
            self._check_file()
            if not self.is_folded(mark.seq):
                self._stamp = self._file.publish()
        finally:
            self._file.close()

    def unstage(self) -> None:
        """Give up what was staged, if anything is. Takes microseconds; may run on the loop."""
        self._file.close()

    # --- pruning ------------------------------------------------------------------------

    def first(self) -> Line | None:
        """The oldest commit that is kept."""
        if self._journal is None:
            return None
        header = self._journal.header
        entries = self._journal.entries(Mark(header.base, 0, self._journal.start))
        entry = next(entries, None)
        return entry.line if entry is not None else None

    def older(self, time: float, mark: Mark) -> Mark | None:
        """The last of those commits, from the oldest on, that were all made before ``time``.

        :return: nothing if there are none
        :raises RegistryError: the journal is damaged
        """
        if self._journal is None:
            return None
        cut = None
        start = Mark(self._journal.header.base, 0, self._journal.start)
        for entry in self._journal.entries(start, mark.end):
            if entry.line.time >= time:
                break
            cut = entry.mark
        return cut

    def pruning(self, cut: Mark) -> Pruning:
        """How much there is up to ``cut``. May run on the loop."""
        if self._journal is None:
            return Pruning(0, 0)
        return Pruning(cut.seq - self._journal.header.base, cut.end - self._journal.start)

    def prune(self, cut: Mark, mark: Mark) -> Pruning:
        """Forget the commits up to ``cut``, which must be folded. Needs the lock.

        :raises RegistryError: it could not be written, and nothing is forgotten
        """
        assert self._journal is not None
        forgotten = self.pruning(cut)
        after = self._journal.prune(cut, mark.end)
        self._follow_journal(after)
        self._journal_stamp = stamp(os.fstat(after.fileno()))
        return forgotten

    # --- what belongs together ------------------------------------------------------------

    def _load_content(self) -> Content | None:
        try:
            return self._file.load()
        except InvalidInput as error:
            if self._journal_stamp is None:
                raise
            raise RegistryError(
                f"{self.path} is damaged, or was changed by another program: {error.message}",
                cure="restore it from a copy; or move it away: the journal beside it may hold"
                " everything",
            ) from error

    def _rebuilt(self, opened: Journal) -> tuple[dict[str, Record], Mark]:
        if opened.header.base:
            raise RegistryError(
                f"{self.path} is missing, and its journal begins after commit {opened.header.base}",
                cure="restore it from a copy",
            )
        self.id = opened.header.store
        return {}, Mark(0, 0, opened.start)

    def _found(self, opened: Journal, folded: Folded | None) -> Mark:
        base = opened.header.base
        seq = folded.seq if folded else 0
        if seq == base:
            return Mark(seq, 0, opened.start)
        if (
            folded is None
            or seq < base
            or not opened.holds(Mark(seq, folded.start, folded.end, folded.sum))
        ):
            raise RegistryError(
                f"{opened.path} does not hold commit {seq}, up to which {self.path} was written:"
                " one of them is damaged, or from another copy",
                cure="put the two files together that were together",
            )
        self._durable = seq
        return Mark(seq, folded.start, folded.end, folded.sum)

    def _follow_journal(self, journal: Journal | None) -> None:
        # Other threads may be reading the old one: it is closed when everything is.
        if self._journal is not None:
            self._retired.append(self._journal)
        self._journal = journal

    def _has_moved(self) -> bool:
        """Whether a file is no longer the one that was looked at last."""
        return (
            stamp_of(self.path) != self._stamp
            or (found := stamp_of(self.journal_path)) is None
            or self._journal_stamp is None
            or found[:2] != self._journal_stamp[:2]
        )

    def _check_journal(self, mark: Mark) -> None:
        """Go on with a journal that was pruned; refuse another one in its place."""
        assert self._journal is not None
        found = stamp_of(self.journal_path)
        if found is None:
            raise self._gone(self.journal_path)
        if self._journal_stamp is not None and found[:2] == self._journal_stamp[:2]:
            return
        opened = Journal.open(self.journal_path)
        if opened is None or opened.header.store != self.id:
            if opened is not None:
                opened.close()
            raise self._replaced(self.journal_path)
        base = opened.header.base
        if mark.seq < base:
            opened.close()
            raise Pruned(f"{self.journal_path} no longer holds what followed commit {mark.seq}")
        if mark.seq > base and not opened.holds(mark):
            opened.close()
            raise self._replaced(self.journal_path)
        self._follow_journal(opened)
        self._journal_stamp = stamp(os.fstat(opened.fileno()))

    def _check_file(self) -> None:
        """Accept a ``store.json`` that another registry folded; refuse anything else."""
        if stamp_of(self.path) == self._stamp and self._stamp is not None:
            return
        found = self._file.tail()
        if found is not None and found[0].store == self.id:
            self._stamp = found[1]
            return
        if found is not None:
            raise self._replaced(self.path)
        try:
            content = self._file.load()
        except InvalidInput as error:
            raise self._changed() from error
        if content is None:
            if self._stamp is None and self._journal is not None:
                return  # it was missing when we opened, and the journal holds everything
            raise self._gone(self.path)
        if content.meta.store != self.id:
            raise self._replaced(self.path)
        if not content.is_ours:
            raise self._changed()
        self._stamp = content.stamp

    def _mark(self, position: str) -> Mark:
        store, _, rest = position.partition(":")
        seq, _, end = rest.partition(":")
        if not (seq.isdecimal() and end.isdecimal()):
            raise WatchGap(f"{position!r} is not a position of {self.path}", cure="watch anew")
        mark = Mark(int(seq), 0, int(end))
        if store != self.id[:8] and (store, mark.seq) != (_NO_STORE, 0):
            raise WatchGap(
                f"{position!r} is a position of another store than {self.path}", cure="watch anew"
            )
        journal = self._journal
        if journal is None:
            return mark
        if mark.seq == journal.header.base:
            return Mark(mark.seq, 0, journal.start)
        if mark.seq < journal.header.base or not journal.line_ends_at(mark.end):
            raise self._forgotten(position)
        return mark

    def _meta(self, mark: Mark) -> Meta:
        return Meta(
            format=FORMAT,
            store=self.id,
            position=self.position(mark),
            journal=Folded(mark.seq, mark.start, mark.end, mark.sum),
        )

    def _forgotten(self, position: str) -> WatchGap:
        return WatchGap(f"{self.path} does not keep what followed {position!r}", cure="watch anew")

    def _gone(self, path: Path) -> RegistryError:
        return RegistryError(
            f"{path} is no longer there",
            cure="bring it back, or see that its directory is mounted; then open the store anew",
        )

    def _replaced(self, path: Path) -> RegistryError:
        return RegistryError(f"{path} was replaced by another store's", cure="open the store anew")

    def _changed(self) -> RegistryError:
        return RegistryError(
            f"{self.path} was changed by another program than Vagoth, while its journal stands",
            cure=f"restore it from a copy; or, to keep that change and forget all commits since it"
            f" was last read, move {self.journal_path.name} away",
        )


def apply(entries: Iterable[Entry], records: dict[str, Record]) -> None:
    """Make the commits on the records."""
    for entry in entries:
        for change in entry.line.changes:
            if change.after is not None:
                records[change.after.id] = change.after
            elif change.gone is not None:
                records.pop(change.gone.id, None)
