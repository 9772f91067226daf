"""What was seen on hosts, as records: pure functions from a view and a look to changed records.

One guest of a claimed VM gives the VM's state; where hosts contradict the registry, what can be
told for certain is followed, and the rest is an alarm. Nodes on which an action is at work (an
intent) are left alone: the action, or whoever finishes it, looks for itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from dataclasses import replace as replaced

import msgspec
from msgspec.structs import replace

from vagoth.drivers.base import Guest, HostFacts, Power
from vagoth.errors import HostError
from vagoth.model import Record, State, guest_uuid_of
from vagoth.view import View

DUPLICATE = "duplicate"
HOST_KEY = "host:"


@dataclass(frozen=True)
class Look:
    """What one host had at one time: its guests, or the error.

    ``generation`` is the view's when the look began: what was written in a later one is newer
    than what was seen. ``time`` is when it ended, in epoch seconds.
    """

    host_id: str
    generation: int
    time: float
    took_s: float
    facts: HostFacts | None = None
    guests: Mapping[str, Guest] | None = None
    error: HostError | None = None


def active(guest: Guest | None) -> bool:
    """Whether the guest holds memory on its host: it runs, or is paused."""
    return guest is not None and guest.power in (Power.RUNNING, Power.PAUSED)


def vm_state(before: str, guest: Guest | None) -> str:
    """The state of a placed VM, from what its host says; ``before`` is what it was."""
    if guest is None:
        return State.MISSING
    if guest.power is Power.RUNNING:
        return State.RUNNING
    if guest.power is Power.PAUSED:
        return State.PAUSED
    if guest.power is Power.CRASHED:
        return State.CRASHED
    return before if before == State.DEFINED else State.STOPPED


def identity_problem(view: View, host_id: str, facts: HostFacts) -> HostError | None:
    """Why the machine that answered is not the one that this node stands for; nothing if it is.

    A machine is known by the UUID that its hypervisor gives it, a key (``host:…``) of its node
    since first contact. Guests of one machine say nothing of those of another.
    """
    host = view.get(host_id)
    if host is None or not facts.host_uuid:
        return None
    key = HOST_KEY + facts.host_uuid
    owner = view.by_key(key)
    if owner is not None and owner.id != host_id:
        return HostError(
            host.name,
            f"it is the same machine as {owner.name} (host UUID {facts.host_uuid})",
            cure=f"delete one of the two; if they are two machines, give {host.name} a host_uuid"
            " of its own in its libvirtd.conf",
        )
    known = [key for key in host.keys if key.startswith(HOST_KEY)]
    if known and key not in known:
        return HostError(
            host.name,
            f"another machine answers than before (host UUID {facts.host_uuid},"
            f" it was {known[0].removeprefix(HOST_KEY)}), and the former may still run guests",
            cure=f"if the former is gone for good: set {host.name} --no-key {known[0]}",
        )
    return None


def distinct(view: View, looks: Sequence[Look]) -> list[Look]:
    """The looks, those in error that were at another machine than meant, or at one twice."""
    found: list[Look] = []
    by_machine: dict[str, str] = {}
    for look in looks:
        error = look.error
        if look.facts is not None and error is None:
            error = identity_problem(view, look.host_id, look.facts)
            first = by_machine.setdefault(look.facts.host_uuid or look.host_id, look.host_id)
            if error is None and first != look.host_id:
                name, other = view.name_of(look.host_id), view.name_of(first)
                error = HostError(name or "", f"it is the same machine as {other}")
        found.append(look if error is look.error else replaced(look, guests=None, error=error))
    return found


def host_up(view: View, look: Look) -> Iterable[Record]:
    """The host's record, where the look shows it differently: up again, other facts."""
    host = view.get(look.host_id)
    if host is None or look.error is not None:
        return
    metadata = {key: value for key, value in host.metadata.items() if key != "problem"}
    keys = host.keys
    if look.facts is not None:
        metadata["facts"] = msgspec.to_builtins(look.facts)
        if look.facts.host_uuid:
            keys = tuple(sorted({*keys, HOST_KEY + look.facts.host_uuid}))
    changed = replace(host, state=State.UP, metadata=metadata, keys=keys)
    if changed != host:
        yield changed


