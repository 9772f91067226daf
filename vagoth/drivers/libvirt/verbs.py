"""What changes guests, as plain functions. They block: only workers call them.

They take a connection and return plain values: none of libvirt's objects leaves the thread that
it was made on. Before its first request that changes something, each says so to its call.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from vagoth.drivers.base import GuestSpec, Power
from vagoth.drivers.libvirt.capabilities import Capabilities
from vagoth.drivers.libvirt.errors import Meaning, meaning_of
from vagoth.drivers.libvirt.looking import (
    CRASHED,
    PMSUSPENDED,
    SHUTDOWN,
    SHUTOFF,
    find,
    power_of_domain,
    state_of,
)
from vagoth.drivers.libvirt.workers import Call
from vagoth.drivers.libvirt.xml import domain_xml
from vagoth.errors import JobFailed

if TYPE_CHECKING:
    import libvirt


def define(
    connection: libvirt.virConnect, call: Call, spec: GuestSpec, known: Capabilities
) -> None:
    """Make the guest known, or bring its definition up to date; never to start by itself."""
    import libvirt

    domain = find(connection, spec.uuid)
    if domain is not None and domain.name() != spec.name:
        if domain.isActive():
            # libvirt finds a running guest by its name: it keeps it until it is next off.
            spec = replace(spec, name=domain.name())
        else:
            domain_xml(spec, known)  # refused before anything changes
            call.about_to_change()
            domain.rename(spec.name)
    xml = domain_xml(spec, known)
    # What we generate is valid; what a user laid over it, libvirt would in part pass over.
    flags = libvirt.VIR_DOMAIN_DEFINE_VALIDATE if spec.definition.xml else 0
    call.about_to_change()
    domain = connection.defineXMLFlags(xml, flags)
    if domain.autostart():
        domain.setAutostart(0)


def undefine(connection: libvirt.virConnect, call: Call, uuid: str) -> None:
    """Forget a guest that is off; what it wrote, its firmware's variables included, stays."""
    import libvirt

    domain = find(connection, uuid)
    if domain is None:
        return
    if domain.isActive():
        # libvirt would make it transient: forgotten when it ends.
        raise JobFailed(f"{domain.name()} runs", cure="shut it down first")
    call.about_to_change()
    try:
        domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_KEEP_NVRAM)
    except libvirt.libvirtError as error:
        if meaning_of(error) is Meaning.NO_GUEST:
            return
        if error.get_error_code() != libvirt.VIR_ERR_INVALID_ARG:
            raise
        # A driver whose guests have no such variables refuses the flag.
        domain.undefine()


def start(connection: libvirt.virConnect, call: Call, uuid: str) -> None:
    """Start the guest; when it returns, it runs, or is paused as it was."""
    domain = _present(connection, uuid)
    if not domain.isActive():
        _bring_about(call, domain.create, lambda: bool(domain.isActive()))


def stop(connection: libvirt.virConnect, call: Call, uuid: str) -> None:
    """Pull the plug."""
    domain = _present(connection, uuid)
    if domain.isActive():
        _bring_about(call, domain.destroy, lambda: _is_off(domain))


def ask_shutdown(connection: libvirt.virConnect, call: Call, uuid: str) -> str | None:
    """Press the power button. Returns the guest's name; nothing if it is off already."""
    domain = _present(connection, uuid)
    if not domain.isActive():
        return None
    if power_of_domain(domain) is Power.PAUSED:
        raise JobFailed(f"{domain.name()} is paused, and hears nothing", cure="resume it first")
    # One that is on its way down is active, and yet "not running".
    _bring_about(call, domain.shutdown, lambda: _is_ending(domain))
    return domain.name()


def reboot(connection: libvirt.virConnect, call: Call, uuid: str) -> None:
    """Ask the guest to reboot."""
    domain = _running(connection, uuid)
    call.about_to_change()
    domain.reboot()


def pause(connection: libvirt.virConnect, call: Call, uuid: str) -> None:
    """Freeze the guest."""
    domain = _running(connection, uuid)
    if power_of_domain(domain) is not Power.PAUSED:
        _bring_about(call, domain.suspend, lambda: power_of_domain(domain) is Power.PAUSED)


def resume(connection: libvirt.virConnect, call: Call, uuid: str) -> None:
    """Let the guest go on, or wake it where it suspended itself."""
    domain = _running(connection, uuid)
    if power_of_domain(domain) is not Power.PAUSED:
        return
    sleeps = state_of(domain)[0] == PMSUSPENDED
    action = domain.pMWakeup if sleeps else domain.resume
    _bring_about(call, action, lambda: power_of_domain(domain) is Power.RUNNING)


def _present(connection: libvirt.virConnect, uuid: str) -> libvirt.virDomain:
    return connection.lookupByUUIDString(uuid)


def _running(connection: libvirt.virConnect, uuid: str) -> libvirt.virDomain:
    domain = _present(connection, uuid)
    if not domain.isActive():
        raise JobFailed(f"{domain.name()} is off", cure="start it first")
    return domain


def _is_off(domain: libvirt.virDomain) -> bool:
    return _state_or_off(domain) in (SHUTOFF, CRASHED)


def _is_ending(domain: libvirt.virDomain) -> bool:
    return _state_or_off(domain) in (SHUTDOWN, SHUTOFF, CRASHED)


def _state_or_off(domain: libvirt.virDomain) -> int:
    import libvirt

    try:
        return state_of(domain)[0]
    except libvirt.libvirtError as error:
        # One that is not kept by its host goes as it ends.
        if meaning_of(error) is Meaning.NO_GUEST:
            return SHUTOFF
        raise


def _bring_about(call: Call, action: Callable[[], object], is_so: Callable[[], bool]) -> None:
    """Do ``action``; it is no error that it failed, if what it was for is so.

    Somebody else may have been faster, or the guest itself; what libvirt then says differs from
    one driver to the next.
    """
    import libvirt

    call.about_to_change()
    try:
        action()
    except libvirt.libvirtError as error:
        if meaning_of(error) is Meaning.LOST or not is_so():
            raise
