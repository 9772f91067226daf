"""Where benchmarks run: a temporary folder, an environment of its own, and the lab's hosts."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import vagoth
from tests.lab import Lab
from vagoth.model import Put, Record, State

FOLDERS = {
    "HOME": "home",
    "XDG_DATA_HOME": "data",
    "XDG_STATE_HOME": "state",
    "XDG_CONFIG_HOME": "config",
    "XDG_CACHE_HOME": "cache",
    # Written by the round that does not count: else a Python that may write none, or finds those
    # of an older source, compiles in each round.
    "PYTHONPYCACHEPREFIX": "bytecode",
}
DROPPED = ("PYTHON", "VAGOTH_", "SSH_AUTH_SOCK")
VMS_PER_HOST = 50


@dataclass(frozen=True)
class Options:
    """How much there is of everything.

    ``budget_s`` bounds each benchmark, in seconds.
    """

    hosts: int = 3
    guests: int = 10
    nodes: int = 1000
    rounds: int = 15
    budget_s: float = 35.0


@dataclass(frozen=True)
class Setting:
    """What a benchmark is given. ``lab`` is a lab that is up, or why there is none."""

    folder: Path
    options: Options
    lab: Lab | str

    @property
    def env(self) -> Mapping[str, str]:
        """An environment whose home, configuration and bytecode are in the temporary folder."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(DROPPED)}
        return kept | {name: str(self.folder / place) for name, place in FOLDERS.items()}

    @property
    def vagoth(self) -> Sequence[str]:
        """The command as it is installed, beside the Python that runs this."""
        installed = Path(sys.executable).with_name("vagoth")
        return [str(installed)] if installed.exists() else [sys.executable, "-m", VAGOTH_MODULE]

    def virsh_uris(self, lab: Lab) -> list[str]:
        """URIs of the lab's hosts for virsh.

        libvirt's own SSH transport takes neither another ssh_config nor known_hosts, but another
        command, which gives ssh the lab's.
        """
        wrapper = self.folder / "ssh"
        if not wrapper.exists():
            wrapper.write_text(f'#!/bin/sh\nexec ssh -F {lab.ssh_config} "$@"\n')
            wrapper.chmod(0o700)
        return [f"qemu+ssh://{host.name}/system?command={wrapper}" for host in lab.hosts]


VAGOTH_MODULE = "vagoth"


async def full_store(path: Path, nodes: int) -> None:
    """Write a store of that many nodes, as a fleet has them: a host for each fifty VMs."""
    hosts = [
        _record(f"hv{n}", "hv", State.UP, definition={"driver": "libvirt", "ssh": f"root@hv{n}"})
        for n in range(1, max(1, nodes // (VMS_PER_HOST + 1)) + 1)
    ]
    vms = [
        _record(
            f"web{n}",
            "vm",
            State.RUNNING if n % 5 else State.STOPPED,
            parent=hosts[n % len(hosts)].id,
            tags={"env": "prod" if n % 3 else "test", "rack": f"b{n % 7}"},
            keys=(f"asset:{4000 + n}", f"ip:10.0.{n // 250}.{n % 250 + 1}"),
            definition={"memory": "512MiB", "vcpus": 2, "nics": [{"network": "lan"}]},
        )
        for n in range(nodes - len(hosts))
    ]
    async with vagoth.connect(store=path) as cluster:
        changes = [Put(record) for record in (*hosts, *vms)]
        await cluster.registry.commit(changes, expect={put.record.id: None for put in changes})


def _record(name: str, type: str, state: State, **fields: object) -> Record:
    return Record(id=f"id-{name}", name=name, type=type, state=state, **fields)  # type: ignore[arg-type]


async def lab_config(setting: Setting, lab: Lab) -> Path:
    """A vagoth.toml and a store for the lab's hosts, each with guests defined on it, and off."""
    path = setting.folder / "lab.toml"
    store = setting.folder / "lab.json"
    path.write_text(f'[store]\npath = "{store}"\n[ssh]\nconfig = "{lab.ssh_config}"\n')
    boot = {"kernel": str(lab.kernel), "initrd": str(lab.initrd), "cmdline": lab.cmdline}
    definition = {"memory": "96MiB", "kind": "qemu", "boot": boot}
    async with vagoth.connect(path) as cluster:

        async def fill(host: str) -> None:
            await cluster.new(host, type="hv", definition={"driver": "libvirt", "ssh": host})
            for n in range(1, setting.options.guests + 1):
                vm = await cluster.new(f"{host}-web{n}", definition=definition)
                await vm.define(on=host)

        await asyncio.gather(*(fill(host.name) for host in lab.hosts))
    return path
