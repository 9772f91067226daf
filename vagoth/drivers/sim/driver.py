"""The driver of simulated hosts: opens sessions to them and checks them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import ClassVar

import msgspec

from vagoth.definition import convert
from vagoth.drivers.base import Capability, Check, Driver, DriverSettings, Host
from vagoth.drivers.sim.definition import Down, SimHostDefinition
from vagoth.drivers.sim.files import Files, StateFile, path_of
from vagoth.drivers.sim.host import SimHost
from vagoth.drivers.sim.session import SimSession
from vagoth.drivers.sim.watch import POLL_S, Watcher
from vagoth.drivers.sim.world import World
from vagoth.errors import HostError, HostUnreachable, HypervisorUnavailable, InvalidInput

_CURE = "it is simulated: its definition's down and faults say so, or somebody cut it off"


class SimDriver(Driver):
    """Simulated hosts, whose guests are lines in a file of ``settings.state_dir``.

    They have no way to any real host. All processes of one store meet the same hosts, and
    these stay as they were between one process and the next.
    """

    name: ClassVar[str] = "sim"
    capabilities: ClassVar[frozenset[Capability]] = frozenset(Capability)
    HostDefinition: ClassVar[type[msgspec.Struct]] = SimHostDefinition

    def __init__(self, settings: DriverSettings) -> None:
        super().__init__(settings)
        self._files = Files()
        self._watcher = Watcher(self._files)

    def world(self, host_id: str) -> SimHost:
        """The host of that node id as somebody with a console on it would treat it."""
        return SimHost(self.settings.state_dir, host_id)

    async def open(self, host: Host) -> SimSession:
        definition = convert(host.definition, SimHostDefinition)
        file = StateFile(path_of(self.settings.state_dir, host.id), host.name)
        limit_s = self.settings.connect_timeout_s
        try:
            async with asyncio.timeout(limit_s):
                world = await self._connect(host, definition, file)
        except TimeoutError:
            problem = f"no answer within {limit_s:g} s"
            raise HostUnreachable(host.name, problem, cure=_CURE) from None
        return SimSession(
            host,
            definition,
            file,
            world,
            settings=self.settings,
            files=self._files,
            watcher=self._watcher,
        )

    async def _connect(self, host: Host, definition: SimHostDefinition, file: StateFile) -> World:
        await asyncio.sleep(definition.latency_s)

        def knock(world: World) -> tuple[World, float]:
            world.name = host.name
            faults = world.faults(definition)
            return world, world.draw(definition.seed) if faults else 1.0

        world, chance = await self._files.change(file, knock)
        while world.down(definition) is Down.HANG:
            await asyncio.sleep(POLL_S)
            world = await self._files.read(file)
        faults = world.faults(definition)
        if world.down(definition) is Down.REFUSE or chance < faults.refuse:
            raise HostUnreachable(host.name, "connection refused", cure=_CURE)
        if chance < faults.refuse + faults.hang:
            await asyncio.sleep(self.settings.connect_timeout_s)
            raise TimeoutError
        if chance < faults.refuse + faults.hang + faults.drop:
            raise HostUnreachable(host.name, "the connection was lost", cure=_CURE)
        return world

    async def check(self, host: Host) -> Sequence[Check]:
        names = ["definition", "reachable", "hypervisor", "kinds"]
        done: list[Check] = []

        def passed(detail: str) -> None:
            done.append(Check(names[len(done)], True, detail))

        try:
            definition = convert(host.definition, SimHostDefinition)
            passed("every field is as it should be")
            began = time.monotonic()
            async with await self.open(host) as session:
                passed(f"connected in {(time.monotonic() - began) * 1000:.0f} ms")
                facts, guests = await session.facts(), await session.guests()
                passed(f"{facts.hypervisor} {facts.version}, guests: {len(guests)}")
                passed(", ".join(definition.kinds))
        except (HostError, InvalidInput) as error:
            if isinstance(error, HypervisorUnavailable) and len(done) == 1:
                passed("connected")
            problem = error.problem if isinstance(error, HostError) else error.message
            done.append(Check(names[len(done)], False, problem, error.cure))
        done += [Check(name, None, "not tried") for name in names[len(done) :]]
        return done

    async def close(self) -> None:
        await self._watcher.close()
        self._files.close()