def host_down(view: View, host_id: str, error: HostError) -> Iterable[Record]:
    """The host as unreachable, and its VMs, whose states nobody can tell any more."""
    host = view.get(host_id)
    if host is None:
        return
    problem = error.problem
    if host.state != State.UNREACHABLE or host.metadata.get("problem") != problem:
        metadata = {**host.metadata, "problem": problem}
        yield replace(host, state=State.UNREACHABLE, metadata=metadata)
    for vm in view.children(host_id):
        if guest_uuid_of(vm) is not None and vm.intent is None and vm.state != State.UNKNOWN:
            yield replace(vm, state=State.UNKNOWN)


def guests_seen(view: View, looks: Sequence[Look]) -> list[Record]:
    """The VMs whose records differ from what these looks show.

    A VM found active on a host that does not hold its claim is followed there if nobody held
    the claim, or if the holder, in the same looks, does not have it active; if it is active on
    both, or the holder did not answer, that is an alarm and nothing is mended.
    """
    return [after for after, is_newer in _vms_seen(view, looks) if not is_newer]


def overtaken(view: View, looks: Sequence[Look]) -> bool:
    """Whether a VM was written after these looks began, and they show it differently.

    Which of the two is true now, only another look can tell.
    """
    return any(is_newer for _, is_newer in _vms_seen(view, looks))


def _vms_seen(view: View, looks: Sequence[Look]) -> Iterator[tuple[Record, bool]]:
    """Each VM that the looks show differently, and whether its record is newer than they are."""
    answered = {look.host_id: look for look in looks if look.guests is not None}
    where: dict[str, list[str]] = {}
    for look in answered.values():
        for uuid, guest in (look.guests or {}).items():
            if active(guest):
                where.setdefault(uuid, []).append(look.host_id)
    concerned = {vm.id: vm for look in answered.values() for vm in view.select(parent=look.host_id)}
    for uuid in where:
        vm = view.by_key(f"uuid:{uuid}")
        if vm is not None:
            concerned[vm.id] = vm
    for vm in concerned.values():
        found = _vm_seen(view, vm, answered, where)
        if found is not None and found[0] != vm:
            yield found


def _vm_seen(
    view: View, vm: Record, answered: Mapping[str, Look], where: Mapping[str, list[str]]
) -> tuple[Record, bool] | None:
    uuid = guest_uuid_of(vm)
    if uuid is None or vm.intent is not None:
        return None
    hosts = where.get(uuid, [])
    home = answered.get(vm.parent) if vm.parent is not None else None
    looks = [answered[host_id] for host_id in hosts] + ([home] if home else [])
    is_newer = any(view.touched(vm.id) > look.generation for look in looks)
    elsewhere = [host_id for host_id in hosts if host_id != vm.parent]
    if len(hosts) > 1 or (elsewhere and vm.parent is not None and home is None):
        return _alarmed(vm, elsewhere), is_newer
    if elsewhere:
        guest = (answered[elsewhere[0]].guests or {})[uuid]
        vm = replace(vm, parent=elsewhere[0], state=vm_state(vm.state, guest))
    elif home is not None:
        vm = replace(vm, state=vm_state(vm.state, (home.guests or {}).get(uuid)))
    return _calmed(view, vm, answered), is_newer


def _alarmed(vm: Record, elsewhere: list[str]) -> Record:
    known = vm.metadata.get("duplicate_on", ())
    hosts = sorted({*known, *elsewhere})
    return replace(vm, alarm=DUPLICATE, metadata={**vm.metadata, "duplicate_on": hosts})


def _calmed(view: View, vm: Record, answered: Mapping[str, Look]) -> Record:
    # The alarm stands until every host that had the guest besides its parent was asked again.
    known = vm.metadata.get("duplicate_on", ())
    suspects = [host_id for host_id in known if host_id != vm.parent and host_id in view]
    if vm.alarm != DUPLICATE or not all(host_id in answered for host_id in suspects):
        return vm
    metadata = {key: value for key, value in vm.metadata.items() if key != "duplicate_on"}
    return replace(vm, alarm=None, metadata=metadata)


def strangers(view: View, look: Look) -> list[Guest]:
    """The guests of a host that the registry does not know."""
    return [
        guest for uuid, guest in (look.guests or {}).items() if view.by_key(f"uuid:{uuid}") is None
    ]
