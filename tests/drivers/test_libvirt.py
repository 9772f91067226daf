"""The libvirt driver over libvirt's own simulated host, in this process: no daemon, no network."""

from __future__ import annotations

import uuid as uuidlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.drivers.conformance import DriverConformance, SpecFactory
from vagoth.definition import Kind, VMDefinition
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
