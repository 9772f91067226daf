"""The libvirt driver over libvirt's own simulated host, in this process: no daemon, no network."""

from __future__ import annotations

import uuid as uuidlib
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.drivers.conformance import DriverConformance, SpecFactory
from vagoth.definition import MIB, Kind, VMDefinition
from vagoth.drivers.base import Capability, Driver, DriverSettings, GuestSpec, Host, Session
from vagoth.drivers.libvirt import LibvirtDriver

libvirt = pytest.importorskip("libvirt")

pytestmark = pytest.mark.libvirt

TEST_HOST = Host("h1", "here", {"driver": "libvirt", "uri": "test:///default"})


class SimulatedByLibvirt(LibvirtDriver):
    """libvirt's test driver moves no guests, and its hosts are on no network."""

    capabilities = LibvirtDriver.capabilities - {Capability.LIVE_MIGRATION}


def make_spec(
    *, name: str | None = None, memory: int | str | None = None, uuid: str | None = None
) -> GuestSpec:
    """A guest that needs nothing; with a name of its own, as all tests share one host."""
    uuid = uuid or str(uuidlib.uuid4())
    definition = VMDefinition(memory=memory or "64MiB", kind=Kind.QEMU)
    return GuestSpec(uuid, name or f"guest-{uuid[:8]}", f"id-{uuid[:8]}", definition)


@pytest.fixture
def settings(tmp_path: Path) -> DriverSettings:
    return DriverSettings(tmp_path, connect_timeout_s=5, call_timeout_s=5)


class TestOnLibvirtsSimulation(DriverConformance):
    @pytest.fixture
    async def driver(self, settings: DriverSettings) -> AsyncIterator[Driver]:
        driver = SimulatedByLibvirt(settings)
        yield driver
        await driver.close()

    @pytest.fixture
    def host(self) -> Host:
        return TEST_HOST

    @pytest.fixture
    async def session(self, driver: Driver, host: Host) -> AsyncIterator[Session]:
        async with await driver.open(host) as session:
            yield session

    @pytest.fixture
    def spec(self) -> SpecFactory:
        return make_spec


async def test_a_running_guest_is_renamed_when_it_is_next_off(settings: DriverSettings) -> None:
    """libvirt renames none that runs; what else its definition says is taken all the same."""
    made = make_spec()
    renamed = replace(
        make_spec(name=f"{made.name}-2", memory="96MiB", uuid=made.uuid), node_id=made.node_id
    )
    async with await LibvirtDriver(settings).open(TEST_HOST) as session:
        await session.define(made)
        await session.start(made.uuid)
        await session.define(renamed)
        running = await session.guest(made.uuid)
        await session.stop(made.uuid)
        await session.define(renamed)
        off = await session.guest(made.uuid)
        await session.undefine(made.uuid)
    assert running is not None
    assert off is not None
    assert (running.name, running.memory_bytes) == (made.name, 96 * MIB)
    assert (off.name, off.memory_bytes) == (renamed.name, 96 * MIB)
