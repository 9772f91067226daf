"""One host of libvirt's, connected."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import TypeVar

from vagoth.drivers.base import (
    Guest,
    GuestEvent,
    GuestSpec,
    Host,
    HostFacts,
    MigrationProgress,
    Power,
    Session,
)
from vagoth.drivers.libvirt import looking, migration, verbs
from vagoth.drivers.libvirt.capabilities import Capabilities
from vagoth.drivers.libvirt.events import Lifecycle
from vagoth.drivers.libvirt.link import Link
from vagoth.drivers.libvirt.sizes import KnownSizes
from vagoth.drivers.libvirt.xml import check_spec
from vagoth.errors import HostUnreachable, OutcomeUnknown, ShutdownTimeout

T = TypeVar("T")


class LibvirtSession(Session):
    """See :class:`~vagoth.drivers.base.Session`; a :class:`LibvirtDriver` opens it."""

    def __init__(self, host: Host, link: Link) -> None:
        super().__init__(host)
        self.link = link
        self._capabilities: Capabilities | None = None
        self._facts: HostFacts | None = None
        self._sizes = KnownSizes()
        self._lifecycle = Lifecycle(link, defined=self._sizes.forget)
        # Each migration keeps a worker for as long as it takes: some must be left for the rest.
        self.migrations = asyncio.Semaphore(2)

    @property
    def is_open(self) -> bool:
        return self.link.is_open

    async def closed(self) -> None:
        await self.link.ended()

    async def close(self) -> None:
        await self.link.close()

    async def capabilities(self) -> Capabilities:
        """What the host can run, asked for once."""
        if self._capabilities is None:
            self._capabilities = await self.link.call(
                "its capabilities", lambda connection, call: looking.capabilities(connection)
            )
        return self._capabilities

    async def facts(self) -> HostFacts:
        if (facts := self._facts) is not None:
            return await self.link.call("its facts", lambda c, _: looking.resized(c, facts))
        known = await self.capabilities()
        self._facts = await self.link.call("its facts", lambda c, _: looking.facts(c, known))
        return self._facts

    async def guests(self) -> Sequence[Guest]:
        # Sizes stay known for as long as we hear of it when one changes.
        await self._lifecycle.register()
        known, generation = self._sizes.now()
        found = await self.link.call("its guests", lambda c, _: looking.guests(c, known))
        self._sizes.learn(found, generation)
        return found

    async def guest(self, uuid: str) -> Guest | None:
        # Asked in full: what others have just defined may not have been told yet.
        _, generation = self._sizes.now()
        found = await self.link.call(f"guest {uuid}", lambda c, _: looking.guest(c, uuid))
        if found is not None:
            self._sizes.learn([found], generation)
        return found

    async def define(self, spec: GuestSpec) -> None:
        check_spec(spec)
        known = await self.capabilities()
        try:
            await self.link.call(
                f"the definition of {spec.name}",
                lambda connection, call: verbs.define(connection, call, spec, known),
                uuid=spec.uuid,
                xml=spec.definition.xml,
            )
        finally:
            # The event that says so may come later than the next look.
            self._sizes.forget(spec.uuid)

    async def undefine(self, uuid: str) -> None:
        await self.link.call(
            f"the removal of {uuid}",
            lambda connection, call: verbs.undefine(connection, call, uuid),
            uuid=uuid,
        )

    async def start(self, uuid: str) -> None:
        await self.link.call(
            f"the start of {uuid}",
            lambda connection, call: verbs.start(connection, call, uuid),
            uuid=uuid,
        )

    async def shutdown(self, uuid: str, *, grace_s: float) -> None:
        # Listen before looking: a guest may power off between the look and the wait.
        async with self._lifecycle.listen() as events:
            name = await self.link.call(
                f"the shutdown of {uuid}",
                lambda connection, call: verbs.ask_shutdown(connection, call, uuid),
                uuid=uuid,
            )
            if name is None:
                return
            try:
                async with asyncio.timeout(grace_s):
                    await _off(events, uuid)
                return
            except TimeoutError:
                pass
            except HostUnreachable as error:
                raise OutcomeUnknown(
                    f"{error.message}, so whether {name} has shut down is not known",
                    cure="look again when the host answers",
                ) from error
        last = await self.guest(uuid)
        if last is not None and last.power in (Power.RUNNING, Power.PAUSED):
            raise ShutdownTimeout(name, grace_s)

    async def stop(self, uuid: str) -> None:
        await self.link.call(
            f"the stop of {uuid}",
            lambda connection, call: verbs.stop(connection, call, uuid),
            uuid=uuid,
        )

    async def reboot(self, uuid: str) -> None:
        await self.link.call(
            f"the reboot of {uuid}",
            lambda connection, call: verbs.reboot(connection, call, uuid),
            uuid=uuid,
        )

    async def pause(self, uuid: str) -> None:
        await self.link.call(
            f"the pause of {uuid}",
            lambda connection, call: verbs.pause(connection, call, uuid),
            uuid=uuid,
        )

    async def resume(self, uuid: str) -> None:
        await self.link.call(
            f"the resumption of {uuid}",
            lambda connection, call: verbs.resume(connection, call, uuid),
            uuid=uuid,
        )

    async def migrate(
        self,
        uuid: str,
        target: Session,
        *,
        progress: Callable[[MigrationProgress], None] | None = None,
    ) -> None:
        if not isinstance(target, LibvirtSession):
            raise TypeError("a guest migrates between sessions of one driver")
        await migration.migrate(self, target, uuid, progress)

    @contextlib.asynccontextmanager
    async def _events(self) -> AsyncIterator[AsyncIterator[GuestEvent]]:
        async with self._lifecycle.listen() as stream:
            yield stream

    def events(self) -> AbstractAsyncContextManager[AsyncIterator[GuestEvent]]:
        return self._events()


async def _off(events: AsyncIterator[GuestEvent], uuid: str) -> None:
    async for event in events:
        if event.uuid == uuid and event.power in (Power.OFF, Power.CRASHED, None):
            return
