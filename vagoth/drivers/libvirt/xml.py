"""A guest's definition as libvirt's domain XML. Pure; escaped by construction.

Where a choice is open it is made so that the guest does what its node says: it powers off when
it powers off or crashes, reboots when it reboots, and its disks are not cached by the host, so
that it can be moved while it runs. The first line of its console goes to a log on the host.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from vagoth.definition import Boot, BootFrom, Disk, DiskBus, Kind, Nic
from vagoth.drivers.base import GuestSpec
from vagoth.drivers.libvirt.capabilities import Capabilities
from vagoth.drivers.libvirt.overlay import lay_over, read_fragment
from vagoth.errors import InvalidInput

if TYPE_CHECKING:
    from lxml.etree import _Element as Element

NAMESPACE = "urn:vagoth:node:1"
SERIAL_LOG = "/var/log/libvirt/qemu/{name}-serial.log"
X86 = ("x86_64", "i686")
_PREFIX = {DiskBus.VIRTIO: "vd", DiskBus.SCSI: "sd", DiskBus.SATA: "sd", DiskBus.IDE: "hd"}


def check_spec(spec: GuestSpec) -> None:
    """Find what no host would take, before any is asked.

    :raises InvalidInput: names the field and its value
    """
    if spec.definition.kind is Kind.LXC:
        raise InvalidInput("kind", "lxc", "a kind that this driver makes: kvm or qemu")
    if spec.definition.xml is not None:
        read_fragment(spec.definition.xml)


def domain_xml(spec: GuestSpec, capabilities: Capabilities) -> str:
    """The XML that defines a guest on a host with these capabilities.

    :raises InvalidInput: the host does not run its kind, or its ``xml`` is not to be laid over
    """
    from lxml import etree

    check_spec(spec)
    definition = spec.definition
    domain = etree.Element("domain", type=_domain_type(definition.kind, capabilities))
    _add(domain, "name", spec.name)
    _add(domain, "uuid", spec.uuid)
    metadata = _add(domain, "metadata")
    etree.SubElement(metadata, f"{{{NAMESPACE}}}node", {"id": spec.node_id}, {"vagoth": NAMESPACE})
    _add(domain, "memory", str(definition.memory_bytes // 1024), unit="KiB")
    _add(domain, "vcpu", str(definition.vcpus))
    _add_os(domain, definition.boot, capabilities)
    _add_machine(domain, capabilities)
    _add_devices(domain, spec, capabilities)
    if definition.xml is not None:
        lay_over(domain, read_fragment(definition.xml))
    etree.indent(domain)
    return etree.tostring(domain, encoding="unicode")


def mac_for(uuid: str, index: int) -> str:
    """The MAC of a guest's card that was given none: the same on every host and at each define.

    libvirt would choose another each time. 40 bits of it are chance.
    """
    digest = hashlib.sha256(f"{uuid}/{index}".encode()).digest()
    return "52:" + digest[:5].hex(":")


def _domain_type(kind: Kind, capabilities: Capabilities) -> str:
    if capabilities.is_simulated:
        return "test"
    if kind not in capabilities.kinds:
        runs = ", ".join(capabilities.kinds) or "none that this driver makes"
        raise InvalidInput(
            "kind",
            kind.value,
            f"a kind that this host runs: {runs}",
            cure="set kind=qemu to have it emulated" if Kind.QEMU in capabilities.kinds else "",
        )
    return kind.value


def _add(parent: Element, tag: str, text: str | None = None, /, **attributes: str) -> Element:
    from lxml import etree

    element = etree.SubElement(parent, tag, attributes)
    element.text = text
    return element


def _add_os(domain: Element, boot: Boot | BootFrom, capabilities: Capabilities) -> None:
    os = _add(domain, "os")
    _add(os, "type", "hvm", arch=capabilities.arch)
    if isinstance(boot, Boot):
        for tag in ("kernel", "initrd", "cmdline"):
            if (value := getattr(boot, tag)) is not None:
                _add(os, tag, value)
        return
    if boot is BootFrom.NETWORK:
        _add(os, "boot", dev="network")
    _add(os, "boot", dev="hd")


def _add_machine(domain: Element, capabilities: Capabilities) -> None:
    if capabilities.arch in X86:
        features = _add(domain, "features")
        _add(features, "acpi")
        _add(features, "apic")
        if domain.get("type") == "kvm":
            _add(domain, "cpu", mode="host-model")
        elif domain.get("type") == "qemu":
            # A fixed model, so that it may move to any other host; emulation lacks parts of it.
            cpu = _add(domain, "cpu", mode="custom", match="exact", check="none")
            _add(cpu, "model", "qemu64", fallback="forbid")
    _add(domain, "clock", offset="utc")
    _add(domain, "on_poweroff", "destroy")
    _add(domain, "on_reboot", "restart")
    _add(domain, "on_crash", "destroy")


def _add_devices(domain: Element, spec: GuestSpec, capabilities: Capabilities) -> None:
    devices = _add(domain, "devices")
    if emulator := capabilities.emulators.get(domain.get("type", "")):
        _add(devices, "emulator", emulator)
    disks = spec.definition.disks
    for disk, target in zip(disks, _target_names(disks), strict=True):
        _add_disk(devices, disk, target)
    if any(disk.bus is DiskBus.SCSI for disk in disks):
        _add(devices, "controller", type="scsi", model="virtio-scsi")
    for index, nic in enumerate(spec.definition.nics):
        _add_nic(devices, nic, nic.mac or mac_for(spec.uuid, index))
    serial = _add(devices, "serial", type="pty")
    _add(serial, "log", file=SERIAL_LOG.format(name=spec.name), append="on")
    _add(serial, "target", port="0")
    console = _add(devices, "console", type="pty")
    _add(console, "target", type="serial", port="0")
    if capabilities.is_simulated:
        return
    channel = _add(devices, "channel", type="unix")
    _add(channel, "target", type="virtio", name="org.qemu.guest_agent.0")
    _add(devices, "memballoon", model="virtio")
    rng = _add(devices, "rng", model="virtio")
    _add(rng, "backend", "/dev/urandom", model="random")


def _add_disk(devices: Element, disk: Disk, target: str) -> None:
    kind = "volume" if disk.volume else "block" if str(disk.path).startswith("/dev/") else "file"
    element = _add(devices, "disk", type=kind, device="disk")
    _add(element, "driver", name="qemu", type=disk.format, cache="none", discard="unmap")
    if disk.pool is not None and disk.volume is not None:
        _add(element, "source", pool=disk.pool, volume=disk.volume)
    else:
        _add(element, "source", **{"dev" if kind == "block" else "file": str(disk.path)})
    _add(element, "target", dev=target, bus=disk.bus.value)
    if disk.readonly:
        _add(element, "readonly")


def _target_names(disks: Iterable[Disk]) -> Iterator[str]:
    """``vda``, ``vdb``, ``sda``: in order, for each disk, counted for each prefix."""
    counts: Counter[str] = Counter()
    for disk in disks:
        prefix = _PREFIX[disk.bus]
        yield prefix + _letters(counts[prefix])
        counts[prefix] += 1


def _letters(index: int) -> str:
    """``a`` to ``z``, then ``aa``: as the kernel numbers disks."""
    text = ""
    while index >= 0:
        text = chr(ord("a") + index % 26) + text
        index = index // 26 - 1
    return text


def _add_nic(devices: Element, nic: Nic, mac: str) -> None:
    kind = "network" if nic.network is not None else "bridge"
    element = _add(devices, "interface", type=kind)
    _add(element, "mac", address=mac)
    _add(element, "source", **{kind: str(nic.network or nic.bridge)})
    _add(element, "model", type=nic.model)
