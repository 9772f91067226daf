"""The first process of a host: mounts what is the host's own, then reaps, until its owner is gone.

A program of its own, run by the interpreter that runs the lab, inside new namespaces. It reads one
line of JSON from standard input, ``{"hostname": str, "cgroups": [folder, ...], "mounts": [[source,
target, type], ...]}`` (type ``bind``, or a file system's), answers with one line, its process id as
the owner sees it, and then waits for the end of its input.

The owner holds the other end of that pipe and never writes to it again. However the owner ends,
``kill -9`` included, the pipe closes, this process exits, and the kernel kills all that ran in its
PID namespace; the network namespace and its cables go with them.
"""

import ctypes
import json
import os
import select
import signal
import socket
import sys

MS_RDONLY, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 32, 4096, 16384, 1 << 18
MNT_DETACH = 2
CLONE_NEWCGROUP = 0x02000000


def mount(source: str, target: str, kind: str) -> None:
    """Mount a file system at the target, or with kind ``bind`` or ``bind-ro`` a file or folder.

    Of kind ``cgroup``, the source names the controllers. The kinds ``proc`` and ``sysfs`` replace
    what is there with all that is mounted in it; ``private`` cuts the target's mounts off from the
    machine's.

    :raises OSError: the kernel refused; the error names the target
    """
    libc = ctypes.CDLL(None, use_errno=True)

    def call(flags: int, options: bytes | None = None) -> None:
        where = (source.encode(), target.encode(), kind.encode())
        if libc.mount(*where, ctypes.c_ulong(flags), options) != 0:
            number = ctypes.get_errno()
            raise OSError(number, f"cannot mount {source}: {os.strerror(number)}", target)

    if kind == "private":
        call(MS_REC | MS_PRIVATE)
    elif kind in {"bind", "bind-ro"}:
        call(MS_BIND)
        if kind == "bind-ro":
            call(MS_BIND | MS_REMOUNT | MS_RDONLY)
    else:
        if kind in {"proc", "sysfs"}:
            libc.umount2(target.encode(), MNT_DETACH)
        options = {"cgroup": source, "tmpfs": "mode=1777" if target == "/tmp" else "mode=755"}
        if kind == "cgroup":
            os.makedirs(target)
        call(0, options[kind].encode() if kind in options else None)


def enter_cgroups(folders: list[str]) -> None:
    """Move into cgroups, and have them be the roots of all that is seen from here."""
    for folder in folders:
        with open(f"{folder}/cgroup.procs", "w") as processes:
            processes.write("0")
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWCGROUP) != 0:
        raise OSError(ctypes.get_errno(), "cannot make a cgroup namespace")


def reap() -> None:
    """Collect every ended child: an ended QEMU that stays a zombie is one libvirt waits for."""
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return


def main() -> None:
    """Set the host up, report, and stay until standard input ends."""
    wake_reader, wake_writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wake_writer, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)

    orders = json.loads(sys.stdin.readline())
    # Read before the new /proc covers the old one, in which we still have our outer id.
    outer_pid = os.readlink("/proc/self")
    socket.sethostname(orders["hostname"])
    enter_cgroups(orders["cgroups"])
    for source, target, kind in orders["mounts"]:
        mount(source, target, kind)
    os.chdir("/")
    sys.stdout.write(f"{outer_pid}\n")
    sys.stdout.flush()

    while True:
        ready, _, _ = select.select([sys.stdin, wake_reader], [], [])
        if wake_reader in ready:
            os.read(wake_reader, 4096)
            reap()
        if sys.stdin in ready and not os.read(0, 4096):
            return


if __name__ == "__main__":
    main()
