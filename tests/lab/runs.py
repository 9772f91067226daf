"""Which labs exist on this machine, which of them are dead, and what each has for itself.

A lab is a folder in ``ROOT``, named by its prefix. Its owner holds a lock on a file therein as long
as it lives, so a folder whose lock is free is the remains of a dead run. Folders are made, judged
and removed under one lock for all, held for moments only.
"""

import contextlib
import fcntl
import json
import os
import random
import re
import secrets
import shutil
import subprocess
import time
from collections.abc import Iterator
from ipaddress import IPv4Network
from pathlib import Path

from tests.lab import cgroups
from tests.lab.errors import LabError

ROOT = Path("/var/lib/vagoth-lab")


@contextlib.contextmanager
def one_at_a_time(timeout_s: float = 20) -> Iterator[None]:
    """Keep other labs from coming, going and choosing addresses meanwhile."""
    ROOT.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = _try_lock(ROOT / ".lock")
    deadline = time.monotonic() + timeout_s
    while lock is None:
        if time.monotonic() > deadline:
            raise LabError(f"{ROOT}/.lock is held by another lab for {timeout_s} s")
        time.sleep(0.02)
        lock = _try_lock(ROOT / ".lock")
    try:
        yield
    finally:
        os.close(lock)


def _try_lock(path: Path) -> int | None:
    """Open and lock a file; None if someone else holds it."""
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    return lock


class Run:
    """A lab's folder, its lock, and the network it has for itself."""

    def __init__(self, prefix: str | None) -> None:
        """Make the folder and choose the network.

        :raises LabError: the prefix is not fit for names of interfaces, or is in use
        """
        self.prefix = f"l{secrets.token_hex(3)}" if prefix is None else prefix
        if not re.fullmatch(r"[a-z][a-z0-9]{0,8}", self.prefix):
            raise LabError(f"prefix {prefix!r}: expected 1 to 9 of a-z and 0-9, a letter first")
        self.folder = ROOT / self.prefix
        with one_at_a_time():
            self.subnet = _free_subnet()
            try:
                self.folder.mkdir(mode=0o700)
            except FileExistsError:
                raise LabError(f"a lab named {self.prefix!r} exists") from None
            self._lock = _try_lock(self.folder / "lock")
            (self.folder / "subnet").write_text(str(self.subnet))

    @property
    def interface(self) -> str:
        """The name of the controller's network interface, the one thing others can see."""
        return _interface(self.folder)

    def close(self) -> None:
        """Remove the interface and the folder; harmless when repeated."""
        lock, self._lock = self._lock, None
        if lock is not None:
            with one_at_a_time():
                _remove(self.folder)
            os.close(lock)


def clean() -> list[str]:
    """Remove what dead runs left behind, and return their prefixes.

    Their processes ended with them, and their networks with those: only folders are ever left.
    """
    if not ROOT.exists():
        return []
    removed = []
    with one_at_a_time():
        for folder in sorted(entry for entry in ROOT.iterdir() if entry.is_dir()):
            lock = _try_lock(folder / "lock")
            if lock is not None:
                _remove(folder)
                os.close(lock)
                removed.append(folder.name)
    return removed


def _interface(folder: Path) -> str:
    return f"vg-{folder.name}"


def _remove(folder: Path, timeout_s: float = 5) -> None:
    # The kernel removes it as well, some time after the last process at its other end is gone.
    subprocess.run(
        ["ip", "link", "delete", _interface(folder)], capture_output=True, check=False, timeout=10
    )
    cgroups.remove(folder.name)
    deadline = time.monotonic() + timeout_s
    while folder.exists():
        # The last process of a killed run may still be writing a log.
        shutil.rmtree(folder, ignore_errors=time.monotonic() < deadline)


def _free_subnet() -> IPv4Network:
    """A private network that this machine has no route to, and that no lab has taken."""
    shown = subprocess.run(
        ["ip", "-4", "-json", "route", "show", "table", "all"],
        check=True,
        capture_output=True,
        timeout=10,
    )
    routes = [route["dst"] for route in json.loads(shown.stdout or "[]")]
    # A route as wide as this machine's way out does not claim the network for itself.
    taken = [net for net in map(IPv4Network, set(routes) - {"default"}) if net.prefixlen > 8]
    taken += [IPv4Network(claim.read_text()) for claim in ROOT.glob("*/subnet")]
    for _ in range(1000):
        subnet = IPv4Network(f"10.{random.randint(64, 254)}.{random.randint(0, 255)}.0/24")
        if not any(subnet.overlaps(other) for other in taken):
            return subnet
    raise LabError("no free network in 10.0.0.0/8")
