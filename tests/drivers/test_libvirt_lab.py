"""The libvirt driver over real hosts: what it promises, with QEMU, sshd and a network between."""

from __future__ import annotations

import uuid as uuidlib
from collections.abc import AsyncIterator

import pytest

from tests.drivers.conformance import Act, ActOn, DriverConformance, Outside, SpecFactory
from tests.lab import Lab, LabHost
from vagoth.definition import Boot, Kind, VMDefinition
from vagoth.drivers.base import Driver, DriverSettings, GuestSpec, Host, Session
from vagoth.drivers.libvirt import LibvirtDriver

pytest.importorskip("libvirt")

pytestmark = [pytest.mark.libvirt, pytest.mark.lab]


def lab_host(host: LabHost) -> Host:
    return Host(f"id-{host.name}", host.name, {"driver": "libvirt", "ssh": host.name})


def lab_spec(lab: Lab, *, name: str | None = None, memory: int | str = "96MiB") -> GuestSpec:
    """A guest that boots in seconds, and says so at its serial port."""
    uuid = str(uuidlib.uuid4())
    definition = VMDefinition(
        memory=memory,
        kind=Kind.QEMU,
        boot=Boot(str(lab.kernel), str(lab.initrd), lab.cmdline),
    )
    return GuestSpec(uuid, name or f"guest-{uuid[:8]}", f"id-{uuid[:8]}", definition)


class DestroyedByVirsh:
    def __init__(self, host: LabHost) -> None:
        self._host = host

    async def destroy(self, uuid: str) -> None:
        await self._host.virsh("destroy", uuid)


class TestOnRealHosts(DriverConformance):
    bound_s = 60.0

    @pytest.fixture
    async def driver(self, lab: Lab, tmp_path: object) -> AsyncIterator[Driver]:
        driver = LibvirtDriver(DriverSettings(lab.folder, ssh_config=lab.ssh_config))
        yield driver
        await driver.close()

    @pytest.fixture
    def host(self, lab: Lab) -> Host:
        return lab_host(lab["hv1"])

    @pytest.fixture
    async def session(self, driver: Driver, host: Host) -> AsyncIterator[Session]:
        async with await driver.open(host) as session:
            yield session

    @pytest.fixture
    async def other(self, driver: Driver, lab: Lab) -> AsyncIterator[Session]:
        async with await driver.open(lab_host(lab["hv2"])) as session:
            yield session

    @pytest.fixture
    def names(self) -> dict[str, str]:
        return {}

    @pytest.fixture
    def spec(self, lab: Lab, names: dict[str, str]) -> SpecFactory:
        def spec(
            *, name: str | None = None, memory: int | str | None = None, uuid: str | None = None
        ) -> GuestSpec:
            made = lab_spec(lab, name=name, memory=memory or "96MiB")
            if uuid is not None:
                made = GuestSpec(uuid, name or f"guest-{uuid[:8]}", made.node_id, made.definition)
            names[made.uuid] = made.name
            return made

        return spec

    @pytest.fixture
    def outside(self, lab: Lab) -> Outside:
        return DestroyedByVirsh(lab["hv1"])

    @pytest.fixture
    def dropped(self, lab: Lab) -> Act:
        return lab["hv1"].kill_ssh_sessions

    @pytest.fixture
    def booted(self, lab: Lab, names: dict[str, str]) -> ActOn:
        async def booted(uuid: str) -> None:
            await lab["hv1"].wait_serial(names[uuid], "BOOTED")

        return booted

    @pytest.fixture
    def deafened(self) -> ActOn:
        async def deafened(uuid: str) -> None:
            """Its firmware and early kernel, which it has just entered, know no power button."""

        return deafened

    @pytest.fixture
    def grace_s(self) -> float:
        return 30.0
