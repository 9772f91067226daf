"""N hosts on one machine, with a network among them and a controller outside."""

import asyncio
from ipaddress import ip_address
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.lab import cgroups, files, guest, process, runs, settings
from tests.lab.errors import LabError
from tests.lab.host import LabHost
from tests.lab.namespace import Namespace
from tests.lab.requirements import kvm_is_broken, lab_unavailable

MAX_HOSTS = 100


class Lab:
    """Hosts named hv1, hv2, …, each with its own kernel namespaces, sshd and libvirtd.

    ::

        async with Lab(3) as lab:
            await lab.hosts[0].virsh("list")

    The hosts and this process, the controller, reach each other by IP over a switch, itself in a
    namespace: nothing of it is visible to the machine but one interface. No host has a way out.
    When the process that made the lab ends, in whatever way, all that runs in the lab ends too.

    Nothing in it is bound to an event loop: it may be entered on one and used on another.
    """

    def __init__(self, count: int = 3, *, prefix: str | None = None) -> None:
        """Plan a lab.

        :param count: how many hosts
        :param prefix: its name, unique on this machine; made up if not given
        """
        if not 1 <= count <= MAX_HOSTS:
            raise LabError(f"count {count}: expected 1 to {MAX_HOSTS} hosts")
        self.count = count
        self.hosts: list[LabHost] = []
        self._prefix = prefix
        self._run: runs.Run | None = None
        self._switch: Namespace | None = None

    def __getitem__(self, name: str) -> LabHost:
        """The host of that name."""
        for host in self.hosts:
            if host.name == name:
                return host
        raise KeyError(name)

    @property
    def folder(self) -> Path:
        """Where the lab's files lie, readable by root alone, until it is closed."""
        if self._run is None:
            raise LabError("the lab is not up")
        return self._run.folder

    @property
    def prefix(self) -> str:
        """The lab's name."""
        return self.folder.name

    @property
    def address(self) -> str:
        """The controller's own address in the lab's network."""
        if self._run is None:
            raise LabError("the lab is not up")
        return str(self._run.subnet.network_address + 1)

    @property
    def ssh_config(self) -> Path:
        """A client configuration with each host's name and address as an alias."""
        return self.folder / "client/ssh_config"

    @property
    def known_hosts(self) -> Path:
        """The hosts' keys, as they were when the lab came up."""
        return self.folder / "client/known_hosts"

    @property
    def key(self) -> Path:
        """The private key that root on every host accepts."""
        return self.folder / "client/id_ed25519"

    @property
    def kernel(self) -> Path:
        """The guest's kernel, at the same path here and on every host."""
        return guest.kernel()

    @property
    def initrd(self) -> Path:
        """The guest's initial RAM disk, at the same path here and on every host."""
        return guest.initrd()

    @property
    def cmdline(self) -> str:
        """The kernel command line with which the guest speaks at its serial port."""
        return guest.CMDLINE

    @property
    def runs_containers(self) -> bool:
        """Whether hosts have the cgroups without which libvirt starts no LXC container."""
        return bool(cgroups.hierarchies())

    async def __aenter__(self) -> Self:
        """Bring the lab up.

        :raises LabError: it could not be; the text says which host, and how its log ends
        """
        reason = await asyncio.to_thread(lab_unavailable)
        if reason is not None:
            raise LabError(reason)
        try:
            await self._bring_up()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Take the lab down."""
        await self.close()

    async def close(self) -> None:
        """End all that runs in the lab and remove its files; harmless when repeated."""
        await asyncio.shield(asyncio.to_thread(self._close))

    def _close(self) -> None:
        for host in self.hosts:
            host.close()
        if self._switch is not None:
            self._switch.close()
        if self._run is not None:
            self._run.close()
            self._run = None

    async def _bring_up(self) -> None:
        await asyncio.to_thread(self._settle)
        hides_kvm = await asyncio.to_thread(kvm_is_broken)
        await asyncio.to_thread(guest.initrd)
        await self._write_client_files()
        hosts_file = self.folder / "hosts"
        hosts_file.write_text(settings.hosts_file(self._addresses()))
        (self.folder / "shared").mkdir()
        await self._open_switch()
        macs = self._macs()

        async def bring_up(host: LabHost) -> None:
            groups = await asyncio.to_thread(cgroups.create, self.prefix, host.name)
            mounts = files.mounts(
                host.state,
                groups=groups,
                shared=self.folder / "shared",
                hosts_file=hosts_file,
                hides_kvm=hides_kvm,
            )
            await host.open(mounts, groups.values())
            others = {address: mac for address, mac in macs.items() if address != host.address}
            await host.connect(macs[host.address], others)
            await host.start()

        await process.together(*(bring_up(host) for host in self.hosts))

    def _settle(self) -> None:
        """Take a name and a network, after what dead runs held is free again."""
        runs.clean()
        self._run = run = runs.Run(self._prefix)
        network = run.subnet.network_address
        self._switch = Namespace("switch", run.folder / "switch.log")
        self.hosts = [
            LabHost(f"hv{n}", str(network + 10 + n), run.folder / f"hv{n}", self._switch)
            for n in range(1, self.count + 1)
        ]

    def _addresses(self) -> dict[str, str]:
        return {host.name: host.address for host in self.hosts}

    def _macs(self) -> dict[str, str]:
        """A fixed MAC for each address of the lab, the controller's first."""
        return {
            address: "02:56:" + ":".join(f"{byte:02x}" for byte in ip_address(address).packed)
            for address in (self.address, *self._addresses().values())
        }

    async def _write_client_files(self) -> None:
        """Make the controller's key and what goes with it, and give both to the hosts as well."""
        client = self.folder / "client"
        client.mkdir(mode=0o700)
        await process.run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.key))
        known: dict[str, str] = {}

        async def write(host: LabHost) -> None:
            host.write_files()
            known[host.name] = await host.make_host_key()

        await process.together(*(write(host) for host in self.hosts))
        lines = [f"{host.name},{host.address} {known[host.name]}\n" for host in self.hosts]
        texts = {
            "known_hosts": "".join(lines),
            "ssh_config": settings.ssh_config(
                self._addresses(), str(self.key), str(self.known_hosts)
            ),
        }
        for name, text in texts.items():
            path = client / name
            path.touch(mode=0o600)
            path.write_text(text)
        for host in self.hosts:
            files.write_home(host.state, self.key, self.known_hosts)

    async def _open_switch(self) -> None:
        assert self._run is not None
        assert self._switch is not None
        await asyncio.to_thread(
            self._switch.open, [("none", "/", "private"), ("proc", "/proc", "proc")]
        )
        await self._switch.ip("link add name lan type bridge forward_delay 0", "link set lan up")
        own, *others = self._macs().items()
        interface = self._run.interface
        commands = [
            f"link add name {interface} address {own[1]} type veth peer name controller "
            f"netns {self._switch.pid}",
            f"link set dev {interface} up",
            f"address add {own[0]}/{self._run.subnet.prefixlen} dev {interface}",
            *(
                f"neighbour replace {to} lladdr {mac} dev {interface} nud permanent"
                for to, mac in others
            ),
        ]
        await process.run("ip", "-batch", "-", stdin="".join(f"{line}\n" for line in commands))
        await self._switch.ip("link set dev controller master lan up")
