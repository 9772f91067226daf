"""What a libvirt host's definition may say, and which URI libvirt is opened with."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import quote

import msgspec

from vagoth.errors import InvalidInput
from vagoth.ssh import SSHTarget

# A driver, and what it takes: no transport, host or query. Those are ours to set.
_URI = re.compile(r"(?P<driver>[a-z][a-z0-9]*)://(?P<path>/[^?#\s\x00-\x1f]*)?")
EXPECTED_URI = "libvirt's name for a hypervisor on its own host, such as qemu:///system"


class LibvirtHost(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A host that libvirt manages.

    ``ssh`` is user@host:port or an alias in ssh_config; without it, this machine. ``uri`` is
    what libvirt calls the hypervisor on the host itself; ``socket`` is where its daemon listens,
    and found by itself where that is usual.
    """

    driver: str = "libvirt"
    ssh: str | None = None
    uri: str = "qemu:///system"
    socket: str | None = None

    def __post_init__(self) -> None:
        if not _URI.fullmatch(self.uri):
            raise ValueError(f"uri: {EXPECTED_URI}")
        if self.socket is not None and not re.fullmatch(r"/[^\x00-\x1f]+", self.socket):
            raise ValueError("socket: an absolute path on the host")
        if self.ssh is not None:
            try:
                SSHTarget.parse(self.ssh)
            except InvalidInput as error:
                raise ValueError(f"ssh: {error.expected}") from None

    @property
    def target(self) -> SSHTarget | None:
        """Where to log in; nothing for this machine."""
        return SSHTarget.parse(self.ssh) if self.ssh is not None else None

    @property
    def kind(self) -> str:
        """libvirt's name for the driver: ``qemu``, ``test``, ``lxc``."""
        return self.uri.partition(":")[0]

    def uri_through(self, local_socket: Path | str) -> str:
        """The same hypervisor, by way of a daemon's socket that is here."""
        driver, _, path = self.uri.partition("://")
        return f"{driver}+unix://{path}?socket={quote(str(local_socket))}"
