"""Picking the hypervisor for a VM, and saying why: pure functions of the view."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec

from vagoth.definition import VMDefinition, convert
from vagoth.drivers.base import HostFacts
from vagoth.errors import InvalidInput, NoHostFits
from vagoth.model import Record, State, guest_uuid_of
from vagoth.view import View, natural

GIB = 1024**3


@dataclass(frozen=True)
class Placement:
    """The host that was picked, why, and why each of the others was not (by name)."""

    host: Record
    why: str
    others: Mapping[str, str] = field(default_factory=dict)


class Allocator(ABC):
    """Picks hosts. Name a class of your own in vagoth.toml: ``[allocator] class = "mine:Packer"``.

    :param memory: how many times a host's memory its guests may be defined to use together
    :param vcpus: how many times a host's processors its guests may be defined to use together
    """

    def __init__(self, *, memory: float = 1.0, vcpus: float = 8.0) -> None:
        self.memory = memory
        self.vcpus = vcpus

    @abstractmethod
    def place(self, view: View, vm: Record, hosts: list[Record]) -> Placement:
        """Pick one of ``hosts`` for ``vm``. No I/O.

        :raises NoHostFits: none will do; says why for each
        :raises InvalidInput: none will do because of what the definition asks for
        """


class Spread(Allocator):
    """Picks the host that has the largest share of its memory left once it carries the VM."""

    def place(self, view: View, vm: Record, hosts: list[Record]) -> Placement:
        wanted = convert(vm.definition, VMDefinition)
        fits: list[tuple[float, Record, str]] = []
        reasons: dict[str, str] = {}
        for host in sorted(hosts, key=lambda host: natural(host.name)):
            refusal = self.refusal(view, vm, wanted, host)
            if refusal is not None:
                reasons[host.name] = refusal
                continue
            facts = facts_of(host)
            if facts is None:
                fits.append((-1.0, host, "what it has is not known before first contact"))
                continue
            left = facts.memory_bytes * self.memory - used(view, host, vm)[0] - wanted.memory_bytes
            share = left / facts.memory_bytes
            fits.append((share, host, f"{share:.0%} of its memory stays free"))
        if not fits:
            _refuse_kind(vm, wanted, hosts, reasons)
            raise NoHostFits(vm.name, reasons)
        _, chosen, why = max(fits, key=lambda fit: fit[0])
        others = reasons | {host.name: other for _, host, other in fits if host is not chosen}
        return Placement(chosen, why, others)

    def refusal(self, view: View, vm: Record, wanted: VMDefinition, host: Record) -> str | None:
        """Why this host cannot take the VM; nothing if it can."""
        if host.state == State.UNREACHABLE:
            return "unreachable"
        facts = facts_of(host)
        if facts is None:
            return None
        if wanted.kind not in facts.kinds:
            kinds = ", ".join(facts.kinds) or "nothing"
            return f"it cannot run kind {wanted.kind} (it runs {kinds})"
        if wanted.vcpus > facts.cpus:
            return f"it has {facts.cpus} processors, {wanted.vcpus} are wanted"
        memory, vcpus = used(view, host, vm)
        free = facts.memory_bytes * self.memory - memory
        if wanted.memory_bytes > free:
            return (
                f"{max(free, 0) / GIB:.1f} GiB of memory are free,"
                f" {wanted.memory_bytes / GIB:.1f} GiB are wanted"
            )
        if vcpus + wanted.vcpus > facts.cpus * self.vcpus:
            return f"its guests would use {vcpus + wanted.vcpus} vcpus on {facts.cpus} processors"
        return None


def facts_of(host: Record) -> HostFacts | None:
    """What is known of a host since first contact."""
    known = host.metadata.get("facts")
    if known is None:
        return None
    try:
        return msgspec.convert(known, HostFacts)
    except msgspec.ValidationError:
        return None


def used(view: View, host: Record, but: Record | None = None) -> tuple[int, int]:
    """Memory in bytes, and vcpus, that a host's VMs are defined to use together."""
    memory = vcpus = 0
    for child in view.children(host.id):
        if guest_uuid_of(child) is None or (but is not None and child.id == but.id):
            continue
        try:
            definition = convert(child.definition, VMDefinition)
        except InvalidInput:
            continue
        memory += definition.memory_bytes
        vcpus += definition.vcpus
    return memory, vcpus


def _refuse_kind(
    vm: Record, wanted: VMDefinition, hosts: list[Record], reasons: Mapping[str, str]
) -> None:
    kinds = {kind for host in hosts if (facts := facts_of(host)) for kind in facts.kinds}
    by_kind = [text for text in reasons.values() if text.startswith("it cannot run kind")]
    if reasons and len(by_kind) == len(reasons):
        who = f"{next(iter(reasons))} cannot" if len(reasons) == 1 else "no host can"
        default = "" if "kind" in vm.definition else ", the default"
        raise InvalidInput(
            "kind",
            str(wanted.kind),
            "a kind that a host can run",
            message=f"{vm.name} wants kind {wanted.kind}{default}, which {who} run",
            cure=" or ".join(f"set kind={kind}" for kind in sorted(kinds)),
        )
