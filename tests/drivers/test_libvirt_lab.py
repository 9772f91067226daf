"""The libvirt driver over real hosts: what it promises, with QEMU, sshd and a network between."""

from __future__ import annotations

import asyncio
import re
import uuid as uuidlib
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace

import msgspec
import pytest

from tests.drivers.conformance import Act, ActOn, DriverConformance, Outside, SpecFactory
from tests.lab import Lab, LabHost
from vagoth.definition import Boot, Disk, Kind, Nic, VMDefinition
from vagoth.drivers.base import Driver, DriverSettings, GuestSpec, Host, Power, Session
from vagoth.drivers.libvirt import LibvirtDriver
from vagoth.drivers.libvirt.xml import mac_for
from vagoth.errors import GuestNotFound, JobFailed

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


@pytest.fixture
async def sessions(lab: Lab) -> AsyncIterator[tuple[Session, Session]]:
    driver = LibvirtDriver(DriverSettings(lab.folder, ssh_config=lab.ssh_config))
    async with (
        await driver.open(lab_host(lab["hv1"])) as first,
        await driver.open(lab_host(lab["hv2"])) as second,
    ):
        yield first, second


async def test_a_guest_has_what_its_definition_says_and_moves_with_it(
    lab: Lab, sessions: tuple[Session, Session]
) -> None:
    """It goes on where it was: its ticks are not counted from the start again."""
    here, there = sessions
    plain = lab_spec(lab)
    definition = msgspec.structs.replace(
        plain.definition,
        memory="128MiB",
        vcpus=2,
        boot=Boot(str(lab.kernel), str(lab.initrd), f"{lab.cmdline} vagoth.tick"),
        nics=(Nic(network="lan", mac="52:54:00:00:00:07"), Nic(bridge="br0")),
    )
    spec = replace(plain, definition=definition)
    await here.define(spec)
    await here.start(spec.uuid)
    try:
        log = await lab["hv1"].wait_serial(spec.name, "TICK")
        assert "cpus=2" in log
        assert f"nics=52:54:00:00:00:07 {mac_for(spec.uuid, 1)}" in log
        await here.migrate(spec.uuid, there)
        await lab["hv2"].wait_serial(spec.name, "TICK")
        ticks = [int(n) for n in re.findall(r"TICK (\d+)", lab["hv2"].serial_log(spec.name))]
        assert ticks[0] > 1
        await there.define(spec)
        xml = await lab["hv2"].virsh("dumpxml", "--inactive", spec.uuid)
        assert mac_for(spec.uuid, 1) in xml
    finally:
        await forget(spec.uuid, *sessions)


async def test_a_guest_is_not_moved_away_from_its_disk(
    lab: Lab, sessions: tuple[Session, Session]
) -> None:
    here, there = sessions
    plain = lab_spec(lab)
    volume = f"{plain.name}.raw"
    await lab["hv1"].virsh("vol-create-as", "default", volume, "64M", "--format", "raw")
    disk = Disk(path=f"/var/lib/libvirt/images/{volume}")
    spec = replace(plain, definition=msgspec.structs.replace(plain.definition, disks=(disk,)))
    await here.define(spec)
    await here.start(spec.uuid)
    try:
        log = await lab["hv1"].wait_serial(spec.name, "BOOTED")
        assert "disks_kib=vda:65536" in log
        with pytest.raises(JobFailed) as refused:
            await here.migrate(spec.uuid, there)
        assert "disk" in refused.value.cure
        guest = await here.guest(spec.uuid)
        assert guest is not None
        assert guest.power is Power.RUNNING
        assert await there.guest(spec.uuid) is None
    finally:
        await forget(spec.uuid, *sessions)
    assert volume in await lab["hv1"].virsh("vol-list", "default")


async def forget(uuid: str, *sessions: Session) -> None:
    for session in sessions:
        with suppress(GuestNotFound):
            await session.stop(uuid)
        await session.undefine(uuid)


async def test_a_volume_of_a_pool_is_a_disk(lab: Lab, sessions: tuple[Session, Session]) -> None:
    here, _ = sessions
    plain = lab_spec(lab)
    volume = f"{plain.name}.qcow2"
    await lab["hv1"].virsh("vol-create-as", "default", volume, "32M", "--format", "qcow2")
    disk = Disk(pool="default", volume=volume, format="qcow2")
    spec = replace(plain, definition=msgspec.structs.replace(plain.definition, disks=(disk,)))
    await here.define(spec)
    await here.start(spec.uuid)
    log = await lab["hv1"].wait_serial(spec.name, "BOOTED")
    await here.stop(spec.uuid)
    await here.undefine(spec.uuid)
    assert "disks_kib=vda:32768" in log


async def test_a_disk_that_is_not_there_is_refused_in_libvirts_words(
    lab: Lab, sessions: tuple[Session, Session]
) -> None:
    here, _ = sessions
    plain = lab_spec(lab)
    disk = Disk(path="/var/lib/libvirt/images/missing & more.raw")
    spec = replace(plain, definition=msgspec.structs.replace(plain.definition, disks=(disk,)))
    await here.define(spec)
    with pytest.raises(JobFailed, match="missing & more"):
        await here.start(spec.uuid)
    guest = await here.guest(spec.uuid)
    await here.undefine(spec.uuid)
    assert guest is not None
    assert guest.power is Power.OFF


async def test_a_paused_guest_is_not_asked_to_shut_down(
    lab: Lab, sessions: tuple[Session, Session]
) -> None:
    """It would not hear it, and a wait for it would be in vain."""
    here, _ = sessions
    spec = lab_spec(lab)
    await here.define(spec)
    await here.start(spec.uuid)
    await here.pause(spec.uuid)
    with pytest.raises(JobFailed, match="paused") as refused:
        await here.shutdown(spec.uuid, grace_s=30)
    await forget(spec.uuid, here)
    assert "resume" in refused.value.cure


async def test_many_may_ask_one_guest_to_shut_down(
    lab: Lab, sessions: tuple[Session, Session]
) -> None:
    """Whoever asks while it is on its way down waits with the others."""
    here, _ = sessions
    spec = lab_spec(lab)
    await here.define(spec)
    await here.start(spec.uuid)
    await lab["hv1"].wait_serial(spec.name, "BOOTED")
    asked = [asyncio.ensure_future(here.shutdown(spec.uuid, grace_s=30))]
    while not all(one.done() for one in asked):
        asked.append(asyncio.ensure_future(here.shutdown(spec.uuid, grace_s=30)))
        await asyncio.sleep(0.01)
    assert [one.exception() for one in asked if one.exception() is not None] == []
    await forget(spec.uuid, here)
