"""One host of the lab: its files, its daemons, and what a test can do to it."""

import asyncio
import signal
import time
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from subprocess import CompletedProcess

from tests.lab import files, process, settings
from tests.lab.errors import CommandFailed, LabError, tail
from tests.lab.namespace import Mounts, Namespace

START_TIMEOUT_S = 20


@dataclass(frozen=True)
class Daemon:
    """How one of a host's daemons is started and found."""

    command: tuple[str, ...]
    pid_file: str
    log: str


LIBVIRTD = Daemon(
    ("/usr/sbin/libvirtd", "--daemon", "--pid-file", "/run/libvirtd.pid"),
    "/run/libvirtd.pid",
    "log/libvirt/libvirtd.log",
)
SSHD = Daemon(("/usr/sbin/sshd", "-E", "/var/log/sshd.log"), "/run/sshd.pid", "log/sshd.log")


class LabHost:
    """A host with its own network, processes, sshd and libvirtd; made by a ``Lab``.

    What is done to it stays until undone. Its files lie in ``state``, which the lab removes.
    """

    def __init__(self, name: str, address: str, state: Path, switch: Namespace) -> None:
        self.name = name
        self.hostname = name
        self.address = address
        self.state = state
        self.uuid = uuid.uuid4()
        self._switch = switch
        self._namespace = Namespace(name, state / "init.log")

    @property
    def ssh(self) -> str:
        """Where to reach it, as a definition has it."""
        return f"root@{self.address}"

    @property
    def pid(self) -> int:
        """The host's first process, for ``nsenter --target``."""
        return self._namespace.pid

    # What a test asks of a host.

    async def run(
        self, *argv: str, stdin: str | None = None, timeout_s: float = 30, check: bool = True
    ) -> CompletedProcess[str]:
        """Run a command on the host, past its sshd: it works while the network is cut.

        :raises CommandFailed: it failed (only with ``check``), or was killed as the time was up
        """
        return await self._namespace.run(*argv, stdin=stdin, timeout_s=timeout_s, check=check)

    async def virsh(
        self,
        *args: str,
        uri: str = "qemu:///system",
        stdin: str | None = None,
        timeout_s: float = 60,
    ) -> str:
        """What ``virsh`` prints on this host.

        :param stdin: for arguments such as ``define /dev/stdin``
        :raises CommandFailed: with what virsh said
        """
        done = await self.run("virsh", "-q", "-c", uri, *args, stdin=stdin, timeout_s=timeout_s)
        return done.stdout

    def serial_log(self, guest_name: str) -> str:
        """What a guest printed at its serial port so far, empty if it has no log.

        The guest needs ``<log file="/var/log/libvirt/qemu/NAME-serial.log"/>`` in its ``<serial>``.
        """
        path = self.state / "log/libvirt/qemu" / f"{guest_name}-serial.log"
        try:
            return path.read_text(errors="replace")
        except FileNotFoundError:
            return ""

    async def wait_serial(
        self, guest_name: str, text: str, *, times: int = 1, timeout_s: float = 40
    ) -> str:
        """Wait until a guest has printed a text at its serial port; return all it printed.

        :param times: how often, for a guest started again whose log goes on
        :raises LabError: it has not in ``timeout_s``; with the end of what it did print
        """
        deadline = time.monotonic() + timeout_s
        while (log := self.serial_log(guest_name)).count(text) < times:
            if time.monotonic() > deadline:
                last = "\n".join(log.splitlines()[-15:])
                raise LabError(f"{guest_name} on {self.name} did not print {text!r}:\n{last}")
            await asyncio.sleep(0.05)
        return log

    async def make_container_root(self, name: str) -> str:
        """Make the root of a container's file system, and return its path on the host.

        Its ``/init`` prints ``BOOTED`` on the console, and ends when asked to by SIGTERM.
        """
        await asyncio.to_thread(files.write_container_root, self.state / "lib/images" / name)
        return f"/var/lib/libvirt/images/{name}"

    # What can be done to a host's network.

    async def cut(self) -> None:
        """Cut it off from everyone: what is sent to it or by it vanishes, without an error."""
        await self._set_port("disabled")

    async def heal(self) -> None:
        """Undo :meth:`cut`."""
        await self._set_port("forwarding")

    async def _set_port(self, state: str) -> None:
        await process.run(
            *("nsenter", "--target", str(self._switch.pid), "--net"),
            *("bridge", "link", "set", "dev", self.name, "state", state),
        )

    # What can be done to its daemons.

    async def start_libvirtd(self) -> None:
        """Start it and wait until it answers; its guests that run are found again."""
        await self._start(LIBVIRTD)
        # It opens its socket before its drivers have read their settings, which may end it yet.
        try:
            await self.virsh("list", timeout_s=START_TIMEOUT_S)
        except CommandFailed as error:
            raise LabError(f"{error}\n{self._log_of(LIBVIRTD)}") from None

    async def stop_libvirtd(self) -> None:
        """Stop it; its guests run on, and its socket refuses."""
        await self._stop(LIBVIRTD)

    async def pause_libvirtd(self) -> None:
        """Stop it in its tracks: its socket still accepts, and nothing answers."""
        self._namespace.signal(signal.SIGSTOP, self._pid_of(LIBVIRTD))

    async def resume_libvirtd(self) -> None:
        """Undo :meth:`pause_libvirtd`."""
        self._namespace.signal(signal.SIGCONT, self._pid_of(LIBVIRTD))

    async def start_sshd(self) -> None:
        """Start it and wait until it listens."""
        await self._start(SSHD)
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._sshd_listens():
            if time.monotonic() > deadline:
                raise LabError(f"sshd on {self.name} does not listen\n{self._log_of(SSHD)}")
            await asyncio.sleep(0.02)

    async def stop_sshd(self) -> None:
        """Stop it, so that new connections are refused; sessions go on."""
        await self._stop(SSHD)

    async def kill_ssh_sessions(self) -> None:
        """Kill every SSH session, from within the host; the daemon goes on."""
        listener = self._namespace.from_pid_file(SSHD.pid_file)
        for pid in self._namespace.processes("sshd"):
            if pid != listener:
                self._namespace.signal(signal.SIGKILL, pid)

    async def rotate_host_key(self) -> None:
        """Give the host another key, as if installed anew; ``known_hosts`` keeps the old one."""
        await self.make_host_key()
        await self._restart_sshd()

    async def refuse_socket_forwarding(self, *, refuses: bool = True) -> None:
        """Make sshd refuse to forward UNIX sockets, or allow it again, on new connections."""
        self._write_sshd_config(allows_socket_forwarding=not refuses)
        await self._restart_sshd()

    async def _restart_sshd(self) -> None:
        await self.stop_sshd()
        await self.start_sshd()

    async def _start(self, daemon: Daemon) -> None:
        try:
            await self.run(*daemon.command, timeout_s=START_TIMEOUT_S)
        except CommandFailed as error:
            raise LabError(f"{error}\n{self._log_of(daemon)}") from None

    async def _stop(self, daemon: Daemon) -> None:
        pid = self._namespace.from_pid_file(daemon.pid_file)
        if pid is not None:
            # A stopped process would not see the request to end.
            self._namespace.signal(signal.SIGCONT, pid)
            await self._namespace.end(pid)

    def _pid_of(self, daemon: Daemon) -> int:
        pid = self._namespace.from_pid_file(daemon.pid_file)
        if pid is None:
            raise LabError(f"{daemon.command[0]} does not run on {self.name}")
        return pid

    def _log_of(self, daemon: Daemon) -> str:
        return tail(self.state / daemon.log)

    def _sshd_listens(self) -> bool:
        # Asked of the kernel: a connection would not get through while the network is cut.
        table = Path(f"/proc/{self.pid}/net/tcp").read_text().splitlines()[1:]
        return any(
            local.endswith(":0016") and state == "0A"
            for _, local, _, state, *_ in (line.split() for line in table)
        )

    # How a lab makes it.

    async def make_host_key(self) -> str:
        """Make a new key for sshd and return its public part; it counts from sshd's next start."""
        key = self.state / "ssh/ssh_host_ed25519_key"
        key.unlink(missing_ok=True)
        await process.run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(key))
        return key.with_suffix(".pub").read_text().strip()

    def _write_sshd_config(self, *, allows_socket_forwarding: bool = True) -> None:
        text = settings.sshd_config(self.address, allows_socket_forwarding=allows_socket_forwarding)
        (self.state / "ssh/sshd_config").write_text(text)

    def write_files(self) -> None:
        """Write the host's own files, which :meth:`open` puts in place of the machine's."""
        files.write(self.state, self.uuid, self.hostname)
        self._write_sshd_config()

    async def open(self, mounts: Mounts, groups: Iterable[Path]) -> None:
        """Create the host, without network or daemons.

        :param mounts: what is its own
        :param groups: folders of its cgroups
        """
        await asyncio.to_thread(self._namespace.open, mounts, groups)

    async def connect(self, mac: str, neighbours: dict[str, str]) -> None:
        """Plug the host into the switch and give it its address, on a bridge that guests can join.

        :param neighbours: MACs of all others by address
        """
        await self._switch.ip(
            f"link add name {self.name} type veth peer name eth0 netns {self.pid}",
            f"link set dev {self.name} master lan up",
        )
        await self._namespace.ip(
            "link set dev lo up",
            # Given an address of its own, a bridge does not take that of a guest that joins it.
            f"link add name br0 address {mac} type bridge forward_delay 0",
            "link set dev eth0 master br0 up",
            "link set dev br0 up",
            f"address add {self.address}/24 dev br0",
            *(
                # Else a host that is cut off is found out by ARP, and refused as unreachable.
                f"neighbour replace {address} lladdr {other} dev br0 nud permanent"
                for address, other in neighbours.items()
            ),
        )

    async def start(self) -> None:
        """Start the daemons, together."""
        await self.run("mkdir", "-p", "/run/sshd", "/run/libvirt", "/run/lock")
        await process.together(self.start_sshd(), self.start_libvirtd())

    def close(self) -> None:
        """End everything that runs on the host, guests included; harmless when repeated."""
        self._namespace.close()
