"""A connection to a simulated host."""

from __future__ import annotations

import asyncio
import threading
import time
import uuid as uuidlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import NamedTuple, NoReturn, TypeVar

from vagoth.drivers.base import (
    DriverSettings,
    Guest,
    GuestEvent,
    GuestSpec,
    Host,
    HostFacts,
    MigrationProgress,
    Power,
    Session,
)
from vagoth.drivers.sim.definition import Down, SimHostDefinition
from vagoth.drivers.sim.files import Files, StateFile, hand_over
from vagoth.drivers.sim.watch import Listener, Watcher
from vagoth.drivers.sim.world import World
from vagoth.errors import (
    HostUnreachable,
    InvalidInput,
    JobFailed,
    OutcomeUnknown,
    ShutdownTimeout,
    VagothError,
)

ACTIVE = (Power.RUNNING, Power.PAUSED)
COPY_STEPS = 10
T = TypeVar("T")


class Fate(NamedTuple):
    """What becomes of one request: the seeded choice of the host's faults."""

    request_lost: bool = False
    answer_lost: bool = False
    drops: bool = False


class SimSession(Session):
    """One open connection to a simulated host.

    It is lost when the host drops its connections or refuses them, and when a request found
    no answer on a host that was cut off. A host that is cut off and comes back in time goes on
    as if nothing had been: requests and events arrive late.
    """

    def __init__(
        self,
        host: Host,
        definition: SimHostDefinition,
        file: StateFile,
        world: World,
        *,
        settings: DriverSettings,
        files: Files,
        watcher: Watcher,
    ) -> None:
        super().__init__(host)
        self.definition = definition
        self._file = file
        self._world = world
        self._limit_s = settings.call_timeout_s
        self._files = files
        self._watcher = watcher
        self._problem: str | None = None
        self._gone = asyncio.Event()
        self._reachable = asyncio.Event()
        self._scopes: set[asyncio.Timeout] = set()
        self._listeners: set[Listener] = set()
        self._keepalive: asyncio.TimerHandle | None = None
        self.see(world)

    # --- the connection ---------------------------------------------------------------

    @property
    def file(self) -> StateFile:
        """Where the host is kept."""
        return self._file

    @property
    def is_open(self) -> bool:
        return self._problem is None

    async def closed(self) -> None:
        with self._watcher.watching(self):
            await self._gone.wait()

    async def close(self) -> None:
        self.lose("the connection is closed")

    def see(self, world: World) -> None:
        """Take note of how the host is now."""
        if self._problem is not None:
            return
        if world.link != self._world.link:
            self.lose("the connection was lost")
            return
        if world.revision < self._world.revision:
            return  # read earlier than what we know already
        self._world = world
        down = world.down(self.definition)
        if down is Down.REFUSE:
            self.lose("the connection was reset")
        elif down is Down.HANG:
            self._reachable.clear()
            if self._keepalive is None:
                loop = asyncio.get_running_loop()
                self._keepalive = loop.call_later(self._limit_s, self._not_alive)
        else:
            self._reachable.set()
            self._stop_keepalive()
            for listener in self._listeners:
                listener.feed(world)

    def lose(self, problem: str) -> None:
        """Be of no use any more: fails all who wait. The first reason stays."""
        if self._problem is not None:
            return
        self._problem = problem
        self._gone.set()
        self._stop_keepalive()
        for listener in self._listeners:
            listener.fail(problem)
        for scope in self._scopes:
            if not scope.expired():
                scope.reschedule(asyncio.get_running_loop().time())

    def _not_alive(self) -> None:
        self.lose(f"no answer within {self._limit_s:g} s")

    def _stop_keepalive(self) -> None:
        if self._keepalive is not None:
            self._keepalive.cancel()
            self._keepalive = None

    # --- requests ---------------------------------------------------------------------

    @asynccontextmanager
    async def _request(self, *, mutates: bool, takes_s: float = 0.0) -> AsyncIterator[None]:
        """Around what the host does for one request, which may take it ``takes_s``."""
        if self._problem is not None:
            raise HostUnreachable(self.host.name, self._problem)
        is_sent = False
        try:
            async with asyncio.timeout(self._limit_s + takes_s) as scope:
                with self._under_way(scope):
                    await asyncio.sleep(self.definition.latency_s)
                    is_sent = True
                    self.see(await self._files.read(self._file))
                    await self._reachable.wait()
                    fate = await self._draw_fate()
                    if fate.request_lost:
                        await self._fall_silent(fate)
                    try:
                        yield
                        await self._reachable.wait()
                    except (JobFailed, InvalidInput):
                        if not fate.answer_lost:
                            raise
                    if fate.answer_lost:
                        await self._fall_silent(fate)
        except TimeoutError:
            self._fail_unanswered(is_sent and mutates)

    @contextmanager
    def _under_way(self, scope: asyncio.Timeout) -> Iterator[None]:
        self._scopes.add(scope)
        try:
            with self._watcher.watching(self):
                yield
        finally:
            self._scopes.discard(scope)

    def _fail_unanswered(self, in_doubt: bool) -> NoReturn:
        problem = self._problem or f"no answer within {self._limit_s:g} s"
        if not self._reachable.is_set():
            self.lose(problem)
        if in_doubt:
            raise OutcomeUnknown(
                f"{self.host.name}: {problem}: it may have been done, or not",
                cure="poll the host once it answers again",
            ) from None
        raise HostUnreachable(self.host.name, problem) from None

    async def _draw_fate(self) -> Fate:
        faults = self._world.faults(self.definition)
        if not (faults.hang or faults.drop):
            return Fate()
        seed = self.definition.seed
        chance, side = await self._files.change(
            self._file, lambda world: (world.draw(seed), world.draw(seed))
        )
        if chance >= faults.hang + faults.drop:
            return Fate()
        return Fate(side < 0.5, side >= 0.5, drops=chance >= faults.hang)

    async def _fall_silent(self, fate: Fate) -> NoReturn:
        if fate.drops:
            self.lose("the connection was lost")
        await asyncio.sleep(self._limit_s)
        raise TimeoutError

    async def _change(self, work: Callable[[World], T]) -> T:
        async with self._request(mutates=True):
            return await self._files.change(self._file, work)

    async def _look(self) -> World:
        async with self._request(mutates=False):
            return await self._files.read(self._file)

    # --- looking ----------------------------------------------------------------------

    async def facts(self) -> HostFacts:
        await self._look()
        return HostFacts(
            hostname=self.host.name,
            host_uuid=host_uuid(self.host.id),
            hypervisor="sim",
            version="1",
            memory_bytes=self.definition.memory_bytes,
            cpus=self.definition.cpus,
            kinds=self.definition.kinds,
        )

    async def guests(self) -> Sequence[Guest]:
        world = await self._look()
        return [guest.as_guest() for guest in world.guests.values()]

    async def guest(self, uuid: str) -> Guest | None:
        found = (await self._look()).guests.get(uuid)
        return None if found is None else found.as_guest()

    @asynccontextmanager
    async def events(self) -> AsyncIterator[AsyncIterator[GuestEvent]]:
        async with self._listening(self._look) as events:
            yield events

    @asynccontextmanager
    async def _listening(self, look: Callable[[], Awaitable[World]]) -> AsyncIterator[Listener]:
        with self._watcher.watching(self):
            listener = Listener(self.host.name, await look())
            self._listeners.add(listener)
            try:
                # The watcher may have seen something later while we waited for our look; and
                # who was not on the list when the connection went must hear of it here.
                listener.feed(self._world)
                if self._problem is not None:
                    listener.fail(self._problem)
                yield listener
            finally:
                self._listeners.discard(listener)

    # --- verbs ------------------------------------------------------------------------

    async def define(self, spec: GuestSpec) -> None:
        await self._change(lambda world: world.define(spec, self.definition.kinds))

    async def undefine(self, uuid: str) -> None:
        await self._change(lambda world: world.undefine(uuid))

    async def start(self, uuid: str) -> None:
        memory_bytes, boot_s = self.definition.memory_bytes, self.definition.boot_s
        async with self._request(mutates=True, takes_s=boot_s):
            # It runs from here on, whether or not we live to see it boot.
            if await self._files.change(self._file, lambda w: w.start(uuid, memory_bytes)):
                await asyncio.sleep(boot_s)

    async def shutdown(self, uuid: str, *, grace_s: float) -> None:
        def ask(world: World) -> bool:
            off_at = time.time() + self.definition.shutdown_s
            return world.ask_to_power_off(uuid, off_at, deaf=world.is_deaf(self.definition))

        # Listen before asking: it may power off before we come to wait.
        async with self._listening(lambda: self._files.read(self._file)) as events:
            if not await self._change(ask):
                return
            try:
                async with asyncio.timeout(grace_s):
                    async for event in events:
                        if event.uuid == uuid and event.power not in ACTIVE:
                            return
            except TimeoutError:
                pass
            except HostUnreachable as error:
                raise _in_doubt(error) from error
        try:
            guest = await self.guest(uuid)
        except HostUnreachable as error:
            raise _in_doubt(error) from error
        if guest is not None and guest.power in ACTIVE:
            raise ShutdownTimeout(guest.name, grace_s)

    async def stop(self, uuid: str) -> None:
        await self._change(lambda world: world.power_off(uuid, "stopped"))

    async def reboot(self, uuid: str) -> None:
        await self._change(lambda w: w.reboot(uuid, deaf=w.is_deaf(self.definition)))

    async def pause(self, uuid: str) -> None:
        await self._change(lambda world: world.set_power(uuid, Power.PAUSED, "paused"))

    async def resume(self, uuid: str) -> None:
        await self._change(lambda world: world.set_power(uuid, Power.RUNNING, "resumed"))

    # --- live migration ---------------------------------------------------------------

    async def migrate(
        self,
        uuid: str,
        target: Session,
        *,
        progress: Callable[[MigrationProgress], None] | None = None,
    ) -> None:
        if not isinstance(target, SimSession):
            raise InvalidInput("target", target.host.name, "a simulated host")
        if target.file.path == self._file.path:
            raise JobFailed(f"the guest is on {self.host.name} already")
        takes_s = self.definition.migration_s
        async with self._request(mutates=True, takes_s=takes_s + 2 * target._limit_s):
            guest = (await self._files.read(self._file)).movable(uuid)
            (await target._look()).check_receives(guest, target.definition)
            for step in range(COPY_STEPS + 1):
                if progress is not None:
                    done = guest.memory_bytes * step // COPY_STEPS
                    left = guest.memory_bytes - done
                    progress(MigrationProgress(done, left, guest.memory_bytes))
                if step < COPY_STEPS:
                    await asyncio.sleep(takes_s / COPY_STEPS)
            await target._look()
            await self._switch(target, uuid)

    async def _switch(self, target: SimSession, uuid: str) -> None:
        # Taken once: by the thread just before it moves the guest, or by who cancels us.
        decision = threading.Lock()
        moving = asyncio.create_task(
            self._hand_over_to(target, uuid, lambda: decision.acquire(blocking=False))
        )
        try:
            await asyncio.shield(moving)
        except asyncio.CancelledError:
            if not decision.acquire(blocking=False):
                # Too late to prevent it, so it is taken back. Whoever cancels us again waits
                # for that as well: it takes milliseconds.
                back = asyncio.create_task(self._take_back(moving, target, uuid))
                while not back.done():
                    with suppress(asyncio.CancelledError):
                        await asyncio.wait([back])
                back.result()
            moving.cancel()
            raise

    async def _take_back(self, moving: asyncio.Task[None], target: SimSession, uuid: str) -> None:
        await asyncio.wait([moving])
        if moving.exception() is not None:
            return  # it stayed
        try:
            await target._hand_over_to(self, uuid, lambda: True)
        except VagothError as error:
            raise OutcomeUnknown(
                f"{self.host.name}: the migration to {target.host.name} was cancelled when the"
                f" guest had moved, and it could not be taken back: {error}"
            ) from error

    async def _hand_over_to(
        self, target: SimSession, uuid: str, is_wanted: Callable[[], bool]
    ) -> None:
        def check(here: World, there: World) -> None:
            there.check_receives(here.movable(uuid), target.definition)

        await self._files.patiently(
            self._file,
            lambda: hand_over(self._file, target.file, uuid, check=check, is_wanted=is_wanted),
        )


def host_uuid(host_id: str) -> str:
    """The UUID that a simulated host says it has."""
    return str(uuidlib.uuid5(uuidlib.NAMESPACE_OID, f"vagoth simulated host {host_id}"))


def _in_doubt(error: HostUnreachable) -> OutcomeUnknown:
    return OutcomeUnknown(
        f"{error.host}: {error.problem}: the guest was asked to shut down, and may have",
        cure="poll the host once it answers again",
    )
