"""Each prerequisite of a host, tried in order, with its cure."""

from __future__ import annotations

from collections.abc import Sequence

from vagoth.definition import Kind, convert
from vagoth.drivers.base import Check, DriverSettings, Host
from vagoth.drivers.libvirt import looking
from vagoth.drivers.libvirt.capabilities import Capabilities
from vagoth.drivers.libvirt.definition import LibvirtHost
from vagoth.drivers.libvirt.opening import open_link
from vagoth.errors import VagothError

BY_SSH = ("address", "port", "host key", "login", "libvirtd", "socket", "socket forwarding")
HERE = ("hypervisor", "kinds")
EMULATION_CURE = "where it should run kvm: switch virtualisation on in its firmware; modprobe kvm"


async def check(host: Host, settings: DriverSettings) -> Sequence[Check]:
    """Open a session as any would be opened, and note how far it gets.

    What comes after the first thing that fails has ``ok`` nothing: an earlier failure hid it.
    """
    held: dict[str, str] = {}
    failure: VagothError | None = None
    kinds: Check | None = None
    steps: tuple[str, ...] = (*BY_SSH, *HERE)
    try:
        definition = convert(host.definition, LibvirtHost)
        steps = steps if definition.ssh else HERE
        link = await open_link(host.name, definition, settings, held.__setitem__)
        try:
            known = await link.call("its capabilities", lambda c, _: looking.capabilities(c))
            kinds = _kinds(known)
        finally:
            await link.close()
    except VagothError as error:
        failure = error
    checks: list[Check] = []
    for step in steps:
        if step in held:
            checks.append(Check(step, True, held[step]))
        elif step == "kinds" and kinds is not None:
            checks.append(kinds)
        elif failure is not None:
            problem = getattr(failure, "problem", failure.message)
            checks.append(Check(step, False, problem, failure.cure))
            failure = None
        else:
            checks.append(Check(step, None, "not reached"))
    return checks


def _kinds(known: Capabilities) -> Check:
    if not known.kinds:
        cure = "install a hypervisor there: apt install qemu-system-x86"
        return Check("kinds", False, "it runs no kind of guest that this driver makes", cure)
    runs = f"runs {', '.join(known.kinds)}"
    if Kind.KVM not in known.kinds:
        return Check("kinds", True, f"{runs}: emulation only, which is slow", EMULATION_CURE)
    return Check("kinds", True, runs)
