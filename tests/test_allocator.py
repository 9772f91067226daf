"""Placement is a pure function that can say why."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from vagoth.allocator import Spread, used
from vagoth.definition import Kind
from vagoth.drivers.base import HostFacts
from vagoth.errors import InvalidInput, NoHostFits
from vagoth.model import Record, RecordChange, State
from vagoth.view import View

GIB = 1024**3


def host(
    name: str, *, gib: int = 8, cpus: int = 8, state: str = "up", kinds: str = "kvm"
) -> Record:
    facts = HostFacts(
        hostname=name,
        host_uuid=name,
        hypervisor="test",
        version="1",
        memory_bytes=gib * GIB,
        cpus=cpus,
        kinds=tuple(Kind(kind) for kind in kinds.split()),
    )
    return Record(
        id=name, name=name, type="hv", state=state, metadata={"facts": msgspec.to_builtins(facts)}
    )


def vm(name: str, parent: str | None = None, **definition: Any) -> Record:
    definition = {"memory": "1GiB", **definition}
    return Record(id=name, name=name, parent=parent, keys=(f"uuid:{name}",), definition=definition)


def view(*records: Record) -> View:
    found = View()
    for record in records:
        found.apply(RecordChange(None, record))
    return found


def place(vm: Record, *records: Record, **factors: float) -> str:
    found = view(*records)
    return Spread(**factors).place(found, vm, found.select(type="hv")).host.name


def test_the_emptiest_host_is_taken() -> None:
    assert place(vm("w"), host("hv1"), host("hv2"), vm("a", "hv1")) == "hv2"


def test_what_counts_is_the_share_that_stays_free() -> None:
    assert (
        place(vm("w"), host("big", gib=64), vm("a", "big", memory="16GiB"), host("small"))
        == "small"
    )
    assert place(vm("w"), host("big", gib=64), host("small")) == "big"


def test_equals_are_taken_in_the_order_of_their_names() -> None:
    assert place(vm("w"), host("hv10"), host("hv2")) == "hv2"


@pytest.mark.parametrize(
    ("candidate", "wanted", "reason"),
    [
        (host("h", state=State.UNREACHABLE), {}, "unreachable"),
        (host("h", gib=1), {"memory": "2GiB"}, "1.0 GiB of memory are free, 2.0 GiB are wanted"),
        (host("h", cpus=2), {"vcpus": 3}, "it has 2 processors, 3 are wanted"),
    ],
)
def test_each_refusal_says_why(candidate: Record, wanted: dict[str, Any], reason: str) -> None:
    with pytest.raises(NoHostFits) as caught:
        place(vm("w", **wanted), candidate)
    assert caught.value.reasons == {"h": reason}


def test_processors_may_be_given_out_more_than_once_but_not_for_ever() -> None:
    full = [vm(f"v{number}", "h", memory=1, vcpus=2) for number in range(8)]
    assert place(vm("w", memory=1), host("h", cpus=2, gib=1), *full[:7]) == "h"
    with pytest.raises(NoHostFits, match="would use 17 vcpus on 2 processors"):
        place(vm("w", memory=1), host("h", cpus=2, gib=1), *full)
    assert place(vm("w", memory=1), host("h", cpus=2, gib=1), *full, vcpus=9) == "h"


def test_memory_may_be_given_out_more_than_once_where_that_is_wanted() -> None:
    with pytest.raises(NoHostFits):
        place(vm("w", memory="9GiB"), host("h"))
    assert place(vm("w", memory="9GiB"), host("h"), memory=1.5) == "h"


def test_a_kind_that_nobody_runs_is_the_users_to_change() -> None:
    with pytest.raises(InvalidInput, match="set kind=lxc or set kind=qemu") as caught:
        place(vm("w"), host("a", kinds="qemu"), host("b", kinds="qemu lxc"))
    assert (caught.value.field, caught.value.value) == ("kind", "kvm")


def test_a_kind_that_some_host_runs_is_placed_there() -> None:
    assert place(vm("w", kind="qemu"), host("a"), host("b", kinds="kvm qemu")) == "b"


def test_without_hosts_it_says_how_to_add_one() -> None:
    with pytest.raises(NoHostFits, match="--type hv"):
        place(vm("w"))


def test_a_host_that_was_never_seen_is_the_last_resort() -> None:
    unseen = Record(id="n", name="a-new", type="hv", state="unseen")
    assert place(vm("w"), unseen, host("z")) == "z"
    assert place(vm("w", memory="99GiB"), unseen, host("z")) == "a-new"


def test_used_counts_guests_and_not_other_children() -> None:
    volume = Record(id="d", name="d", type="volume", parent="h", definition={"size": 5})
    found = view(host("h"), vm("a", "h"), vm("b", "h", memory="2GiB", vcpus=3), volume)
    assert used(found, host("h")) == (3 * GIB, 4)
    assert used(found, host("h"), but=vm("a")) == (2 * GIB, 3)
