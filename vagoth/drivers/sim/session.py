"""What can be asked of a simulated host."""

from __future__ import annotations

import asyncio
import threading
import time
import uuid as uuidlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress

from vagoth.drivers.base import (
    Guest,
    GuestEvent,
    GuestSpec,
    HostFacts,
    MigrationProgress,
    Power,
    Session,
)
from vagoth.drivers.sim.connection import Connection
from vagoth.drivers.sim.files import hand_over
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


class SimSession(Connection):
    """A simulated host, connected."""

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

    # --- verbs ------------------------------------------------------------------------

    async def define(self, spec: GuestSpec) -> None:
        await self._change(lambda world: world.define(spec, self.definition.kinds))

    async def undefine(self, uuid: str) -> None:
        await self._change(lambda world: world.undefine(uuid))

    async def start(self, uuid: str) -> None:
        memory_bytes, boot_s = self.definition.memory_bytes, self.definition.boot_s
        async with self._request(mutates=True, takes_s=boot_s):
            # It runs from here on, whether or not we live to see it boot.
            if await self._apply(lambda world: world.start(uuid, memory_bytes)):
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
        # Cancelled, we may never ask it what went wrong.
        moving.add_done_callback(lambda task: task.cancelled() or task.exception())
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
            self._check_link(here)
            target._check_link(there)
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
