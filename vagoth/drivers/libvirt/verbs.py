"""What is asked of libvirt, as plain functions. They block: only workers call them.

They take a connection and return plain values: none of libvirt's objects leaves the thread that
it was made on. Before its first request that changes something, each says so to its call.
"""

from __future__ import annotations

import uuid as uuidlib
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from vagoth.drivers.base import Guest, GuestSpec, HostFacts, Power
from vagoth.drivers.libvirt.capabilities import Capabilities, read_capabilities
from vagoth.drivers.libvirt.errors import Meaning, meaning_of
from vagoth.drivers.libvirt.workers import Call
from vagoth.drivers.libvirt.xml import domain_xml
from vagoth.errors import JobFailed

if TYPE_CHECKING:
    import libvirt

MIB = 1024**2

# libvirt's numbers are part of its ABI: virDomainState, and a reason of virDomainShutoffReason.
_PAUSED, _SHUTOFF, _CRASHED, _PMSUSPENDED = 3, 5, 6, 7
_SHUTOFF_CRASHED = 3


def power_of(state: int, reason: int) -> Power:
    """What libvirt's state and reason come to. One that is shutting down still runs."""
    if state == _SHUTOFF:
        return Power.CRASHED if reason == _SHUTOFF_CRASHED else Power.OFF
    if state == _CRASHED:
        return Power.CRASHED
    return Power.PAUSED if state in (_PAUSED, _PMSUSPENDED) else Power.RUNNING


def guests(connection: libvirt.virConnect) -> list[Guest]:
    """All guests, with what they are defined to use."""
    import libvirt

    wanted = (
        libvirt.VIR_DOMAIN_STATS_STATE
        | libvirt.VIR_DOMAIN_STATS_BALLOON
        | libvirt.VIR_DOMAIN_STATS_VCPU
    )
    # Without NOWAIT, one guest whose monitor hangs would keep us from hearing of all others.
    flags = libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT
    try:
        stats = connection.getAllDomainStats(wanted, flags)
    except libvirt.libvirtError as error:
        if meaning_of(error) not in (Meaning.NOT_SUPPORTED, Meaning.SAID_NO):
            raise
        stats = connection.getAllDomainStats(wanted, 0)
    autostart = uuids(connection, libvirt.VIR_CONNECT_LIST_DOMAINS_AUTOSTART)
    transient = uuids(connection, libvirt.VIR_CONNECT_LIST_DOMAINS_TRANSIENT)
    found = []
    for domain, values in stats:
        uuid = domain.UUIDString()
        sizes = _sizes(domain, values)
        if sizes is not None:
            found.append(
                Guest(
                    uuid=uuid,
                    name=domain.name(),
                    power=power_of(values["state.state"], values["state.reason"]),
                    memory_bytes=sizes[0] * 1024,
                    vcpus=sizes[1],
                    autostart=uuid in autostart,
                    persistent=uuid not in transient,
                )
            )
    return found


def uuids(connection: libvirt.virConnect, flags: int) -> set[str]:
    """The guests that a filter of libvirt's lets through."""
    return {domain.UUIDString() for domain in connection.listAllDomains(flags)}


def _sizes(domain: libvirt.virDomain, values: dict[str, int]) -> tuple[int, int] | None:
    """Memory in KiB and vcpus; nothing where the guest has gone meanwhile."""
    import libvirt

    memory, vcpus = values.get("balloon.maximum"), values.get("vcpu.maximum")
    if memory is None or vcpus is None:
        # A driver, or a guest that is busy, that does not say so in bulk.
        try:
            memory, vcpus = _info(domain)
        except libvirt.libvirtError as error:
            if meaning_of(error) is Meaning.NO_GUEST:
                return None
            raise
    return memory, vcpus


def find(connection: libvirt.virConnect, uuid: str) -> libvirt.virDomain | None:
    """The guest of that UUID, or nothing. The name and UUID of what it returns cost no call."""
    import libvirt

    try:
        return connection.lookupByUUIDString(uuid)
    except libvirt.libvirtError as error:
        if meaning_of(error) is Meaning.NO_GUEST:
            return None
        raise


