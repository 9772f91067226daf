"""Locks that die with their process: the store's, for one commit, and the nodes', for an action.

Both are ``flock`` locks. The kernel lets go of them when the process ends in whatever way. They
are held by an open file, so two in one process exclude each other too.

Trying takes microseconds and is done on the event loop; waiting is polling, so that it never
blocks the loop and can be cancelled.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import os
import socket
import time
import urllib.parse
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import msgspec

from vagoth import transaction
from vagoth.errors import Busy, RegistryError
from vagoth.model import Holder
from vagoth.registry.files import make_directory, read_at, same_file, trouble, write_at

_NODE_LOCK_POLL_S = 0.02
_LONGEST_FILE_NAME = 200
# Asking who holds a lock takes it shared for a moment, which must not look like a holder.
_LOOKS = 4
_LOOK_AGAIN_S = 0.002


class StoreLock:
    """The lock under which a store is written: one writer at a time, of all processes.

    Its file says who holds it, and up to which byte the journal was settled when it was taken:
    what stands behind that may yet be taken back by the holder. That byte is never too large.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd: int | None = None
        self._is_writable = False
        self._settled: int | None = None  # as we said it last

    def try_exclusive(self) -> bool:
        """Take the lock if nobody holds it; make its file if need be.

        :raises FileNotFoundError: there is no directory for it
        :raises RegistryError: it cannot be made
        """
        try:
            if not self._is_writable:
                self.close()
            if self._fd is None:
                self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
                self._is_writable = True
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except FileNotFoundError:
            raise
        except OSError as error:
            raise trouble(error, "written", self._path) from error
        if same_file(self._fd, self._path):
            return True
        # Somebody removed the file: a lock on it excludes nobody who comes later.
        self.close()
        return False

    def is_held_for(self, seconds: float) -> RegistryError:
        """The error for having waited so long in vain."""
        process = self._content()[0]
        who = f"process {process}" if process else "another process"
        return RegistryError(
            f"{self._path} has been held by {who} for {seconds:g} s",
            cure="see what that process is doing, and end it if it hangs",
        )

    def try_shared(self) -> bool:
        """Whether nobody is writing; if so, nobody will before ``release``.

        Never makes a file: where there is none, nobody has ever written here.
        """
        try:
            if self._fd is None:
                self._fd = os.open(self._path, os.O_RDONLY)
                self._is_writable = False
            fcntl.flock(self._fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return True
        except BlockingIOError:
            return False
        except OSError as error:
            raise trouble(error, "locked", self._path) from error
        if same_file(self._fd, self._path):
            return True
        self.close()
        return False

    def settled(self) -> int:
        """Up to which byte the journal is settled while somebody holds the lock."""
        for _ in range(_LOOKS):
            process, settled = self._content()
            if process:
                break
            time.sleep(_LOOK_AGAIN_S)  # new, or being written this very moment
        return settled

    def mark(self, settled: int) -> None:
        """Say, as the holder, up to where the journal is settled.

        :raises RegistryError: it cannot be written
        """
        assert self._fd is not None
        # Whoever wrote meanwhile and has committed moved it on; who has not left it where it was.
        if settled == self._settled:
            return
        self._settled = None
        said = b"%020d %010d" % (settled, os.getpid())
        try:
            write_at(self._fd, b"%b %08x\n" % (said, zlib.crc32(said)), 0)
        except OSError as error:
            raise trouble(error, "written", self._path) from error
        self._settled = settled

    def release(self) -> None:
        """Let go."""
        if self._fd is not None:
            fcntl.flock(self._fd, fcntl.LOCK_UN)

    def close(self) -> None:
        """Let go, and close the file."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
            self._is_writable = False
            self._settled = None

    def _content(self) -> tuple[int, int]:
        try:
            with open(self._path, "rb") as file:
                said, _, total = file.read(64).rstrip(b"\n").rpartition(b" ")
            if total != b"%08x" % zlib.crc32(said):
                return 0, 0
            settled, process = said.split()
            return int(process), int(settled)
        except (OSError, ValueError):
            return 0, 0


class NodeLocks:
    """A lock for each node: a file in a directory, holding who locked it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    @asynccontextmanager
    async def lock(self, node_id: str, name: str, *, wait_s: float = 0.0) -> AsyncIterator[Holder]:
        """Hold the node's lock. ``name`` is what the error calls the node.

        :raises Busy: somebody else holds it, for all of ``wait_s``
        :raises RegistryError: the lock's file cannot be made
        """
        path = self._path(node_id)
        tx = transaction.current()
        deadline = time.monotonic() + wait_s
        looks = 0
        if not self._directory.is_dir():
            await asyncio.to_thread(self._make_directory)
        while (fd := self._try(path)) is None:
            looks += 1
            if looks >= _LOOKS and time.monotonic() >= deadline:
                raise self._busy(name, path)
            await asyncio.sleep(_LOOK_AGAIN_S if looks < _LOOKS else _NODE_LOCK_POLL_S)
        try:
            holder = Holder(
                process=os.getpid(),
                machine=socket.gethostname(),
                user=transaction.user_name(),
                source=tx.source if tx else "",
                txid=tx.id if tx else "",
                since=time.time(),
            )
            self._sign(fd, path, holder)
            yield holder
        finally:
            # While it is still locked: whoever waits for this file sees that it is no longer the
            # one in the directory, and opens that one. The other way round two would hold it.
            with suppress(OSError):
                path.unlink()
            os.close(fd)

    async def holder(self, node_id: str) -> Holder | None:
        """Who holds the lock. A file whose lock is free was left by a process that died."""
        path = self._path(node_id)
        for _ in range(_LOOKS):
            is_held, holder = self._look(path)
            if not is_held or holder is not None:
                return holder
            await asyncio.sleep(_LOOK_AGAIN_S)  # taken this very moment, and not yet signed
        return Holder(process=0, machine="")

    def held(self) -> dict[str, Holder]:
        """Who holds which lock, by the node's id. Takes microseconds for each; blocks for them.

        An id too long for a file's name is told as ``sha256-`` and its digest.
        """
        try:
            paths = sorted(self._directory.glob("*.lock"))
        except OSError as error:
            raise trouble(error, "read", self._directory) from error
        found = {}
        for path in paths:
            is_held, holder = self._look(path)
            if is_held:
                name = path.name.removesuffix(".lock")
                name = name[1:] if name.startswith("%sha256-") else urllib.parse.unquote(name)
                found[name] = holder or Holder(process=0, machine="")
        return found

    def _look(self, path: Path) -> tuple[bool, Holder | None]:
        try:
            fd = os.open(path, os.O_RDONLY)
        except (FileNotFoundError, NotADirectoryError):
            return False, None
        except OSError as error:
            raise trouble(error, "read", path) from error
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True, _signature(fd)
        except OSError as error:
            raise trouble(error, "locked", path) from error
        finally:
            os.close(fd)
        return False, None

    def _make_directory(self) -> None:
        try:
            make_directory(self._directory)
        except OSError as error:
            raise trouble(error, "made", self._directory) from error

    def _path(self, node_id: str) -> Path:
        quoted = urllib.parse.quote(node_id, safe="")
        if len(quoted) > _LONGEST_FILE_NAME:
            # No quoted name has a % before an s.
            quoted = f"%sha256-{hashlib.sha256(node_id.encode()).hexdigest()}"
        return self._directory / f"{quoted}.lock"

    def _try(self, path: Path) -> int | None:
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise trouble(error, "made", path) from error
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if same_file(fd, path):
                return fd
        except BlockingIOError:
            pass
        except OSError as error:
            os.close(fd)
            raise trouble(error, "locked", path) from error
        os.close(fd)
        return None

    def _sign(self, fd: int, path: Path, holder: Holder) -> None:
        try:
            os.ftruncate(fd, 0)
            write_at(fd, msgspec.json.encode(holder), 0)
        except OSError as error:
            raise trouble(error, "written", path) from error

    def _busy(self, name: str, path: Path) -> Busy:
        try:
            fd = os.open(path, os.O_RDONLY)
        except OSError:
            holder = None
        else:
            holder = _signature(fd)
            os.close(fd)
        if holder is None:
            return Busy(f"{name} is being worked on by another process")
        since = _duration(time.time() - holder.since)
        return Busy(
            f"{name} is being worked on by {holder}, since {since}",
            holder=str(holder),
            cure="wait for it, or ask again with --wait",
        )


def _signature(fd: int) -> Holder | None:
    try:
        return msgspec.json.decode(read_at(fd, 65536, 0), type=Holder)
    except (msgspec.DecodeError, OSError):
        return None  # taken this very moment, and not yet signed


def _duration(seconds: float) -> str:
    seconds = max(0, round(seconds))  # the clock may have been set back
    if seconds < 120:
        return f"{seconds} s"
    if seconds < 7200:
        return f"{seconds // 60} min"
    return f"{seconds // 3600} h"
