"""Real sshd, libvirtd and QEMU: the life of a VM, hosts in trouble, controllers killed."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tinydb import TinyDB

import vagoth
from tests.lab import Lab
from vagoth import Cluster, Commit, State
from vagoth.nodes.vm import VM

pytestmark = [pytest.mark.lab, pytest.mark.libvirt]


@pytest.fixture
def config(lab: Lab, store: Path, tmp_path: Path) -> Path:
    """A vagoth.toml for the lab's hosts, with little patience."""
    path = tmp_path / "vagoth.toml"
    path.write_text(
        f'[store]\npath = "{store}"\n[ssh]\nconfig = "{lab.ssh_config}"\n'
        "[hosts]\nconnect_timeout_s = 3\n[monitor]\ninterval_s = 3600\n"
    )
    return path


@pytest.fixture
async def cluster(lab: Lab, config: Path) -> AsyncIterator[Cluster]:
    """The three hosts of the lab, never seen; afterwards no guest is left on them."""
    async with vagoth.connect(config) as cluster:
        for host in lab.hosts:
            await cluster.new(
                host.name, type="hv", definition={"driver": "libvirt", "ssh": host.name}
            )
        yield cluster
    for host in lab.hosts:
        for name in (await host.virsh("list", "--name")).split():
            await host.virsh("destroy", name)
        for name in (await host.virsh("list", "--all", "--name")).split():
            await host.virsh("undefine", name)


async def new_vm(cluster: Cluster, lab: Lab, name: str, **more: object) -> VM:
    """A VM that boots the lab's kernel under emulation."""
    boot = {"kernel": str(lab.kernel), "initrd": str(lab.initrd), "cmdline": lab.cmdline}
    return await cluster.new(name, definition={"memory": 128, "kind": "qemu", "boot": boot, **more})


async def running(lab: Lab, name: str) -> list[str]:
    """The hosts on which virsh says that the guest runs."""
    listed = {host.name: await host.virsh("list", "--name") for host in lab.hosts}
    return [host for host, names in listed.items() if name in names.split()]


async def seen(cluster: Cluster, wanted: str, node: str) -> list[Commit]:
    """Wait for a state to arrive by itself; return the commits until then."""
    commits = []
    async with asyncio.timeout(30), cluster.watch() as watch:
        while cluster[node].state != wanted:
            commits.append(await anext(watch))
    return commits


async def test_a_guest_boots_and_virsh_agrees(cluster: Cluster, lab: Lab) -> None:
    web = await new_vm(cluster, lab, "web1")
    await web.start()
    assert web.parent is not None
    assert await running(lab, "web1") == [web.parent.name]
    await lab[web.parent.name].wait_serial("web1", "BOOTED")
    await web.shutdown(grace_s=30)
    assert web.state == State.STOPPED
    assert await running(lab, "web1") == []
    await web.undefine()
    for host in lab.hosts:
        assert "web1" not in await host.virsh("list", "--all", "--name")
    await web.delete()
    assert "web1" not in cluster


async def test_what_is_done_behind_our_back_arrives_by_event(cluster: Cluster, lab: Lab) -> None:
    web = await new_vm(cluster, lab, "web1")
    await web.start(on="hv1")
    async with cluster.watch() as watch:
        await cluster.monitor.met()
        await lab["hv1"].virsh("destroy", "web1")
        async with asyncio.timeout(10):
            commit = await anext(watch)
            while commit.changes[0].record.name != "web1":
                commit = await anext(watch)
    assert [change.record.state for change in commit.changes] == [State.STOPPED]
    assert commit.source == "monitor"


async def test_a_guest_migrates_while_it_runs(cluster: Cluster, lab: Lab) -> None:
    web = await new_vm(cluster, lab, "web1")
    await web.start(on="hv1")
    await lab["hv1"].wait_serial("web1", "BOOTED")
    async with cluster.watch(follow=False) as watch:
        await web.migrate("hv2")
        async with asyncio.timeout(10):
            moves: list[Commit] = []
            while not moves or moves[-1].changes[0].record.state != State.RUNNING:
                moves.append(await anext(watch))
    assert await running(lab, "web1") == ["hv2"]
    assert "web1" not in await lab["hv1"].virsh("list", "--all", "--name")
    [moved] = [c for c in moves if "parent" in list(c.changes[0].fields())]
    assert web.parent == cluster["hv2"]
    assert moved.changes[0].record.state == State.RUNNING


