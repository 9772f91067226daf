"""The driver: opens sessions to libvirt's hosts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from vagoth.definition import convert
from vagoth.drivers.base import Capability, Check, Driver, Host, Session
from vagoth.drivers.libvirt.check import check
from vagoth.drivers.libvirt.definition import LibvirtHost
from vagoth.drivers.libvirt.opening import open_link
from vagoth.drivers.libvirt.session import LibvirtSession


class LibvirtDriver(Driver):
    """Hosts that libvirt manages: this machine's, or others' by SSH."""

    name = "libvirt"
    capabilities: ClassVar[frozenset[Capability]] = frozenset(Capability)
    HostDefinition = LibvirtHost

    async def open(self, host: Host) -> Session:
        """Connect to a host's libvirt, within ``settings.connect_timeout_s``.

        :raises InvalidInput: its definition is refused
        :raises HostError: which kind it is says what is wrong; ``cure`` what to do
        :raises MissingExtra: libvirt-python is not installed
        """
        definition = convert(host.definition, LibvirtHost)
        return LibvirtSession(host, await open_link(host.name, definition, self.settings))

    async def check(self, host: Host) -> Sequence[Check]:
        return await check(host, self.settings)
