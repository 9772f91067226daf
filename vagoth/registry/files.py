"""Files that survive a power cut, and what the operating system's refusals mean.

Everything here blocks: it belongs on a worker thread unless it says otherwise.
"""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from pathlib import Path

from vagoth.errors import InvalidInput, RegistryError

_MEANING = {
    errno.ENOSPC: ("the disk is full", "make room, and try again"),
    errno.EDQUOT: ("the disk quota is used up", "make room, and try again"),
    errno.EFBIG: ("the file may not grow that large", "raise the limit on file sizes: ulimit -f"),
    errno.EROFS: ("the file system is read-only", "remount it for writing, or name another store"),
    errno.EACCES: ("permission denied", "run as the store's owner, or name another store"),
    errno.EPERM: ("not permitted", "see lsattr and the mount's options, or name another store"),
    errno.ENOENT: ("it is not there", "see that its directory exists and is mounted"),
    errno.ESTALE: ("its file system went away", "see that its directory is mounted"),
    errno.ENOTDIR: ("part of the path is not a directory", "name another store"),
    errno.EISDIR: ("it is a directory", "name a file"),
    errno.ELOOP: ("its symbolic links form a ring", "name another store"),
    errno.ENAMETOOLONG: ("the path is too long", "name another store"),
    errno.EIO: ("the disk reports an error", "see the kernel's log"),
    errno.EMFILE: ("too many open files", "raise the limit: ulimit -n"),
    errno.ENOLCK: ("its file system cannot lock files", "keep the store on a local disk"),
}


def trouble(error: OSError, doing: str, path: Path) -> RegistryError:
    """The RegistryError for what the system refused. ``doing``: "read", "written", "locked"."""
    what, cure = _MEANING.get(error.errno or 0, (error.strerror or str(error), ""))
    return RegistryError(f"{path} cannot be {doing}: {what}", cure=cure)


def make_directory(path: Path) -> None:
    """Make the directory and all that are missing above it, durably and for the owner only."""
    missing = []
    while not path.is_dir():
        missing.append(path)
        path = path.parent
    for directory in reversed(missing):
        try:
            directory.mkdir(0o700)
        except FileExistsError:
            continue  # another process was first; if it is no directory, what follows says so
        sync_directory(directory.parent)


def sync_directory(path: Path) -> None:
    """Make the directory's entries durable: files made, renamed and removed in it."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_at(fd: int, data: bytes, offset: int) -> None:
    """Write all of ``data``: the system may take less than it is given."""
    rest = memoryview(data)
    while rest:
        written = os.pwrite(fd, rest, offset)
        offset += written
        rest = rest[written:]


def read_at(fd: int, size: int, offset: int) -> bytes:
    """Read ``size`` bytes, or fewer where the file ends before."""
    parts = []
    while size > 0:
        part = os.pread(fd, size, offset)
        if not part:
            break
        parts.append(part)
        offset += len(part)
        size -= len(part)
    return b"".join(parts)


def same_file(fd: int, path: Path) -> bool:
    """Whether ``path`` still leads to the open file. Takes microseconds; may run on the loop."""
    try:
        there = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return os.path.samestat(there, os.fstat(fd))


def read_bytes(path: Path) -> bytes | None:
    """All of a file; nothing if there is none.

    :raises InvalidInput: it is no file, but a pipe or a device, which may never end
    :raises RegistryError: it cannot be read
    """
    try:
        mode = path.stat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise InvalidInput("store", str(path), "a file, and not a pipe or a device")
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise trouble(error, "read", path) from error


def keep_owner(fd: int, path: Path) -> None:
    """Give a file that is to replace ``path`` the owner of what is there, if we may.

    Root at a prompt must not lock out the user whose store it is.
    """
    if os.geteuid() == 0:
        with suppress(FileNotFoundError):
            there = path.stat()
            os.fchown(fd, there.st_uid, there.st_gid)


def write_whole(path: Path, data: bytes) -> None:
    """Put a file there, for its owner only, durably: a stop leaves the old one or the new one.

    :raises RegistryError: it cannot be written
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            keep_owner(fd, path)
            write_at(fd, data, 0)
            os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(beside, path)
        sync_directory(path.parent)
    except OSError as error:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
        raise trouble(error, "written", path) from error