async def test_a_host_that_is_cut_off_stops_nobody_and_comes_back_by_itself(
    cluster: Cluster, lab: Lab
) -> None:
    web = await new_vm(cluster, lab, "web1")
    await web.start(on="hv3")
    await cluster.poll()
    await lab["hv3"].cut()
    try:
        reports = await cluster.poll()
        assert [report.error is not None for report in reports] == [False, False, True]
        assert cluster["hv3"].state == State.UNREACHABLE
        assert web.state == State.UNKNOWN
        assert web.parent == cluster["hv3"]
        other = await new_vm(cluster, lab, "web2")
        with pytest.raises(vagoth.HostError) as caught:
            await other.start(on="hv3")
        assert caught.value.host == "hv3"
        assert (other.state, other.parent, other.intent) == (State.NEW, None, None)
    finally:
        await lab["hv3"].heal()
    await seen(cluster, State.UP, "hv3")
    await seen(cluster, State.RUNNING, "web1")
    assert await running(lab, "web1") == ["hv3"]


async def test_odd_names_reach_a_host_as_text_only(cluster: Cluster, lab: Lab) -> None:
    for name in ("$(reboot)", '<x>&"', "a'b;c", "--x"[2:] + "`id`"):
        web = await new_vm(cluster, lab, name)
        await web.start(on="hv1")
        assert name in (await lab["hv1"].virsh("list", "--name")).splitlines()
        await web.stop()
        await web.undefine()


async def test_a_kind_that_no_host_runs_names_one_that_would(cluster: Cluster, lab: Lab) -> None:
    await cluster.poll()
    if any("kvm" in (host.metadata["facts"]["kinds"]) for host in cluster.nodes(type="hv")):
        pytest.skip("these hosts run kvm, so nothing refuses it")
    web = await new_vm(cluster, lab, "web1", kind="kvm")
    with pytest.raises(vagoth.InvalidInput, match="set kind=qemu"):
        await web.start()
    with pytest.raises(vagoth.InvalidInput, match="set kind=qemu"):
        await web.start(on="hv1")


async def test_a_changed_host_key_is_refused_and_marks_the_host(cluster: Cluster, lab: Lab) -> None:
    await cluster.poll()
    await cluster.context.sessions.close()
    async with vagoth.connect(cluster.config.path) as fresh:
        kept = lab.known_hosts.read_text()
        await lab["hv2"].rotate_host_key()
        try:
            [report] = await fresh.poll(["hv2"])
            assert isinstance(report.error, vagoth.HostKeyError)
            assert report.error.cure
            assert fresh["hv2"].state == State.UNREACHABLE
            assert fresh["hv1"].state == State.UP
        finally:
            lines = [line for line in kept.splitlines() if "hv2" not in line]
            key = (await lab["hv2"].make_host_key()).split()[:2]
            names = next(line.split()[0] for line in kept.splitlines() if "hv2" in line)
            lab.known_hosts.write_text("\n".join([*lines, " ".join([names, *key])]) + "\n")


CONTROLLER = """
import asyncio, sys
import vagoth

async def main(config, verb, *arguments):
    async with vagoth.connect(config) as cluster:
        print("ready", flush=True)
        sys.stdin.readline()
        given = {"host": arguments[0]} if verb == "migrate" else {}
        job = cluster.vm("web1").submit(verb, **given)
        waiting = asyncio.ensure_future(job)
        step = ""
        while not waiting.done():
            if job.step != step:
                step = job.step
                print("step", step, flush=True)
            await asyncio.sleep(0)
        await waiting
        print("done", flush=True)

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.parametrize("delay_s", [0.0, 0.05, 0.15, 0.3])
@pytest.mark.parametrize("verb", ["start", "migrate", "undefine"])
async def test_a_controller_killed_half_way_leaves_what_the_next_verb_finishes(
    cluster: Cluster, lab: Lab, config: Path, verb: str, delay_s: float
) -> None:
    web = await new_vm(cluster, lab, "web1")
    if verb == "migrate":
        await web.start(on="hv1")
        await lab["hv1"].wait_serial("web1", "BOOTED")
    elif verb == "undefine":
        await web.define(on="hv1")
    else:
        await cluster.poll()
    controller = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", CONTROLLER, str(config), verb, "hv2"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert controller.stdin is not None
    assert controller.stdout is not None
    assert (await controller.stdout.readline()).strip() == b"ready"
    controller.stdin.write(b"go\n")
    await controller.stdin.drain()
    while not (await controller.stdout.readline()).startswith(b"step"):
        pass
    await asyncio.sleep(delay_s)
    if controller.returncode is None:
        os.kill(controller.pid, signal.SIGKILL)
    await controller.wait()
    await web.start()
    assert web.intent is None
    assert web.state == State.RUNNING
    assert web.parent is not None
    assert await running(lab, "web1") == [web.parent.name]
    defined = [h.name for h in lab.hosts if "web1" in await h.virsh("list", "--all", "--name")]
    assert defined == [web.parent.name]


RUNNER = """
import contextlib, io, json, sys
from vagoth.shell.main import command_line