def guest(connection: libvirt.virConnect, uuid: str) -> Guest | None:
    """One guest, or nothing where the host does not have it."""
    import libvirt

    domain = find(connection, uuid)
    if domain is None:
        return None
    try:
        power = _power(domain)
        memory_kib, vcpus = _info(domain)
        persistent = bool(domain.isPersistent())
        return Guest(
            uuid=uuid,
            name=domain.name(),
            power=power,
            memory_bytes=memory_kib * 1024,
            vcpus=vcpus,
            autostart=bool(domain.autostart()) if persistent else False,
            persistent=persistent,
        )
    except libvirt.libvirtError as error:
        if meaning_of(error) is Meaning.NO_GUEST:
            return None
        raise


def capabilities(connection: libvirt.virConnect) -> Capabilities:
    """What the host can run."""
    return read_capabilities(connection.getCapabilities())


def facts(connection: libvirt.virConnect, known: Capabilities) -> HostFacts:
    """What the host is."""
    info: Any = connection.getInfo()
    number, hostname = connection.getLibVersion(), connection.getHostname()
    return HostFacts(
        hostname=hostname,
        # A simulated host has none of its own.
        host_uuid=known.host_uuid or str(uuidlib.uuid5(uuidlib.NAMESPACE_DNS, hostname)),
        hypervisor=connection.getType().lower(),
        version=f"{number // 1000000}.{number // 1000 % 1000}.{number % 1000}",
        memory_bytes=info[1] * MIB,
        cpus=info[2],
        kinds=known.kinds,
    )


def define(
    connection: libvirt.virConnect, call: Call, spec: GuestSpec, known: Capabilities
) -> bool:
    """Make the guest known, or bring its definition up to date; never to start by itself.

    Returns whether it runs: then it keeps what it has until it is next started.
    """
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
    call.about_to_change()
    domain = connection.defineXMLFlags(xml, libvirt.VIR_DOMAIN_DEFINE_VALIDATE)
    if domain.autostart():
        domain.setAutostart(0)
    return bool(domain.isActive())


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
        _bring_about(call, domain.destroy, lambda: not _is_active(domain))


def ask_shutdown(connection: libvirt.virConnect, call: Call, uuid: str) -> str | None:
    """Press the power button. Returns the guest's name; nothing if it is off already."""
    domain = _present(connection, uuid)
    if not domain.isActive():
        return None
    _bring_about(call, domain.shutdown, lambda: not _is_active(domain))
    return domain.name()


def reboot(connection: libvirt.virConnect, call: Call, uuid: str) -> None:
    """Ask the guest to reboot."""
    domain = _running(connection, uuid)
    call.about_to_change()
    domain.reboot()


def pause(connection: libvirt.virConnect, call: Call, uuid: str) -> None:
    """Freeze the guest."""
    domain = _running(connection, uuid)
    if _power(domain) is not Power.PAUSED:
        _bring_about(call, domain.suspend, lambda: _power(domain) is Power.PAUSED)


def resume(connection: libvirt.virConnect, call: Call, uuid: str) -> None:
    """Let the guest go on, or wake it where it suspended itself."""
    domain = _running(connection, uuid)
    if _power(domain) is not Power.PAUSED:
        return
    sleeps = _state(domain)[0] == _PMSUSPENDED
    action = domain.pMWakeup if sleeps else domain.resume
    _bring_about(call, action, lambda: _power(domain) is Power.RUNNING)


def _present(connection: libvirt.virConnect, uuid: str) -> libvirt.virDomain:
    return connection.lookupByUUIDString(uuid)


def _running(connection: libvirt.virConnect, uuid: str) -> libvirt.virDomain:
    domain = _present(connection, uuid)
    if not domain.isActive():
        raise JobFailed(f"{domain.name()} is off", cure="start it first")
    return domain


def _power(domain: libvirt.virDomain) -> Power:
    return power_of(*_state(domain))


# libvirt-python says of both that they return text.


def _state(domain: Any) -> tuple[int, int]:
    state, reason = domain.state()
    return state, reason


def _info(domain: Any) -> tuple[int, int]:
    """Most memory in KiB, and vcpus."""
    _, memory_kib, _, vcpus, _ = domain.info()
    return memory_kib, vcpus


def _is_active(domain: libvirt.virDomain) -> bool:
    import libvirt

    try:
        return bool(domain.isActive())
    except libvirt.libvirtError as error:
        # One that is not kept by its host goes as it ends.
        if meaning_of(error) is Meaning.NO_GUEST:
            return False
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
