"""What can be wrong with a real host, or go wrong with it, and what is then said."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.drivers.test_libvirt_lab import lab_host, lab_spec
from tests.lab import Lab, LabHost
from vagoth.drivers.base import Check, DriverSettings, Host, Power, Session
from vagoth.drivers.libvirt import LibvirtDriver
from vagoth.errors import (
    HostError,
    HostKeyError,
    HostUnreachable,
    HypervisorUnavailable,
    InvalidInput,
    JobFailed,
    OutcomeUnknown,
)

pytest.importorskip("libvirt")

pytestmark = [pytest.mark.libvirt, pytest.mark.lab]

CHECKS = [
    *("address", "port", "host key", "login", "libvirtd", "socket", "socket forwarding"),
    *("hypervisor", "kinds"),
]


@pytest.fixture
def settings(lab: Lab, tmp_path: Path) -> DriverSettings:
    return DriverSettings(
        tmp_path, ssh_config=lab.ssh_config, connect_timeout_s=10, call_timeout_s=20
    )


@pytest.fixture
def driver(settings: DriverSettings) -> LibvirtDriver:
    return LibvirtDriver(settings)


@pytest.fixture
def host(lab: Lab) -> LabHost:
    """The host that is done harm to."""
    return lab["hv3"]


Opened = Callable[..., Awaitable[Session]]


@pytest.fixture
async def opened(settings: DriverSettings, host: LabHost) -> AsyncIterator[Opened]:
    """``await opened(call_timeout_s=1)``: a session that the test may lose."""
    async with contextlib.AsyncExitStack() as stack:

        async def opened(**changed: Any) -> Session:
            driver = LibvirtDriver(replace(settings, **changed))
            return await stack.enter_async_context(await driver.open(lab_host(host)))

        yield opened


async def refusal(driver: LibvirtDriver, host: Host) -> tuple[HostError, Check]:
    """What opening fails with, and the check that says the same: all before it hold, and what
    comes after it is hidden by it."""
    with pytest.raises(HostError) as refused:
        await driver.open(host)
    checks = await driver.check(host)
    assert [check.name for check in checks] == CHECKS
    failed = [check.ok for check in checks].index(False)
    assert all(check.ok for check in checks[:failed])
    assert all(check.ok is None for check in checks[failed + 1 :])
    assert refused.value.cure
    assert checks[failed].cure == refused.value.cure
    return refused.value, checks[failed]


# --- what keeps a host from being opened --------------------------------------------------


async def test_an_unknown_host_key(settings: DriverSettings, host: LabHost, tmp_path: Path) -> None:
    (tmp_path / "known_hosts").touch()
    driver = LibvirtDriver(replace(settings, known_hosts=tmp_path / "known_hosts"))
    error, check = await refusal(driver, lab_host(host))
    assert (type(error), check.name) == (HostKeyError, "host key")


async def test_a_user_who_is_not_let_in(driver: LibvirtDriver, host: LabHost) -> None:
    error, check = await refusal(driver, at(host, ssh=f"nobody@{host.name}"))
    assert check.name == "login"
    assert "nobody" in error.problem


async def test_a_closed_port(driver: LibvirtDriver, host: LabHost) -> None:
    error, check = await refusal(driver, at(host, ssh=f"{host.name}:9"))
    assert (type(error), check.name) == (HostUnreachable, "port")
    assert "refuses" in error.problem


async def test_a_stopped_sshd(driver: LibvirtDriver, host: LabHost) -> None:
    await host.stop_sshd()
    try:
        error, check = await refusal(driver, lab_host(host))
    finally:
        await host.start_sshd()
    assert (type(error), check.name) == (HostUnreachable, "port")


async def test_a_host_that_is_cut_off(settings: DriverSettings, host: LabHost) -> None:
    driver = LibvirtDriver(replace(settings, connect_timeout_s=1))
    await host.cut()
    try:
        began = time.monotonic()
        error, check = await refusal(driver, lab_host(host))
        assert time.monotonic() - began < 4
    finally:
        await host.heal()
    assert (type(error), check.name) == (HostUnreachable, "port")
    assert "within 1 s" in error.problem


async def test_a_host_without_libvirtd(driver: LibvirtDriver, host: LabHost) -> None:
    await host.stop_libvirtd()
    try:
        error, check = await refusal(driver, lab_host(host))
    finally:
        await host.start_libvirtd()
    assert (type(error), check.name) == (HypervisorUnavailable, "libvirtd")
    assert "libvirt" in error.cure


async def test_a_libvirtd_that_died(driver: LibvirtDriver, host: LabHost) -> None:
    """Its socket is left over."""
    pid = (await host.run("cat", "/run/libvirtd.pid")).stdout.strip()
    await host.run("kill", "-9", pid)
    try:
        error, check = await refusal(driver, lab_host(host))
    finally:
        await host.start_libvirtd()
    assert (type(error), check.name) == (HypervisorUnavailable, "libvirtd")
    assert "not running" in error.problem


async def test_a_libvirtd_that_hangs(settings: DriverSettings, host: LabHost) -> None:
    driver = LibvirtDriver(replace(settings, connect_timeout_s=1.5))
    await host.pause_libvirtd()
    try:
        error, check = await refusal(driver, lab_host(host))
    finally:
        await host.resume_libvirtd()
    assert (type(error), check.name) == (HypervisorUnavailable, "hypervisor")
    assert "says nothing" in error.problem


@pytest.fixture
async def operator(lab: Lab, host: LabHost) -> AsyncIterator[str]:
    """A user of the host who is not root."""
    passwd = (await host.run("cat", "/etc/passwd")).stdout
    line = "operator:x:1500:100::/tmp/operator:/bin/sh\n"
    key = (await host.run("cat", f"{Path.home()}/.ssh/authorized_keys", check=False)).stdout
    key = key or lab.key.with_suffix(".pub").read_text()
    await host.run("tee", "/tmp/passwd", stdin=passwd + line)
    await host.run("mkdir", "-p", "/tmp/operator/.ssh")
    await host.run("tee", "/tmp/operator/.ssh/authorized_keys", stdin=key)
    await host.run("chown", "-R", "1500:100", "/tmp/operator")
    await host.run("chmod", "-R", "go=", "/tmp/operator")
    await host.run("mount", "--bind", "/tmp/passwd", "/etc/passwd")
    yield "operator"
    await host.run("umount", "/etc/passwd")


async def test_a_socket_that_is_closed_to_the_user(
    driver: LibvirtDriver, host: LabHost, operator: str
) -> None:
    socket = "/run/libvirt/libvirt-sock"
    mode = (await host.run("stat", "-c", "%a", socket)).stdout.strip()
    await host.run("chmod", "770", socket)
    try:
        error, check = await refusal(driver, at(host, ssh=f"{operator}@{host.name}"))
    finally:
        await host.run("chmod", mode, socket)
    assert (type(error), check.name) == (HypervisorUnavailable, "socket")
    assert "usermod --append --groups libvirt operator" in error.cure


async def test_a_user_who_may_manage_guests_need_not_be_root(
    driver: LibvirtDriver, host: LabHost, operator: str
) -> None:
    async with await driver.open(at(host, ssh=f"{operator}@{host.name}")) as session:
        assert isinstance(await session.guests(), list)


async def test_an_sshd_that_forwards_no_sockets(driver: LibvirtDriver, host: LabHost) -> None:
    await host.refuse_socket_forwarding()
    try:
        error, check = await refusal(driver, lab_host(host))
    finally:
        await host.refuse_socket_forwarding(refuses=False)
    assert (type(error), check.name) == (HypervisorUnavailable, "socket forwarding")
    assert "AllowStreamLocalForwarding" in error.cure


@pytest.mark.parametrize("uri", ["qemu:///bogus", "nonesuch:///system"])
async def test_a_wrong_uri(driver: LibvirtDriver, host: LabHost, uri: str) -> None:
    error, check = await refusal(driver, at(host, uri=uri))
    assert (type(error), check.name) == (HypervisorUnavailable, "hypervisor")
    assert uri in error.problem


async def test_a_wrong_socket(driver: LibvirtDriver, host: LabHost) -> None:
    error, check = await refusal(driver, at(host, socket="/run/$(reboot) nowhere"))
    assert (type(error), check.name) == (HypervisorUnavailable, "libvirtd")
    assert "/run/$(reboot) nowhere" in error.problem


def at(host: LabHost, **definition: str) -> Host:
    return Host("id", host.name, {"driver": "libvirt", "ssh": host.name, **definition})


# --- what is lost in mid-call ---------------------------------------------------------------


async def test_a_host_cut_off_is_unreachable_in_the_time_of_a_call(
    opened: Opened, host: LabHost
) -> None:
    session = await opened(call_timeout_s=1)
    await host.cut()
    try:
        began = time.monotonic()
        with pytest.raises(HostUnreachable):
            await session.guests()
        assert time.monotonic() - began < 3
        assert not session.is_open
        await session.close()
    finally:
        await host.heal()


@pytest.mark.timeout(60)
async def test_a_host_cut_off_is_noticed_though_nobody_asks(opened: Opened, host: LabHost) -> None:
    session = await opened()
    async with asyncio.timeout(40), session.events() as events:
        await host.cut()
        try:
            with pytest.raises(HostUnreachable):
                await anext(events)
        finally:
            await host.heal()


async def test_a_libvirtd_that_hangs_in_a_look_is_unreachable(
    opened: Opened, host: LabHost
) -> None:
    session = await opened(call_timeout_s=1)
    await session.guests()
    await host.pause_libvirtd()
    try:
        looks = [asyncio.ensure_future(session.guests()) for _ in range(8)]
        done, _ = await asyncio.wait(looks, timeout=5)
        assert len(done) == 8
        assert {type(look.exception()) for look in looks} == {HostUnreachable}
        await session.closed()
    finally:
        await host.resume_libvirtd()
    second = await opened()
    assert isinstance(await second.guests(), list)


async def break_a_start(
    lab: Lab, host: LabHost, session: Session, harm: Callable[[], Awaitable[None]]
) -> tuple[BaseException | None, str]:
    """Do ``harm`` while a guest is being started, and return what its start ended with."""
    spec = lab_spec(lab)
    await session.define(spec)
    starting = asyncio.ensure_future(session.start(spec.uuid))
    while not starting.done():
        found = await host.run("pgrep", "-f", f"guest={spec.name}", check=False)
        if found.returncode == 0:
            break
    await harm()
    await asyncio.wait([starting])
    return starting.exception(), spec.uuid


@pytest.mark.parametrize("harm", ["hang", "kill"])
async def test_a_start_whose_answer_is_lost_is_in_doubt(
    lab: Lab, opened: Opened, host: LabHost, harm: str
) -> None:
    """libvirtd hangs, or dies, when QEMU runs already and the answer is not given yet."""

    async def kill() -> None:
        pid = (await host.run("cat", "/run/libvirtd.pid")).stdout.strip()
        await host.run("kill", "-9", pid)

    for _ in range(5):
        session = await opened(call_timeout_s=3)
        try:
            error, uuid = await break_a_start(
                lab, host, session, host.pause_libvirtd if harm == "hang" else kill
            )
        finally:
            await (host.resume_libvirtd() if harm == "hang" else host.start_libvirtd())
        second = await opened()
        await second.stop(uuid)
        await second.undefine(uuid)
        if error is not None:
            break
    assert type(error) is OutcomeUnknown
    assert "start" in error.message


@pytest.mark.timeout(120)
async def test_a_migration_whose_target_is_cut_off_leaves_the_guest_or_a_doubt(
    lab: Lab, opened: Opened, driver: LibvirtDriver, host: LabHost
) -> None:
    target = await opened(call_timeout_s=3)
    async with await driver.open(lab_host(lab["hv2"])) as source:
        spec = lab_spec(lab)
        spec = replace(spec, definition=with_cmdline(spec.definition, "vagoth.dirty=200"))
        await source.define(spec)
        await source.start(spec.uuid)
        await lab["hv2"].wait_serial(spec.name, "BOOTED")
        await lab["hv2"].virsh("migrate-setspeed", spec.uuid, "1")
        under_way = asyncio.Event()
        moving = asyncio.ensure_future(
            source.migrate(spec.uuid, target, progress=lambda _: under_way.set())
        )
        await under_way.wait()
        await host.cut()
        try:
            await asyncio.wait([moving], timeout=90)
            error = moving.exception()
        finally:
            await host.heal()
        assert isinstance(error, OutcomeUnknown | JobFailed)
        guest = await source.guest(spec.uuid)
        assert guest is not None
        if isinstance(error, JobFailed):
            assert guest.power is Power.RUNNING
        await source.stop(spec.uuid)
        await source.undefine(spec.uuid)
    second = await opened()
    with contextlib.suppress(JobFailed):
        await second.stop(spec.uuid)
    await second.undefine(spec.uuid)


def with_cmdline(definition: Any, words: str) -> Any:
    import msgspec

    boot = msgspec.structs.replace(definition.boot, cmdline=f"{definition.boot.cmdline} {words}")
    return msgspec.structs.replace(definition, boot=boot)


# --- and what is not ------------------------------------------------------------------------


async def test_nothing_is_left_behind(
    driver: LibvirtDriver, host: LabHost, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    async with await driver.open(lab_host(host)):
        pass
    files = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        async with await driver.open(lab_host(host)) as session, session.events():
            await asyncio.gather(*(session.guests() for _ in range(10)))
            # What a kill would leave behind is gone as soon as libvirt is connected.
            assert list(tmp_path.glob("vagoth-*")) == []
    assert list(tmp_path.glob("vagoth-*")) == []
    assert not any(thread.name == "vagoth-ssh" for thread in threading.enumerate())
    assert len(os.listdir("/proc/self/fd")) <= files + 2


async def test_the_loop_goes_on_while_hosts_are_slow(
    lab: Lab, driver: LibvirtDriver, host: LabHost
) -> None:
    longest = 0.0

    async def tick() -> None:
        nonlocal longest
        while True:
            began = time.monotonic()
            await asyncio.sleep(0.01)
            longest = max(longest, time.monotonic() - began)

    spec = lab_spec(lab)
    # What is imported only now would count.
    async with await driver.open(lab_host(host)):
        pass
    ticking = asyncio.ensure_future(tick())
    async with await driver.open(lab_host(host)) as session:
        await session.define(spec)
        await session.start(spec.uuid)
        await asyncio.gather(*(session.guests() for _ in range(20)))
        await session.stop(spec.uuid)
        await session.undefine(spec.uuid)
    ticking.cancel()
    # It would be 200 ms and more, were the start of a guest awaited on it.
    assert longest < 0.15


async def test_libvirts_own_simulation_is_reached_by_ssh_too(
    driver: LibvirtDriver, host: LabHost
) -> None:
    async with await driver.open(at(host, uri="test:///default")) as session:
        assert [guest.name for guest in await session.guests()] == ["test"]
        assert (await session.facts()).hypervisor == "test"


async def test_a_kind_that_the_host_does_not_run_is_refused(
    lab: Lab, driver: LibvirtDriver, host: LabHost
) -> None:
    from vagoth.definition import Kind, VMDefinition

    spec = replace(lab_spec(lab), definition=VMDefinition(memory=64, kind=Kind.KVM))
    async with await driver.open(lab_host(host)) as session:
        if Kind.KVM in (await session.facts()).kinds:
            pytest.skip("this machine runs kvm")
        with pytest.raises(InvalidInput, match="kind"):
            await session.define(spec)


async def test_a_guest_set_to_start_by_itself_is_unset_when_defined(
    lab: Lab, driver: LibvirtDriver, host: LabHost
) -> None:
    spec = lab_spec(lab)
    async with await driver.open(lab_host(host)) as session:
        await session.define(spec)
        await host.virsh("autostart", spec.uuid)
        before = await session.guest(spec.uuid)
        await session.define(spec)
        after = [guest for guest in await session.guests() if guest.uuid == spec.uuid]
        await session.undefine(spec.uuid)
    assert before is not None
    assert (before.autostart, after[0].autostart) == (True, False)


async def test_what_others_define_is_seen(lab: Lab, driver: LibvirtDriver, host: LabHost) -> None:
    """Sizes are remembered, and the host says when they change."""
    spec = lab_spec(lab)
    async with await driver.open(lab_host(host)) as session:
        await session.define(spec)
        await session.guests()
        xml = await host.virsh("dumpxml", "--inactive", spec.uuid)
        changed = re.sub(r"(<(memory|currentMemory) unit='KiB'>)\d+", r"\g<1>131072", xml)
        await host.virsh("define", "/dev/stdin", stdin=changed)
        guest = await session.guest(spec.uuid)
        await session.undefine(spec.uuid)
    assert guest is not None
    assert guest.memory_bytes == 128 * 1024**2


async def test_a_guest_that_its_host_does_not_keep_is_seen_to_go(
    lab: Lab, driver: LibvirtDriver, host: LabHost
) -> None:
    spec = lab_spec(lab)
    async with await driver.open(lab_host(host)) as session, session.events() as events:
        await session.define(spec)
        await session.start(spec.uuid)
        await host.virsh("undefine", spec.uuid)
        guest = await session.guest(spec.uuid)
        assert guest is not None
        assert (guest.power, guest.persistent) == (Power.RUNNING, False)
        await session.stop(spec.uuid)
        async with asyncio.timeout(10):
            while (event := await anext(events)).power is not None:
                pass
        assert event.uuid == spec.uuid
        assert await session.guest(spec.uuid) is None


async def test_a_process_ends_though_a_libvirtd_hangs(lab: Lab, host: LabHost) -> None:
    """Its call is in a thread that nobody can end; the interpreter does not wait for it."""
    script = """
import asyncio, pathlib, sys
from vagoth.drivers.base import DriverSettings, Host
from vagoth.drivers.libvirt import LibvirtDriver
async def main():
    driver = LibvirtDriver(
        DriverSettings(pathlib.Path("."), ssh_config=pathlib.Path(sys.argv[1]))
    )
    host = Host("h", "h", {"driver": "libvirt", "ssh": sys.argv[2]})
    session = await driver.open(host)
    print("open", flush=True)
    sys.stdin.readline()
    looks = [asyncio.ensure_future(session.guests()) for _ in range(8)]
    await asyncio.sleep(0.2)
asyncio.run(main())
"""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-X", "dev", "-c", script, str(lab.ssh_config), host.name),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert await process.stdout.readline() == b"open\n"
    await host.pause_libvirtd()
    try:
        async with asyncio.timeout(8):
            _, err = await process.communicate(b"\n")
    finally:
        await host.resume_libvirtd()
    assert process.returncode == 0
    assert b"Traceback" not in err
