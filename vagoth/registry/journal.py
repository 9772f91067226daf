"""The journal: every commit of a store, one a line, appended. Its lines are the commit point.

What a line holds is told in :mod:`vagoth.registry.lines`. Everything here blocks, and belongs on
a worker thread.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Self

import msgspec

from vagoth.errors import OutcomeUnknown, RegistryError
from vagoth.registry.files import keep_owner, read_at, sync_directory, trouble, write_at
from vagoth.registry.lines import (
    FORMAT,
    Entry,
    Header,
    Line,
    Mark,
    decode_header,
    decode_line,
    is_whole,
    seal,
    sum_of,
)

_CHUNK = 1 << 20
_CHUNK_BACK = 1 << 18
_CURE = "vagoth store check lists all damage; vagoth store repair saves all that is whole"


class Journal:
    """One open journal. Reading needs no lock, writing the store's.

    All places are counted as if nothing had ever been pruned; ``start`` is where the first line
    that is kept begins, ``pruned`` how many bytes less are in the file.
    """

    def __init__(self, path: Path, fd: int, header: Header, size: int) -> None:
        self.path = path
        self.header = header
        self.start = header.first or size
        self.pruned = self.start - size
        self._fd = fd
        self._is_writable = False

    @classmethod
    def open(cls, path: Path) -> Self | None:
        """The journal there; none if there is none, or its first line was never finished.

        :raises RegistryError: it cannot be read, is damaged, or is of another format
        """
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe has no end to wait for
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise trouble(error, "read", path) from error
        try:
            header, start = cls._read_header(path, fd)
        except OSError as error:
            os.close(fd)
            raise trouble(error, "read", path) from error
        except BaseException:
            os.close(fd)
            raise
        if header is None:
            os.close(fd)
            return None
        return cls(path, fd, header, start)

    @classmethod
    def create(cls, path: Path, *, store: str, base: int) -> Self:
        """Make the journal, durably, over one whose first line was never finished."""
        header = Header(FORMAT, store, base)
        line = seal(header)
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise trouble(error, "made", path) from error
        try:
            os.ftruncate(fd, 0)
            write_at(fd, line, 0)
            # On disk before the first commit is appended: else the disk could write that first,
            # and the journal would look damaged after a power cut.
            os.fsync(fd)
            sync_directory(path.parent)
        except OSError as error:
            os.close(fd)
            raise trouble(error, "written", path) from error
        journal = cls(path, fd, header, len(line))
        journal._is_writable = True
        return journal

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    def fileno(self) -> int:
        """The open file, for looking at."""
        return self._fd

    @property
    def end(self) -> int:
        """Where the file ends now."""
        return os.fstat(self._fd).st_size + self.pruned

    def append(self, data: bytes, mark: Mark) -> None:
        """Put ``data`` after ``mark``, in place of an unfinished tail, and make it durable.

        :raises RegistryError: it could not be written, and is not there
        :raises OutcomeUnknown: it could not be written, nor taken back
        """
        at = mark.end - self.pruned
        try:
            if not self._is_writable:
                self._reopen()
            if os.fstat(self._fd).st_size != at:
                if next(self.entries(mark), None) is not None:
                    raise RegistryError(f"{self.path} holds commits that were not read yet")
                os.ftruncate(self._fd, at)
        except OSError as error:
            raise trouble(error, "written", self.path) from error
        try:
            write_at(self._fd, data, at)
            os.fsync(self._fd)
        except OSError as error:
            try:
                os.ftruncate(self._fd, at)
                os.fsync(self._fd)
            except OSError as worse:
                raise OutcomeUnknown(
                    f"{self.path} could not be written ({error.strerror}) nor cut back"
                    f" ({worse.strerror}): whether the commit is there is not known",
                    cure="see the kernel's log, and open the store anew",
                ) from error
            raise trouble(error, "written", self.path) from error

    def entries(self, mark: Mark, until: int | None = None) -> Iterator[Entry]:
        """The commits after ``mark``, up to byte ``until``, or to the end.

        Only who holds the store's lock may read to the end: what stands there may yet be taken
        back, and written anew. Ends before an unfinished tail.

        :raises RegistryError: the journal is damaged; names file and place
        """
        start, seq = mark.end, mark.seq
        for raw in self._split(start, until):
            seq += 1
            if not is_whole(raw):
                self._expect_torn(start, until, seq)
                return
            line = self._decode(raw, start, seq)
            end = start + len(raw)
            yield Entry(line, Mark(seq, start, end, sum_of(raw)))
            start = end

    def entries_back(self, mark: Mark) -> tuple[list[Entry], int]:
        """Some of the commits up to ``mark``, newest first.

        :return: them, and the byte where they begin; that is ``self.start`` when all are read
        :raises RegistryError: the journal is damaged; names file and place
        """
        end, seq = mark.end, mark.seq
        size = _CHUNK_BACK
        while True:
            begin = max(self.start, end - size)
            data = self._read(end - begin, begin)
            if begin > self.start:
                # Unless it lies just behind a newline, the first line is cut in two.
                cut = data.find(b"\n") + 1
                if cut in (0, len(data)):
                    size *= 2
                    continue
                begin += cut
                data = data[cut:]
            break
        found = []
        stop = end
        for raw in reversed(data.splitlines(keepends=True)):
            start = stop - len(raw)
            if not is_whole(raw):
                raise self._damaged(start, seq)
            found.append(Entry(self._decode(raw, start, seq), Mark(seq, start, stop, sum_of(raw))))
            stop = start
            seq -= 1
        return found, begin

    def line_ends_at(self, end: int) -> bool:
        """Whether a line ends, and so another may begin, at that byte."""
        return end >= self.start and self._read(1, end - 1) == b"\n"

    def holds(self, mark: Mark) -> bool:
        """Whether the line of that mark is there, undamaged."""
        raw = self._read(mark.end - mark.start, mark.start)
        return len(raw) == mark.end - mark.start and is_whole(raw) and sum_of(raw) == mark.sum

    def sync(self) -> None:
        """Make what is there durable, whoever wrote it."""
        try:
            os.fsync(self._fd)
        except OSError as error:
            raise trouble(error, "written", self.path) from error

    def prune(self, cut: Mark, end: int) -> Self:
        """Put a journal in place that begins behind ``cut``, durably; up to byte ``end``.

        A stop at any point leaves this one or that one. Others may go on reading this one.

        :raises RegistryError: it could not be written, and this one still stands
        """
        header = Header(FORMAT, self.header.store, cut.seq, cut.end)
        beside = self.path.with_name(f"{self.path.name}.new")
        fd = None
        try:
            fd = os.open(beside, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
            keep_owner(fd, self.path)
            line = seal(header)
            write_at(fd, line, 0)
            at = cut.end
            while chunk := self._read(min(_CHUNK, end - at), at):
                write_at(fd, chunk, len(line) + at - cut.end)
                at += len(chunk)
            os.fsync(fd)
            os.rename(beside, self.path)
            sync_directory(self.path.parent)
        except OSError as error:
            if fd is not None:
                os.close(fd)
                with suppress(OSError):
                    beside.unlink(missing_ok=True)
            raise trouble(error, "written", beside) from error
        pruned = type(self)(self.path, fd, header, len(line))
        pruned._is_writable = True
        return pruned

    def _reopen(self) -> None:
        fd = os.open(self.path, os.O_RDWR)
        if not os.path.samestat(os.fstat(fd), os.fstat(self._fd)):
            os.close(fd)
            raise RegistryError(f"{self.path} was replaced by another file")
        # Others read by this number meanwhile: it must not be closed, not even for a moment.
        os.dup2(fd, self._fd, inheritable=False)
        os.close(fd)
        self._is_writable = True

    def _read(self, size: int, offset: int) -> bytes:
        try:
            return read_at(self._fd, size, offset - self.pruned)
        except OSError as error:
            raise trouble(error, "read", self.path) from error

    def _split(self, offset: int, until: int | None) -> Iterator[bytes]:
        rest = b""
        end = sys.maxsize if until is None else until
        while chunk := self._read(min(_CHUNK, end - offset), offset):
            offset += len(chunk)
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                yield line + b"\n"
        if rest:
            yield rest

    def _decode(self, raw: bytes, start: int, seq: int) -> Line:
        try:
            line = decode_line(raw)
        except msgspec.DecodeError as error:
            raise self._damaged(start, seq, f" ({error})") from error
        if line.seq != seq:
            raise self._damaged(start, seq, f" (commit {line.seq} stands there)")
        return line

    def _expect_torn(self, start: int, until: int | None, seq: int) -> None:
        """Accept the bad line that begins at ``start`` if no later one shows it was durable."""
        for raw in self._split(start, until):
            if is_whole(raw) and self._durable(raw) >= seq:
                raise self._damaged(start, seq)

    def _durable(self, raw: bytes) -> int:
        try:
            return decode_line(raw).durable
        except msgspec.DecodeError:
            return -1

    def _damaged(self, start: int, seq: int, why: str = "") -> RegistryError:
        place = f"byte {start - self.pruned}, where commit {seq} should stand{why}"
        return RegistryError(
            f"{self.path} is damaged at {place}",
            cure=_CURE,
        )

    @staticmethod
    def _read_header(path: Path, fd: int) -> tuple[Header | None, int]:
        data = read_at(fd, 4096, 0)
        first, newline, _rest = data.partition(b"\n")
        raw = first + newline
        if not is_whole(raw):
            # Without a newline nothing was ever committed after it.
            if not newline and len(data) < 4096:
                return None, 0
            raise RegistryError(f"{path} is damaged at byte 0, in its first line", cure=_CURE)
        try:
            header = decode_header(raw)
        except msgspec.DecodeError as error:
            raise RegistryError(f"{path} is not a journal of ours: {error}") from error
        if header.format != FORMAT:
            raise RegistryError(
                f"{path} has format {header.format}; this version knows format {FORMAT}",
                cure="use the version of Vagoth that wrote it",
            )
        return header, len(raw)
