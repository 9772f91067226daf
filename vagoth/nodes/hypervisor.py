"""Hypervisor: a host that runs VMs, spoken to through a driver."""

from __future__ import annotations

import builtins
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from vagoth.allocator import facts_of
from vagoth.drivers.base import Check, HostFacts
from vagoth.errors import InvalidInput
from vagoth.model import State
from vagoth.nodes.base import Node

if TYPE_CHECKING:
    from vagoth.cluster import Cluster
    from vagoth.monitor import HostReport


class Hypervisor(Node):
    """A host. Adding one contacts nothing; what it has is known from first contact on."""

    type = "hv"
    initial_state = State.UNSEEN
    is_driven = True

    @property
    def facts(self) -> HostFacts | None:
        """What the host is, as of first contact; nothing before."""
        return facts_of(self.record)

    async def poll(self) -> HostReport:
        """Look at it now. The report's ``error`` says what was wrong, if anything."""
        return (await self._cluster.poll([self]))[0]

    async def check(self) -> Sequence[Check]:
        """Try each of its prerequisites, with a cure for what fails."""
        return (await self._cluster.check([self]))[self.name]

    @classmethod
    def definition_type(
        cls, definition: Mapping[str, Any], cluster: Cluster
    ) -> builtins.type[msgspec.Struct] | None:
        """The type that its driver wants."""
        driver = definition.get("driver")
        if not isinstance(driver, str):
            known = ", ".join(cluster.drivers.names())
            raise InvalidInput(
                "driver", driver, f"one of {known}", cure="add driver=libvirt" if not driver else ""
            )
        return cluster.drivers.get(driver, field="driver").HostDefinition
