"""What a host can run, from libvirt's capabilities XML. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from vagoth.definition import Kind


@dataclass(frozen=True)
class Capabilities:
    """What generated XML needs to know of a host.

    ``emulators`` are the programs that run guests of the host's own architecture, by the type of
    domain (``kvm``, ``qemu``, ``test``); empty text where libvirt names none.
    """

    arch: str
    host_uuid: str = ""
    emulators: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_simulated(self) -> bool:
        """Whether it is libvirt's own test driver, which runs anything and nothing."""
        return "test" in self.emulators

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The kinds of guests that it runs, the fastest first."""
        if self.is_simulated:
            return (Kind.KVM, Kind.QEMU)
        return tuple(kind for kind in (Kind.KVM, Kind.QEMU) if kind.value in self.emulators)


def read_capabilities(xml: str) -> Capabilities:
    """The part of libvirt's answer that counts: guests of the host's own architecture."""
    from lxml import etree

    root = etree.fromstring(xml.encode())
    arch = root.findtext("host/cpu/arch") or "x86_64"
    emulators: dict[str, str] = {}
    for guest in root.iterfind("guest"):
        if guest.findtext("os_type") != "hvm":
            continue
        for found in guest.iterfind("arch"):
            if found.get("name") != arch:
                continue
            usual = found.findtext("emulator") or ""
            for domain in found.iterfind("domain"):
                emulator = domain.findtext("emulator") or usual
                emulators.setdefault(domain.get("type", ""), emulator)
    return Capabilities(arch, root.findtext("host/uuid") or "", emulators)
