"""Control groups of a host's own, without which libvirt starts no container.

They are made where the machine has the old kind, one hierarchy for each controller. With the new
kind, processes may be in leaves only, which takes an init system: hosts get no cgroups there, and
run QEMU's guests alone.
"""

import contextlib
import os
import time
from pathlib import Path

REQUIRED = {"cpuacct", "devices", "memory"}
WANTED = REQUIRED | {"cpu", "freezer"}


def hierarchies() -> dict[str, Path]:
    """Where those wanted are mounted, by their controllers as the kernel writes them; or none."""
    joined = [line.split(":")[1] for line in Path("/proc/self/cgroup").read_text().splitlines()]
    found = {}
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, place, kind, options, *_ = line.split()
        for names in joined if kind == "cgroup" else ():
            controllers = set(names.split(","))
            if controllers & WANTED and controllers <= set(options.split(",")):
                found[names] = Path(place)
    have = {controller for names in found for controller in names.split(",")}
    return found if have >= REQUIRED else {}


def create(lab: str, host: str) -> dict[str, Path]:
    """Make a host's group in each hierarchy, and return them by their controllers."""
    groups = {names: place / _name(lab, host) for names, place in hierarchies().items()}
    for group in groups.values():
        group.mkdir(exist_ok=True)
    return groups


def remove(lab: str, timeout_s: float = 5) -> None:
    """Remove the groups of all hosts of a lab, once their last processes are gone."""
    deadline = time.monotonic() + timeout_s
    while groups := [
        group for place in hierarchies().values() for group in place.glob(_name(lab, "*"))
    ]:
        for group in groups:
            for folder, _, _ in os.walk(group, topdown=False):
                with contextlib.suppress(OSError):
                    Path(folder).rmdir()
        if time.monotonic() > deadline:
            return
        time.sleep(0.01)


def _name(lab: str, host: str) -> str:
    return f"vagoth-lab-{lab}-{host}"
