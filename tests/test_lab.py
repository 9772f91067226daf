"""What the lab promises to the tests that are run on it."""

import asyncio
import contextlib
import os
import re
import secrets
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import pytest_asyncio

from tests.lab import CommandFailed, Lab, LabError, LabHost, lab_unavailable, process, runs

REPOSITORY = Path(__file__).parents[1]

pytestmark = [
    pytest.mark.lab,
    pytest.mark.timeout(120),
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(lab_unavailable() is not None, reason=str(lab_unavailable())),
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def own_lab() -> AsyncIterator[Lab]:
    """A lab of this module's own, as its tests break hosts."""
    async with Lab(3) as lab:
        yield lab


def domain_xml(lab: Lab, name: str, *, cmdline: str = "") -> str:
    """A guest that boots the lab's kernel."""
    return f"""
        <domain type="qemu">
          <name>{name}</name>
          <memory unit="MiB">96</memory>
          <os>
            <type arch="x86_64" machine="pc">hvm</type>
            <kernel>{lab.kernel}</kernel>
            <initrd>{lab.initrd}</initrd>
            <cmdline>{lab.cmdline} {cmdline}</cmdline>
          </os>
          <features><acpi/></features>
          <cpu mode="custom" match="exact"><model fallback="forbid">qemu64</model></cpu>
          <devices>
            <interface type="network">
              <mac address="52:54:00:00:00:01"/><source network="lan"/><model type="virtio"/>
            </interface>
            <serial type="pty"><log file="/var/log/libvirt/qemu/{name}-serial.log"/></serial>
          </devices>
        </domain>
    """


async def until(is_so: Callable[[], Awaitable[bool]], timeout_s: float = 10) -> None:
    """Wait for something to become so, and fail if it does not."""
    deadline = time.monotonic() + timeout_s
    while not await is_so():
        assert time.monotonic() < deadline, f"not so after {timeout_s} s"
        await asyncio.sleep(0.02)


async def ssh(lab: Lab, host: LabHost, *command: str, timeout_s: float = 10) -> str:
    """Run a command by a real ssh from the controller, and return all it printed."""
    process = await asyncio.create_subprocess_exec(
        *("ssh", "-F", str(lab.ssh_config), "-o", "BatchMode=yes", host.name, *command),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        output, _ = await asyncio.wait_for(process.communicate(), timeout_s)
    except TimeoutError:
        process.kill()
        await process.wait()
        raise
    return output.decode()


async def test_every_host_has_its_own_libvirt_name_and_uuid(own_lab: Lab) -> None:
    """Two libvirtds that take themselves for one host refuse to migrate."""
    seen = set()
    for host in own_lab.hosts:
        assert (await host.virsh("list", "--all", "--name")).split() == []
        capabilities = await host.virsh("capabilities")
        seen.add(re.findall("<uuid>(.*)</uuid>", capabilities)[0])
        assert (await host.virsh("hostname")).strip() == host.hostname == host.name
    assert len(seen) == 3


async def test_hosts_are_reached_by_ssh_and_reach_each_other(own_lab: Lab) -> None:
    """The controller uses the alias; a host the name of another, as a migration does."""
    for host in own_lab.hosts:
        assert (await ssh(own_lab, host, "hostname")).strip() == host.hostname
    first, second, _ = own_lab.hosts
    assert (await first.run("ssh", second.name, "hostname")).stdout == "hv2\n"


async def test_keys_and_configuration_are_private(own_lab: Lab) -> None:
    """ssh refuses a key that others can read, and so should we."""
    for path in (own_lab.key, own_lab.ssh_config, own_lab.known_hosts):
        assert path.stat().st_mode & 0o777 == 0o600
    assert own_lab.folder.stat().st_mode & 0o777 == 0o700


async def test_a_guest_boots_is_migrated_alive_and_shuts_down(own_lab: Lab) -> None:
    """The whole life of a guest: if this works, whatever fails elsewhere is not the lab's doing."""
    source, target, _ = own_lab.hosts
    await source.virsh(
        "define", "/dev/stdin", stdin=domain_xml(own_lab, "guest", cmdline="vagoth.tick")
    )
    await source.virsh("start", "guest")
    log = await source.wait_serial("guest", "BOOTED")
    assert "nics=52:54:00:00:00:01" in log
    await source.virsh(
        *("migrate", "--live", "--persistent", "--undefinesource"),
        *("guest", f"qemu+ssh://{target.name}/system"),
    )
    assert (await source.virsh("list", "--all", "--name")).split() == []
    assert (await target.virsh("list", "--name")).split() == ["guest"]
    # It went on counting where it was, and did not boot anew.
    assert "BOOTED" not in await target.wait_serial("guest", "TICK")

    await target.virsh("shutdown", "guest")
    await target.wait_serial("guest", "POWEROFF")

    async def is_off() -> bool:
        return (await target.virsh("domstate", "guest")).strip() == "shut off"

    await until(is_off)
    await target.virsh("undefine", "guest")


async def test_a_container_starts_and_stops(own_lab: Lab) -> None:
    """The other kind of guest."""
    if not own_lab.runs_containers:
        pytest.skip("containers need cgroups of version 1 on this machine")
    host = own_lab.hosts[0]
    uri = "lxc:///system"
    root = await host.make_container_root("box")
    xml = f"""
        <domain type="lxc">
          <name>box</name>
          <memory unit="MiB">32</memory>
          <os><type>exe</type><init>/init</init></os>
          <devices>
            <filesystem type="mount"><source dir="{root}"/><target dir="/"/></filesystem>
            <console type="pty"/>
          </devices>
        </domain>
    """
    await host.virsh("create", "/dev/stdin", uri=uri, stdin=xml)
    assert (await host.virsh("list", "--name", uri=uri)).split() == ["box"]
    await host.virsh("shutdown", "--mode", "signal", "box", uri=uri)

    async def is_gone() -> bool:
        return not (await host.virsh("list", "--name", uri=uri)).split()

    await until(is_gone)


async def test_a_cut_host_is_a_black_hole_until_healed(own_lab: Lab) -> None:
    """Silence is what a driver's timeouts are for; a refusal would never test them."""
    host = own_lab.hosts[1]
    await host.cut()
    try:
        began = time.monotonic()
        with pytest.raises(TimeoutError):
            # Longer than the kernel takes to call a neighbour unreachable.
            await asyncio.wait_for(asyncio.open_connection(host.address, 22), 4.5)
        assert time.monotonic() - began >= 4.5
        assert (await host.run("hostname")).stdout == "hv2\n"
        assert "hv1" in await ssh(own_lab, own_lab.hosts[0], "hostname")
    finally:
        await host.heal()
    assert "hv2" in await ssh(own_lab, host, "hostname")


async def test_a_session_outlives_a_short_cut(own_lab: Lab) -> None:
    """A cut drops packets, not connections."""
    host = own_lab.hosts[1]
    session = asyncio.create_task(ssh(own_lab, host, "echo up; sleep 1; echo still up"))
    await asyncio.sleep(0.5)
    await host.cut()
    await asyncio.sleep(1)
    await host.heal()
    assert "still up" in await session


async def test_a_stopped_libvirtd_refuses_and_a_paused_one_hangs(own_lab: Lab) -> None:
    """The two ways in which a host can be there while its libvirt is not."""
    host = own_lab.hosts[2]
    await host.stop_libvirtd()
    with pytest.raises(CommandFailed, match=r"Connection refused|No such file"):
        await host.virsh("list")
    await host.start_libvirtd()
    await host.pause_libvirtd()
    with pytest.raises(CommandFailed, match="no end after"):
        await host.virsh("list", timeout_s=1)
    await host.resume_libvirtd()
    await host.virsh("list")


async def test_guests_outlive_their_libvirtd(own_lab: Lab) -> None:
    """As on a real host whose packages are upgraded."""
    host = own_lab.hosts[2]
    await host.virsh("create", "/dev/stdin", stdin=domain_xml(own_lab, "survivor"))
    await host.wait_serial("survivor", "BOOTED")
    await host.stop_libvirtd()
    await host.start_libvirtd()
    assert (await host.virsh("list", "--name")).split() == ["survivor"]
    try:
        await host.virsh("destroy", "survivor")
    except CommandFailed as error:
        log = await host.run("sh", "-c", "tail -n 30 /var/log/libvirt/qemu/survivor.log")
        raise AssertionError(f"{error}\nits log ends: {log.stdout}") from error


async def test_a_stopped_sshd_refuses_and_comes_back(own_lab: Lab) -> None:
    """Sessions that are open live on; only new ones are refused."""
    host = own_lab.hosts[2]
    session = asyncio.create_task(ssh(own_lab, host, "sleep 1; echo still up"))
    await asyncio.sleep(0.5)
    await host.stop_sshd()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(host.address, 22)
    assert "still up" in await session
    await host.start_sshd()
    assert "hv3" in await ssh(own_lab, host, "hostname")


async def test_ssh_sessions_can_be_killed(own_lab: Lab) -> None:
    """A connection that dies under its user."""
    host = own_lab.hosts[2]
    session = asyncio.create_task(ssh(own_lab, host, "sleep 30"))
    await asyncio.sleep(0.5)
    await host.kill_ssh_sessions()
    await asyncio.wait_for(session, 5)
    assert "hv3" in await ssh(own_lab, host, "hostname")


async def test_a_changed_host_key_is_noticed() -> None:
    """A lab of its own: the host is not trusted again."""
    async with Lab(1) as lab:
        (host,) = lab.hosts
        await host.rotate_host_key()
        assert "REMOTE HOST IDENTIFICATION HAS CHANGED" in await ssh(lab, host, "hostname")


async def test_socket_forwarding_can_be_refused(own_lab: Lab, tmp_path: Path) -> None:
    """Then ssh works, and libvirt through it does not."""
    host = own_lab.hosts[2]

    async def virsh_through_ssh(socket: Path) -> CompletedProcess[str]:
        forward = await asyncio.create_subprocess_exec(
            *("ssh", "-F", str(own_lab.ssh_config), "-N", host.name),
            *("-L", f"{socket}:/run/libvirt/libvirt-sock"),
            stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            await until(lambda: asyncio.to_thread(socket.exists))
            uri = f"qemu:///system?socket={socket}"
            return await process.run("virsh", "-c", uri, "hostname", check=False)
        finally:
            forward.kill()
            await forward.wait()

    assert "hv3" in (await virsh_through_ssh(tmp_path / "allowed")).stdout
    await host.refuse_socket_forwarding()
    try:
        assert (await virsh_through_ssh(tmp_path / "refused")).returncode != 0
        assert "hv3" in await ssh(own_lab, host, "hostname")
    finally:
        await host.refuse_socket_forwarding(refuses=False)
    assert "hv3" in (await virsh_through_ssh(tmp_path / "again")).stdout


async def test_two_labs_coexist(own_lab: Lab) -> None:
    """Two developers, or a test run beside one by hand."""
    async with Lab(1) as other:
        assert other.hosts[0].address not in {host.address for host in own_lab.hosts}
        assert other.prefix != own_lab.prefix
        for lab in (own_lab, other):
            assert "hv1" in await ssh(lab, lab.hosts[0], "hostname")
        with pytest.raises(LabError, match="exists"):
            async with Lab(1, prefix=other.prefix):
                pass
        assert other.prefix not in await asyncio.to_thread(runs.clean)
    assert "hv1" in await ssh(own_lab, own_lab.hosts[0], "hostname")


async def test_nothing_is_left_of_a_killed_owner() -> None:
    """Neither what ran on its hosts nor their networks, and after a cleaning no files either."""
    prefix = f"k{secrets.token_hex(3)}"
    owner = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.lab", "up", "1", "--prefix", prefix),
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert owner.stdout is not None
    async with asyncio.timeout(30):
        while b"Ctrl-C" not in (line := await owner.stdout.readline()):
            assert line, "the lab did not come up"
    folder = runs.ROOT / prefix
    config = folder / "client/ssh_config"
    xml = domain_xml(Lab(), "orphan")
    await process.run(
        *("ssh", "-F", str(config), "hv1", "virsh", "create", "/dev/stdin"), stdin=xml
    )
    spaces = await asyncio.to_thread(namespaces_below, owner.pid)
    programs = await asyncio.to_thread(programs_in, spaces)
    assert {"sshd", "libvirtd", "qemu-system-x86"} <= programs

    owner.kill()
    await owner.wait()
    await process.run(sys.executable, "-m", "tests.lab", "clean", cwd=REPOSITORY)

    async def is_over() -> bool:
        return not await asyncio.to_thread(programs_in, spaces)

    await until(is_over)
    assert not await asyncio.to_thread(folder.exists)
    interfaces = await process.run("ip", "-json", "link")
    assert f"vg-{prefix}" not in interfaces.stdout


async def test_a_command_is_told_of_the_lab_and_its_status_returned() -> None:
    """What benchmarks build on."""
    done = await process.run(
        *(sys.executable, "-m", "tests.lab", "run", "1", "--", "sh", "-c"),
        'ssh -F "$LAB_SSH_CONFIG" $LAB_HOSTS ls "$LAB_KERNEL" "$LAB_INITRD" && exit 7',
        check=False,
        cwd=REPOSITORY,
    )
    assert done.returncode == 7
    assert "vmlinuz" in done.stdout


def namespaces_below(owner: int) -> set[str]:
    """The process namespaces, other than our own, in which descendants of a process live."""
    children: dict[int, list[int]] = {}
    for pid in all_pids():
        with contextlib.suppress(OSError):
            after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2]
            children.setdefault(int(after_name.split()[1]), []).append(pid)
    found, queue = set(), [owner]
    while queue:
        pid = queue.pop()
        queue += children.get(pid, [])
        found.add(os.readlink(f"/proc/{pid}/ns/pid"))
    return found - {os.readlink("/proc/self/ns/pid")}


def programs_in(spaces: set[str]) -> set[str]:
    """The names of all programs that run in process namespaces."""
    programs = set()
    for pid in all_pids():
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/{pid}/ns/pid") in spaces:
                programs.add(Path(f"/proc/{pid}/comm").read_text().strip())
    return programs


def all_pids() -> list[int]:
    """Every process of the machine."""
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
