"""What is read of a host, as plain functions. They block: only workers call them.

They take a connection and return plain values: none of libvirt's objects leaves the thread that
it was made on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from msgspec.structs import replace

from vagoth.drivers.base import Guest, HostFacts, Power
from vagoth.drivers.libvirt.capabilities import Capabilities, read_capabilities
from vagoth.drivers.libvirt.errors import Meaning, meaning_of

if TYPE_CHECKING:
    import libvirt

KIB, MIB = 1024, 1024**2

# libvirt's numbers are part of its ABI: virDomainState, and a reason of virDomainShutoffReason.
PAUSED, SHUTDOWN, SHUTOFF, CRASHED, PMSUSPENDED = 3, 4, 5, 6, 7
_SHUTOFF_CRASHED = 3


class Size(NamedTuple):
    """What a guest is defined to use."""

    memory_bytes: int
    vcpus: int


def power_of(state: int, reason: int) -> Power:
    """What libvirt's state and reason come to. One that is shutting down still runs."""
    if state == SHUTOFF:
        return Power.CRASHED if reason == _SHUTOFF_CRASHED else Power.OFF
    if state == CRASHED:
        return Power.CRASHED
    return Power.PAUSED if state in (PAUSED, PMSUSPENDED) else Power.RUNNING


def guests(connection: libvirt.virConnect, known: Mapping[str, Size]) -> list[Guest]:
    """All guests, as one call to the host tells their states.

    :param known: what guests are defined to use, so far as it was seen before: the host is
        asked for the rest
    """
    import libvirt

    # Of states alone. What else there is in statistics is asked of each running QEMU: a
    # millisecond each, and for ever of one that hangs.
    stats = connection.getAllDomainStats(libvirt.VIR_DOMAIN_STATS_STATE, 0)
    autostart = _uuids(connection, libvirt.VIR_CONNECT_LIST_DOMAINS_AUTOSTART)
    transient = _uuids(connection, libvirt.VIR_CONNECT_LIST_DOMAINS_TRANSIENT)
    if any(domain.UUIDString() not in known for domain, _ in stats):
        known = {**_sizes_of_those_off(connection), **known}
    found = []
    for domain, values in stats:
        uuid = domain.UUIDString()
        power = power_of(values["state.state"], values["state.reason"])
        size = known.get(uuid) or _size(domain, power)
        if size is not None:
            found.append(
                Guest(
                    uuid=uuid,
                    name=domain.name(),
                    power=power,
                    memory_bytes=size.memory_bytes,
                    vcpus=size.vcpus,
                    autostart=uuid in autostart,
                    persistent=uuid not in transient,
                )
            )
    return found


def guest(connection: libvirt.virConnect, uuid: str) -> Guest | None:
    """One guest, or nothing where the host does not have it."""
    import libvirt

    domain = find(connection, uuid)
    if domain is None:
        return None
    try:
        power = power_of_domain(domain)
        size = _size(domain, power)
        persistent = bool(domain.isPersistent())
        if size is None:
            return None
        return Guest(
            uuid=uuid,
            name=domain.name(),
            power=power,
            memory_bytes=size.memory_bytes,
            vcpus=size.vcpus,
            autostart=bool(domain.autostart()) if persistent else False,
            persistent=persistent,
        )
    except libvirt.libvirtError as error:
        if meaning_of(error) is Meaning.NO_GUEST:
            return None
        raise


def find(connection: libvirt.virConnect, uuid: str) -> libvirt.virDomain | None:
    """The guest of that UUID, or nothing. The name and UUID of what it returns cost no call."""
    import libvirt

    try:
        return connection.lookupByUUIDString(uuid)
    except libvirt.libvirtError as error:
        if meaning_of(error) is Meaning.NO_GUEST:
            return None
        raise


def power_of_domain(domain: libvirt.virDomain) -> Power:
    """What the guest does just now."""
    return power_of(*state_of(domain))


def state_of(domain: Any) -> tuple[int, int]:
    """libvirt's state and reason. (Its annotations say text.)"""
    state, reason = domain.state()
    return state, reason


def capabilities(connection: libvirt.virConnect) -> Capabilities:
    """What the host can run."""
    return read_capabilities(connection.getCapabilities())


def facts(connection: libvirt.virConnect, known: Capabilities) -> HostFacts:
    """What the host is."""
    number, hostname = connection.getLibVersion(), connection.getHostname()
    found = HostFacts(
        hostname=hostname,
        host_uuid=known.host_uuid or "",
        hypervisor=connection.getType().lower(),
        version=f"{number // 1000000}.{number // 1000 % 1000}.{number % 1000}",
        memory_bytes=0,
        cpus=0,
        kinds=known.kinds,
    )
    return resized(connection, found)


def resized(connection: libvirt.virConnect, known: HostFacts) -> HostFacts:
    """Facts with what may have changed of them since the connection was made."""
    info: Any = connection.getInfo()
    return replace(known, memory_bytes=info[1] * MIB, cpus=info[2])


def _uuids(connection: libvirt.virConnect, flags: int) -> set[str]:
    """The guests that a filter of libvirt's lets through."""
    return {domain.UUIDString() for domain in connection.listAllDomains(flags)}


def _sizes_of_those_off(connection: libvirt.virConnect) -> dict[str, Size]:
    """What guests that are off are defined to use, in bulk, where the driver says so in bulk."""
    import libvirt

    wanted = libvirt.VIR_DOMAIN_STATS_BALLOON | libvirt.VIR_DOMAIN_STATS_VCPU
    inactive = libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_INACTIVE
    return {
        domain.UUIDString(): Size(values["balloon.maximum"] * KIB, values["vcpu.maximum"])
        for domain, values in connection.getAllDomainStats(wanted, inactive)
        if "balloon.maximum" in values and "vcpu.maximum" in values
    }


def _size(domain: libvirt.virDomain, power: Power) -> Size | None:
    """What a guest is defined to use; nothing where it has gone meanwhile."""
    import libvirt

    try:
        if power in (Power.OFF, Power.CRASHED):
            info: Any = domain.info()
            return Size(info[1] * KIB, info[3])
        # Of one that runs, all else tells what it runs with.
        return _size_in(domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE))
    except libvirt.libvirtError as error:
        if meaning_of(error) is Meaning.NO_GUEST:
            return None
        raise


def _size_in(xml: str) -> Size:
    from lxml import etree

    domain = etree.fromstring(xml.encode())
    # libvirt says memory in KiB, whatever unit it was defined in.
    return Size(int(domain.findtext("memory", "0")) * KIB, int(domain.findtext("vcpu", "1")))
