"""Where simulated hosts are kept: one small file each, shared by all processes of a store.

A state file is replaced whole, by a rename, under an flock on the file beside it; so readers
need no lock. Nothing is flushed to the disk: a host outlives ``kill -9``, and may forget its
last moments when the machine itself loses power.

A live migration changes two files, and a kill must neither lose the guest nor leave it running
twice. Under both locks, in this order:

1. the target notes that the guest *is arriving* from the source under a token (a reader takes
   it as not there);
2. the source lets it go and notes that the token *departed*: this one rename is the moment at
   which the guest moves, since readers of the target ask the source about tokens;
3. the target has it for good;
4. the source forgets the token.

Killed after 1, the next writer of the target drops the note; killed after 2, it finishes 3.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import hashlib
import os
import random
import secrets
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import msgspec

from vagoth.drivers.sim.world import Arrival, World
from vagoth.errors import HypervisorUnavailable

LOCK_PATIENCE_S = 10.0
_RETRY_S = (0.001, 0.004)
Stamp = tuple[int, int, int]
T = TypeVar("T")


class Locked(Exception):
    """Another thread or process changes the file at this moment."""


def path_of(state_dir: Path, host_id: str) -> Path:
    """The state file of a simulated host."""
    name = host_id
    if len(host_id.encode()) > 200:
        # A file name has at most 255 bytes, of which we add some.
        name = hashlib.sha256(host_id.encode()).hexdigest()
    return state_dir / "sim" / f"{name}.json"


class StateFile:
    """One simulated host's file. All methods block for a moment: call them from a thread.

    ``host`` is what errors call it.
    """

    def __init__(self, path: Path, host: str) -> None:
        self.path = path
        self.host = host

    def stamp(self) -> Stamp | None:
        """Something that differs after each change; nothing while there is no file."""
        try:
            found = os.stat(self.path)
        except OSError:
            return None
        return found.st_mtime_ns, found.st_ino, found.st_size

    def read(self) -> World:
        """The host as it is now. Its journal ends with what has been written down."""
        world = self._load()
        if world.due_at is not None and world.due_at <= time.time():
            # Time has brought something that nobody has written down. It gets its number in
            # the journal from the writer who does, so a reader must not number it.
            seen = msgspec.convert(msgspec.to_builtins(world), World)
            seen.tend(time.time(), _has_departed)
            world.guests = seen.guests
        return world

    def change(self, work: Callable[[World], T]) -> T:
        """Let ``work`` change the host, and write down what it did; nothing if it raises.

        :raises Locked: another changes it just now; nothing was done
        """
        with _locked(self):
            return self._change(work)

    def change_patiently(self, work: Callable[[World], T]) -> T:
        """As :meth:`change`, waiting until others are done.

        :raises HypervisorUnavailable: somebody has kept it locked for too long
        """
        patience = _Patience(self)
        while True:
            try:
                return self.change(work)
            except Locked:
                time.sleep(patience.next_pause_s())

    def tend(self) -> None:
        """Write down what time has brought. :raises Locked: try again later."""
        self.change(lambda world: None)

    def _load(self) -> World:
        return self._decode(self._bytes())

    def _change(self, work: Callable[[World], T]) -> T:
        world, before = self._load_tended()
        answer = work(world)
        self._store(world, before)
        return answer

    def _load_tended(self) -> tuple[World, bytes]:
        before = self._bytes()
        world = self._decode(before)
        world.tend(time.time(), _has_departed)
        return world, before

    def _bytes(self) -> bytes:
        try:
            return self.path.read_bytes()
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise self._unusable(error) from error

    def _decode(self, data: bytes) -> World:
        if not data:
            return World()
        try:
            return _DECODER.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise HypervisorUnavailable(
                self.host,
                f"its state file {self.path} is damaged: {error}",
                cure="remove the file: the simulated host starts again with no guests",
            ) from error

    def _store(self, world: World, before: bytes) -> None:
        world.due_at = world.next_due()
        if not world.link:
            world.link = secrets.token_hex(8)
        if msgspec.json.encode(world) == before:
            return
        world.revision += 1
        # One name for all writers is enough: who writes holds the lock.
        beside = self.path.with_suffix(".new")
        try:
            fd = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with open(fd, "wb") as file:
                file.write(msgspec.json.encode(world))
            # The kernel's own stamps may be 4 ms coarse and inodes are used again, so that a
            # watcher could take the third of three quick changes for the first.
            now = time.time_ns()
            os.utime(beside, ns=(now, now))
            os.replace(beside, self.path)
        except OSError as error:
            raise self._unusable(error) from error

    def _unusable(self, error: OSError) -> HypervisorUnavailable:
        return HypervisorUnavailable(
            self.host,
            f"its state cannot be kept in {self.path}: {error.strerror or error}",
            cure="see to the folder's permissions and free space",
        )


def hand_over(
    source: StateFile,
    target: StateFile,
    uuid: str,
    *,
    check: Callable[[World, World], None],
    is_wanted: Callable[[], bool],
) -> bool:
    """Move a running guest from one file to the other; false if it was no longer wanted.

    ``check(source, target)`` raises if the hosts refuse. Then ``is_wanted`` is asked once:
    after it said yes, the guest moves.

    :raises Locked: another changes one of them just now; nothing was done
    """
    with ExitStack() as locks:
        # One order for all, so that two opposite migrations never wait for each other.
        for file in sorted((source, target), key=lambda file: file.path):
            locks.enter_context(_locked(file))
        here, here_before = source._load_tended()
        there, there_before = target._load_tended()
        check(here, there)
        if not is_wanted():
            return False
        token = secrets.token_hex(8)
        guest = here.find(uuid)
        there.arriving[token] = Arrival(guest, str(source.path))
        target._store(there, there_before)
        here.depart(uuid, token)
        source._store(here, here_before)
        # It has moved. Readers see so, and the next writer finishes what we cannot.
        with suppress(HypervisorUnavailable):
            target._change(lambda world: None)
            here.departed.remove(token)
            source._store(here, b"")
    return True


class Files:
    """Runs what touches state files in threads, so that the event loop never waits."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(4, thread_name_prefix="vagoth-sim")

    async def read(self, file: StateFile) -> World:
        """The host as it is now."""
        return await self.run(file.read)

    async def change(self, file: StateFile, work: Callable[[World], T]) -> T:
        """Let ``work`` change the host. Cancelled, it may have happened all the same."""
        return await self.patiently(file, lambda: file.change(work))

    async def patiently(self, file: StateFile, work: Callable[[], T]) -> T:
        """Run ``work``, again as often as it finds a file locked.

        :raises HypervisorUnavailable: somebody has kept it locked for too long
        """
        patience = _Patience(file)
        while True:
            try:
                return await self.run(work)
            except Locked:
                # Waiting here and not in flock: a stopped process that holds one host's lock
                # must not use up the threads that the others need.
                await asyncio.sleep(patience.next_pause_s())

    async def run(self, work: Callable[[], T]) -> T:
        """Run ``work`` in a thread."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def close(self) -> None:
        """Let go of the threads; what they are doing is still done."""
        self._threads.shutdown(wait=False)


class _Patience:
    def __init__(self, file: StateFile) -> None:
        self._file = file
        self._until = time.monotonic() + LOCK_PATIENCE_S

    def next_pause_s(self) -> float:
        if time.monotonic() > self._until:
            raise HypervisorUnavailable(
                self._file.host,
                f"its state file {self._file.path} has been locked for {LOCK_PATIENCE_S:g} s",
                cure=f"fuser {_lock_path(self._file)} names the process",
            )
        return random.uniform(*_RETRY_S)


@contextmanager
def _locked(file: StateFile) -> Iterator[None]:
    lock = _lock_path(file)
    try:
        lock.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise file._unusable(error) from error
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES, errno.EINTR):
                raise Locked from None
            raise file._unusable(error) from error
        yield
    finally:
        os.close(fd)


def _lock_path(file: StateFile) -> Path:
    return file.path.with_suffix(".lock")


def _has_departed(source: str, token: str) -> bool | None:
    try:
        return token in StateFile(Path(source), source)._load().departed
    except HypervisorUnavailable:
        # Guessing could run the guest on both hosts, or on none.
        return None


_DECODER = msgspec.json.Decoder(World)
