"""Noticing what changes on simulated hosts, whoever changes it."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import NamedTuple, Protocol, Self

from vagoth.drivers.base import GuestEvent
from vagoth.drivers.sim.files import Files, Locked, Stamp, StateFile
from vagoth.drivers.sim.world import World
from vagoth.errors import HostUnreachable, VagothError

POLL_S = 0.025


class Observer(Protocol):
    """Who wants to know of a host's changes."""

    @property
    def file(self) -> StateFile:
        """Where the host is kept."""

    def see(self, world: World) -> None:
        """The host was like this a moment ago. May come after a later one."""

    def lose(self, problem: str) -> None:
        """The host cannot be looked at any more."""


class _Seen(NamedTuple):
    stamp: Stamp | None
    due_at: float | None


class Watcher:
    """Looks at the state files of the hosts that somebody waits for, and at no others."""

    def __init__(self, files: Files) -> None:
        self._files = files
        # An observer stands here once for each of its waiters.
        self._observers: list[Observer] = []
        self._seen: dict[Observer, _Seen] = {}
        self._task: asyncio.Task[None] | None = None

    @contextmanager
    def watching(self, observer: Observer) -> Iterator[None]:
        """Tell the observer of changes; how the host is now is for itself to read."""
        self._observers.append(observer)
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="vagoth-sim-watcher")
        try:
            yield
        finally:
            self._observers.remove(observer)

    async def close(self) -> None:
        """Look no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        try:
            while self._observers:
                # Most requests are over before the first look, and cost none.
                await asyncio.sleep(POLL_S)
                present = dict.fromkeys(self._observers)
                self._seen = {o: seen for o, seen in self._seen.items() if o in present}
                for observer in present:
                    await self._look(observer)
        finally:
            self._task = None
            self._seen.clear()

    async def _look(self, observer: Observer) -> None:
        # The stamp is taken before the file is read: a change in between makes us read it
        # twice, the other way round it would be missed.
        stamp = observer.file.stamp()
        seen = self._seen.get(observer)
        is_due = seen is not None and seen.due_at is not None and seen.due_at <= time.time()
        if seen is not None and seen.stamp == stamp and not is_due:
            return
        try:
            if is_due:
                await self._files.run(observer.file.tend)
            world = await self._files.read(observer.file)
        except Locked:
            return
        except VagothError as error:
            observer.lose(str(error))
            return
        self._seen[observer] = _Seen(stamp, world.due_at)
        observer.see(world)


class Listener(AsyncIterator[GuestEvent]):
    """The changes of one host's guests after the world that it was made with."""

    def __init__(self, host: str, world: World) -> None:
        self._host = host
        self._serial = world.serial
        self._names = {guest.uuid: guest.name for guest in world.guests.values()}
        self._events: deque[GuestEvent] = deque()
        self._wake = asyncio.Event()
        self._problem: str | None = None

    def feed(self, world: World) -> None:
        """Take what is new in the host's journal."""
        if world.serial <= self._serial:
            return
        missed = [entry for entry in world.journal if entry.serial > self._serial]
        if missed[0].serial == self._serial + 1:
            self._events += [entry.as_event() for entry in missed]
        else:
            self._catch_up(world)
        self._serial = world.serial
        self._names = {guest.uuid: guest.name for guest in world.guests.values()}
        self._wake.set()

    def fail(self, problem: str) -> None:
        """Raise to whoever iterates, after the events that came before."""
        self._problem = problem
        self._wake.set()

    def _catch_up(self, world: World) -> None:
        # So much happened at once that the journal has forgotten some of it: how it came is
        # lost, how it is now is not.
        for uuid, name in self._names.items():
            if uuid not in world.guests:
                self._events.append(GuestEvent(uuid, name, None, "gone"))
        for guest in world.guests.values():
            self._events.append(GuestEvent(guest.uuid, guest.name, guest.power, "seen"))

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> GuestEvent:
        while not self._events:
            if self._problem is not None:
                raise HostUnreachable(self._host, self._problem)
            self._wake.clear()
            await self._wake.wait()
        return self._events.popleft()