for line in sys.stdin:
    output, errors = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        ended = command_line(json.loads(line))
    print(json.dumps([ended.code, output.getvalue(), errors.getvalue()]), flush=True)
"""


class CommandLine:
    """A process of its own that runs one ``vagoth`` command after another."""

    def __init__(self, config: Path, process: asyncio.subprocess.Process) -> None:
        self._config = config
        self._process = process

    async def __call__(self, *words: str) -> tuple[int, str, str]:
        """Run a command: exit code, standard output, standard error."""
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(["--config", str(self._config), *words]).encode() + b"\n")
        await process.stdin.drain()
        code, output, errors = json.loads(await process.stdout.readline())
        return code, output, errors


@contextlib.asynccontextmanager
async def command_line(config: Path) -> AsyncIterator[CommandLine]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", RUNNER), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        yield CommandLine(config, process)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        await process.wait()


@pytest.mark.timeout(300)
async def test_two_processes_that_start_one_vm_never_start_it_twice(
    cluster: Cluster, lab: Lab, config: Path
) -> None:
    web = await new_vm(cluster, lab, "web1")
    await cluster.poll()
    codes: list[tuple[int, int]] = []
    async with command_line(config) as one, command_line(config) as other:
        for number in range(50):
            wanted = [(), ()] if number % 2 else [("--on", "hv1"), ("--on", "hv2")]
            ended = await asyncio.gather(
                *(run("start", "web1", *on) for run, on in zip((one, other), wanted, strict=True))
            )
            where = await running(lab, "web1")
            assert len(where) == 1, ended
            assert [web.parent.name if web.parent else None, web.state] == [*where, State.RUNNING]
            codes.append((ended[0][0], ended[1][0]))
            for code, _, errors in ended:
                assert code in (0, 4), errors
                if code == 4:
                    assert "process" in errors or where[0] in errors, errors
            await web.stop()
            await web.undefine()
    assert any(0 in pair for pair in codes)
    assert all(0 in pair for pair in codes), "each time somebody must have won"
    assert any(4 in pair for pair in codes), "the two never met: this showed nothing"


async def test_the_command_line_does_it_all_with_exit_codes_to_go_by(
    lab: Lab, config: Path, store: Path
) -> None:
    async with command_line(config) as vagoth_:
        for host in lab.hosts:
            code, _, _ = await vagoth_(
                "new", host.name, "--type", "hv", "driver=libvirt", f"ssh={host.name}"
            )
            assert code == 0
        boot = [f"boot.kernel={lab.kernel}", f"boot.initrd={lab.initrd}"]
        cmdline = f"boot.cmdline={lab.cmdline}"
        code, _, errors = await vagoth_("new", "web1", "memory=128", "kind=qemu", *boot, cmdline)
        assert (code, errors) == (0, "")
        assert (await vagoth_("start", "web1"))[0] == 0
        code, output, _ = await vagoth_("list", "--json", "--state", "running")
        [listed] = json.loads(output)
        assert await running(lab, "web1") == [listed["parent"]]
        target = next(host for host in lab.hosts if host.name != listed["parent"])
        assert (await vagoth_("migrate", "web1", target.name))[0] == 0
        assert await running(lab, "web1") == [target.name]
        await target.cut()
        try:
            code, output, errors = await vagoth_("poll")
            assert code == 5
            assert errors.count(target.name) == 1, errors
            code, _, errors = await vagoth_("stop", "web1")
            assert code == 5
            assert target.name in errors
        finally:
            await target.heal()
        assert (await vagoth_("poll"))[0] == 0
        assert (await vagoth_("stop", "web1"))[0] == 0
        assert (await vagoth_("rename", "web1", "www1"))[0] == 0
        assert (await vagoth_("undefine", "www1"))[0] == 0
        assert (await vagoth_("delete", "www1"))[0] == 0
        assert (await vagoth_("info", "web1"))[0] == 3
        for host in lab.hosts:
            assert (await host.virsh("list", "--all", "--name")).split() == []
        with TinyDB(store, access_mode="r") as db:
            names = {document["name"] for document in db.table("nodes").all()}
        assert names == {host.name for host in lab.hosts}
