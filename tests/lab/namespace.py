"""Linux namespaces that live exactly as long as the object that made them, or its process."""

import asyncio
import contextlib
import json
import os
import pwd
import select
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from subprocess import CompletedProcess

from tests.lab import process
from tests.lab.errors import CommandFailed, LabError, tail

PID_1 = Path(__file__).with_name("init.py")

# A host knows nothing of the settings of whoever runs the tests.
ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": pwd.getpwuid(0).pw_dir,
    "LANG": "C.UTF-8",
}

Mounts = list[tuple[str, str, str]]


class Namespace:
    """A machine's worth of namespaces: network, hostname, mounts, processes and IPC.

    Nothing of it is bound to a name in the file system, so nothing is left when its processes end:
    they all do when :meth:`close` is called, and also when the process that made it dies.
    """

    def __init__(self, hostname: str, log: Path) -> None:
        self.hostname = hostname
        self.pid = 0
        self._log = log
        self._keeper: subprocess.Popen[bytes] | None = None

    def open(self, mounts: Mounts, cgroups: Iterable[Path] = (), timeout_s: float = 10) -> None:
        """Create the namespaces and mount in them; blocks for some hundredths of a second.

        :param cgroups: folders of those that become the roots of what is seen inside

        :raises LabError: with the reason the kernel gave
        """
        with self._log.open("ab") as log:
            self._keeper = keeper = subprocess.Popen(
                [
                    *("unshare", "--net", "--uts", "--ipc", "--mount", "--pid", "--fork"),
                    *("--kill-child", "--", sys.executable, "-I", "-S", str(PID_1)),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                # A Ctrl-C at the owner's terminal must not end the hosts before their time.
                start_new_session=True,
            )
        assert keeper.stdin is not None
        assert keeper.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            orders = {
                "hostname": self.hostname,
                "cgroups": [str(group) for group in cgroups],
                "mounts": mounts,
            }
            keeper.stdin.write(json.dumps(orders).encode() + b"\n")
            keeper.stdin.flush()
        answered, _, _ = select.select([keeper.stdout], [], [], timeout_s)
        answer = keeper.stdout.readline().strip() if answered else b""
        if not answer.isdigit():
            self.close()
            raise LabError(f"cannot create network namespaces: {tail(self._log)}")
        self.pid = int(answer)

    def close(self) -> None:
        """End every process in the namespaces; harmless when they are closed already."""
        keeper, self._keeper = self._keeper, None
        if keeper is None:
            return
        assert keeper.stdin is not None
        assert keeper.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            keeper.stdin.close()
        keeper.stdout.close()
        try:
            keeper.wait(timeout=5)
        except subprocess.TimeoutExpired:
            keeper.kill()
            keeper.wait(timeout=5)

    def enter(self, *argv: str) -> tuple[str, ...]:
        """The command line that runs a command inside all of the namespaces."""
        if not self.pid:
            raise LabError(f"{self.hostname} is not up")
        spaces = ["--net", "--uts", "--ipc", "--cgroup", "--mount", "--pid"]
        return ("nsenter", "--target", str(self.pid), *spaces, "--wd=/", "--", *argv)

    async def run(
        self, *argv: str, stdin: str | None = None, timeout_s: float = 30, check: bool = True
    ) -> CompletedProcess[str]:
        """Run a command inside, as :func:`tests.lab.process.run` does outside."""
        command = self.enter(*argv)
        try:
            return await process.run(
                *command, stdin=stdin, timeout_s=timeout_s, check=check, env=ENVIRONMENT
            )
        except CommandFailed as error:
            shown = (f"{self.hostname}:", *argv)
            raise CommandFailed(shown, error.outcome, error.output) from None

    async def ip(self, *commands: str) -> None:
        """Run ``ip`` commands inside the network namespace only, all or none of them checked."""
        await process.run(
            *("nsenter", "--target", str(self.pid), "--net", "ip", "-batch", "-"),
            stdin="".join(f"{command}\n" for command in commands),
        )

    def path(self, inside: str) -> Path:
        """Where a file inside (an absolute path) can be reached from outside."""
        return Path(f"/proc/{self.pid}/root{inside}")

    def from_pid_file(self, pid_file: str) -> int | None:
        """The id, as seen from outside, of the process that wrote its id to a file inside."""
        try:
            inner = self.path(pid_file).read_text().strip()
        except OSError:
            return None
        for pid in self.processes():
            with contextlib.suppress(OSError):
                ids = Path(f"/proc/{pid}/status").read_text().partition("NSpid:")[2]
                if ids.splitlines()[0].split()[-1] == inner:
                    return pid
        return None

    def processes(self, program: str | None = None) -> Iterator[int]:
        """The ids, as seen from outside, of the processes inside, or of one program's."""
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and self._is_inside(int(entry.name)):
                # Processes come and go while we look.
                with contextlib.suppress(OSError):
                    if program in (None, (entry / "comm").read_text().rstrip("\n")):
                        yield int(entry.name)

    def signal(self, number: signal.Signals, pid: int) -> bool:
        """Send a signal to a process inside; False if it is gone.

        An id that meanwhile belongs to a process outside is left alone.
        """
        with self._held(pid) as handle:
            if handle is not None:
                signal.pidfd_send_signal(handle, number)
            return handle is not None

    async def end(self, pid: int, *, timeout_s: float = 10) -> None:
        """Ask a process inside to end, wait until it has, and kill it when the time is up."""
        with self._held(pid) as handle:
            if handle is None:
                return
            for number in (signal.SIGTERM, signal.SIGKILL):
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(handle, number)
                # A handle becomes readable when its process ends.
                if (await asyncio.to_thread(select.select, [handle], [], [], timeout_s))[0]:
                    return

    @contextlib.contextmanager
    def _held(self, pid: int) -> Iterator[int | None]:
        """A handle on a process inside, which cannot come to mean another; None if it is gone."""
        try:
            handle = os.pidfd_open(pid)
        except ProcessLookupError:
            yield None
            return
        try:
            yield handle if self._is_inside(pid) else None
        finally:
            os.close(handle)

    def _is_inside(self, pid: int) -> bool:
        try:
            return os.readlink(f"/proc/{pid}/ns/pid") == os.readlink(f"/proc/{self.pid}/ns/pid")
        except OSError:
            return False
