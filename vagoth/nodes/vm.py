"""VM: a guest of a hypervisor. It is in the registry before it has a host, and after."""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from msgspec.structs import replace

from vagoth.actions.base import Action
from vagoth.actions.machine import Pause, Reboot, Resume, Shutdown, Stop
from vagoth.actions.placement import Define, Migrate, Start, Undefine
from vagoth.definition import VMDefinition, convert
from vagoth.errors import InvalidInput
from vagoth.model import Record
from vagoth.nodes.base import Node

if TYPE_CHECKING:
    from vagoth.cluster import Cluster

#: Keys that follow from the definition: nobody adds or removes them by hand.
DERIVED = ("uuid:", "mac:")


class VM(Node):
    """A virtual machine.

    Every verb returns when it is done. Besides what each one names, all raise ``Busy`` (another
    process works on it, and still does after ``wait_s``), a ``HostError`` (its host could not
    be used; nothing was begun), ``JobFailed`` (the host said no) and ``OutcomeUnknown`` (the
    answer was lost: the state is ``unknown`` until a host can be asked).
    """

    type = "vm"
    Definition = VMDefinition
    is_driven = True
    claims_parent = True
    actions: ClassVar[Mapping[str, Callable[..., Action]]] = {
        **Node.actions,
        "define": Define,
        "start": Start,
        "shutdown": Shutdown,
        "stop": Stop,
        "reboot": Reboot,
        "pause": Pause,
        "resume": Resume,
        "undefine": Undefine,
        "migrate": Migrate,
    }

    async def define(self, *, on: Node | str | None = None, wait_s: float = 0.0) -> None:
        """Claim a host and make the VM known there, off; or bring it up to date where it is.

        :param on: the host it must be
        :raises NoHostFits: no host can take it; says why for each
        :raises Claimed: it is on another host than ``on``
        """
        await self._cluster.submit(self, "define", on=on, wait_s=wait_s)

    async def start(self, *, on: Node | str | None = None, wait_s: float = 0.0) -> None:
        """Start it, and return when it runs; that it runs already is fine.

        Without a host it first gets one, is claimed for it and defined there.

        :param on: the host it must be
        :raises NoHostFits: no host can take it; says why for each
        :raises Claimed: it is, or runs, on another host
        """
        await self._cluster.submit(self, "start", on=on, wait_s=wait_s)

    async def shutdown(self, *, grace_s: float | None = None, wait_s: float = 0.0) -> None:
        """Ask it to power off, and wait until it has.

        :param grace_s: longest wait, in seconds; from the configuration if not given
        :raises ShutdownTimeout: it still runs; nothing was forced
        """
        await self._cluster.submit(self, "shutdown", grace_s=grace_s, wait_s=wait_s)

    async def stop(self, *, wait_s: float = 0.0) -> None:
        """Pull the plug; that it is off already is fine."""
        await self._cluster.submit(self, "stop", wait_s=wait_s)

    async def reboot(self, *, wait_s: float = 0.0) -> None:
        """Ask it to reboot; return once it was asked."""
        await self._cluster.submit(self, "reboot", wait_s=wait_s)

    async def pause(self, *, wait_s: float = 0.0) -> None:
        """Freeze it in memory."""
        await self._cluster.submit(self, "pause", wait_s=wait_s)

    async def resume(self, *, wait_s: float = 0.0) -> None:
        """Let it go on after ``pause``."""
        await self._cluster.submit(self, "resume", wait_s=wait_s)

    async def undefine(self, *, wait_s: float = 0.0) -> None:
        """Take it, which is off, from its host, keeping its disks; its claim is given up.

        :raises InUse: it runs
        """
        await self._cluster.submit(self, "undefine", wait_s=wait_s)

    async def migrate(self, host: Node | str, *, wait_s: float = 0.0) -> None:
        """Move it to another host while it runs.

        :raises JobFailed: it does not run, or the hosts refuse; it stays where it is
        :raises NoHostFits: it does not fit there
        """
        await self._cluster.submit(self, "migrate", host=host, wait_s=wait_s)

    @classmethod
    def prepare(cls, record: Record, before: Record | None, cluster: Cluster) -> Record:
        """Give it a UUID and each of its cards a MAC, and keep both as keys."""
        record = super().prepare(record, before, cluster)
        _check_keys(record, before)
        record = replace(record, definition=_with_macs(record.definition))
        definition = convert(record.definition, VMDefinition)
        had = before.keys if before is not None else ()
        known = next((key.removeprefix("uuid:") for key in had if key.startswith("uuid:")), None)
        wanted = definition.uuid or known or str(uuid.uuid4())
        if before is not None and before.parent is not None and wanted != known:
            raise InvalidInput(
                "uuid", wanted, f"{known} for as long as it is on a host", cure="undefine it first"
            )
        derived = {f"uuid:{wanted}"}
        derived |= {f"mac:{nic.mac.lower()}" for nic in definition.nics if nic.mac}
        kept = {key for key in record.keys if not key.startswith(DERIVED)}
        return replace(record, keys=tuple(sorted(kept | derived)))


def _check_keys(record: Record, before: Record | None) -> None:
    had = before.keys if before is not None else ()
    for key in {*record.keys} ^ {*had}:
        if key.startswith(DERIVED):
            raise InvalidInput(
                "keys", key, "a key of your own: this one follows from the definition"
            )


def _with_macs(definition: Mapping[str, Any]) -> Mapping[str, Any]:
    nics = definition.get("nics")
    if not nics or all(nic.get("mac") for nic in nics):
        return definition
    # Without one the host would make up another at each definition.
    return {
        **definition,
        "nics": [nic if nic.get("mac") else {**nic, "mac": _mac()} for nic in nics],
    }


def _mac() -> str:
    # 52:54:00 is what QEMU and KVM use for guests: locally administered, one card.
    return "52:54:00:" + secrets.token_bytes(3).hex(":")
