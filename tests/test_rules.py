"""What every registry refuses, decided without one."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import msgspec
import pytest

from vagoth.errors import InUse, InvalidInput, StaleRevision, Taken, VagothError
from vagoth.model import Change, Delete, Put, Record, RecordChange
from vagoth.registry.ahead import Ahead
from vagoth.registry.rules import FORMER_KEPT, decide
from vagoth.view import View

NOW = 1000.0


def view_of(*records: Record) -> View:
    view = View()
    view.load(records)
    return view


def decided(
    view: View,
    *changes: Change,
    expect: Mapping[str, str | None] | None = None,
    absent: Collection[str] = (),
) -> tuple[RecordChange, ...]:
    """Decide changes by somebody who has read everything."""
    if expect is None:
        expect = {record.id: record.revision for record in view}
    return decide(view, changes, expect=expect, absent=absent, revision="new", now=NOW)


def changed(record: Record, **fields: Any) -> Put:
    return Put(msgspec.structs.replace(record, **fields))


HV1 = Record(id="h1", name="hv1", type="hv", revision="1", created=1.0)
HV2 = Record(id="h2", name="hv2", type="hv", revision="1")
WEB = Record(id="w", name="web1", parent="h1", claimed_at=5.0, revision="1", keys=("ip:1",))


def test_what_a_commit_adds_is_kept_here() -> None:
    [change] = decided(View(), Put(Record(id="a", name="x", keys=("k:2", "k:1", "k:2"))))
    assert change.before is None
    assert change.after == Record(
        id="a",
        name="x",
        keys=("k:1", "k:2"),
        created=NOW,
        updated=NOW,
        state_since=NOW,
        revision="new",
    )


def test_times_and_former_parents_cannot_be_forged() -> None:
    view = view_of(HV1, HV2, WEB)
    forged = {"created": 7.0, "updated": 7.0, "state_since": 7.0, "revision": "7"}
    assert decided(view, changed(WEB, **forged, claimed_at=7.0, former=("h2",))) == ()
    [change] = decided(view, changed(WEB, **forged, claimed_at=7.0, former=("h2",), tenant="t"))
    after = change.after
    assert after is not None
    assert (after.created, after.updated, after.revision) == (0.0, NOW, "new")
    assert (after.claimed_at, after.former, after.state_since) == (5.0, (), 0.0)


def test_a_state_has_its_time() -> None:
    [change] = decided(view_of(HV1, WEB), changed(WEB, state="running"))
    assert change.after is not None
    assert change.after.state_since == NOW


def test_former_parents_are_kept_latest_first_and_not_without_end() -> None:
    hosts = [Record(id=f"h{number}", name=f"hv{number}") for number in range(20)]
    record = Record(id="w", name="web1")
    for number in range(20):
        [change] = decided(view_of(*hosts, record), changed(record, parent=f"h{number}"))
        assert change.after is not None
        record = change.after
        assert record.claimed_at == NOW
    assert record.former == tuple(f"h{number}" for number in range(18, 18 - FORMER_KEPT, -1))
    [change] = decided(view_of(*hosts, record), changed(record, parent="h18"))
    assert change.after is not None
    assert change.after.former[:2] == ("h19", "h17")
    [change] = decided(view_of(*hosts, record), changed(record, parent=None))
    assert change.after is not None
    assert (change.after.claimed_at, change.after.former[0]) == (None, "h19")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("id", "a b"),
        ("name", "a/b"),
        ("name", "-x"),
        ("keys", ("nocolon",)),
        ("type", ""),
        ("type", "a\nb"),
        ("state", "x" * 64),
        ("tenant", ""),
        ("tags", {"": "x"}),
        ("tags", {"a=b": "c"}),
        ("tags", {"a": "x\ny"}),
        ("tags", {"a": "x" * 1025}),
        ("links", {"": ()}),
        ("links", {"members": ("nobody",)}),
        ("parent", "nobody"),
        ("parent", "a"),
    ],
)
def test_what_is_malformed_is_refused(field: str, value: Any) -> None:
    record = msgspec.structs.replace(Record(id="a", name="x"), **{field: value})
    with pytest.raises(InvalidInput) as caught:
        decided(View(), Put(record))
    assert caught.value.expected


def test_old_names_and_keys_stay_valid_when_rules_become_stricter() -> None:
    old = Record(id="a b", name="an old name", keys=("old",), revision="1")
    [change] = decided(view_of(old), changed(old, state="running"))
    assert change.after is not None
    assert change.after.name == "an old name"


@pytest.mark.parametrize(
    ("record", "what", "holder"),
    [
        (Record(id="n", name="web1"), "name", "web1"),
        (Record(id="n", name="w"), "name", "web1"),
        (Record(id="web1", name="n"), "id", "web1"),
        (Record(id="n", name="n", keys=("ip:1",)), "key", "web1"),
    ],
)
def test_what_is_taken_is_refused_by_its_holders_name(
    record: Record, what: str, holder: str
) -> None:
    with pytest.raises(Taken) as caught:
        decided(view_of(HV1, WEB), Put(record))
    assert (caught.value.what, caught.value.holder) == (what, holder)


def test_two_new_nodes_cannot_share_anything() -> None:
    for one, two in (
        (Record(id="a", name="x"), Record(id="b", name="x")),
        (Record(id="a", name="x"), Record(id="b", name="a")),
        (Record(id="a", name="b"), Record(id="b", name="x")),
        (Record(id="a", name="x", keys=("k:1",)), Record(id="b", name="y", keys=("k:1",))),
    ):
        with pytest.raises(Taken):
            decided(View(), Put(one), Put(two))


def test_everything_can_move_around_in_one_commit() -> None:
    one = Record(id="a", name="x", keys=("k:1",), revision="1")
    two = Record(id="b", name="y", keys=("k:2",), revision="1")
    three = Record(id="c", name="z", keys=("k:3",), revision="1")
    view = view_of(one, two, three)
    turned = (
        changed(one, name="y", keys=("k:2",)),
        changed(two, name="z", keys=("k:3",)),
        changed(three, name="x", keys=("k:1",)),
    )
    assert len(decided(view, *turned)) == 3
    with pytest.raises(Taken):
        decided(view, *turned[:2])
    freed = (Delete("a"), changed(two, name="x", keys=("k:1",)))
    assert len(decided(view, *freed)) == 2
    assert len(decided(view, *reversed(freed))) == 2
    # The name that was freed may even become the id of another.
    assert len(decided(view, changed(one, name="q"), Put(Record(id="x", name="new")))) == 2


@pytest.mark.parametrize(
    ("expect", "error"),
    [
        ({"w": "0"}, StaleRevision),
        ({"w": None}, Taken),
        ({"w": "1", "h1": "0"}, StaleRevision),
        ({"w": "1", "gone": "1"}, StaleRevision),
        ({"w": "1", "h1": None}, Taken),
        ({}, InvalidInput),
        ({"w": "1", "gone": None}, None),
    ],
)
def test_a_decision_stands_on_what_was_read(
    expect: dict[str, str | None], error: type[VagothError] | None
) -> None:
    view = view_of(HV1, WEB)
    for change in (changed(WEB, tenant="t"), Delete("w")):
        if error is None:
            assert len(decided(view, change, expect=expect)) == 1
        else:
            with pytest.raises(error):
                decided(view, change, expect=expect)


def test_what_was_deleted_meanwhile_is_not_made_again() -> None:
    with pytest.raises(StaleRevision):
        decided(View(), changed(WEB, tenant="t"), expect={"w": "1"})


def test_keys_that_must_be_absent_are() -> None:
    view = view_of(HV1, WEB)
    assert decided(view, changed(WEB, tenant="t"), absent=["ip:2"])
    with pytest.raises(Taken):
        decided(view, changed(WEB, tenant="t"), absent=["ip:1"])
    with pytest.raises(Taken):
        decided(view, Delete("w"), absent=["ip:1"])


def test_rings_are_refused_however_they_close() -> None:
    a = Record(id="a", name="a", revision="1")
    b = Record(id="b", name="b", parent="a", revision="1")
    c = Record(id="c", name="c", parent="b", revision="1")
    view = view_of(a, b, c)
    for ring in (
        [changed(a, parent="a")],
        [changed(a, parent="b")],
        [changed(a, parent="c")],
        [changed(b, parent=None), changed(a, parent="b"), changed(b, parent="a")][1:],
    ):
        with pytest.raises(InvalidInput, match="ring"):
            decided(view, *ring)
    assert decided(view, changed(a, parent="c"), changed(b, parent=None))


def test_who_is_needed_stays() -> None:
    linked = Record(id="l", name="l", links={"attached": ("w",)}, revision="1")
    view = view_of(HV1, WEB, linked)
    for gone, holder in ((HV1, "web1"), (WEB, "l")):
        with pytest.raises(InUse) as caught:
            decided(view, Delete(gone.id))
        assert caught.value.holder == holder
    assert decided(view, Delete("h1"), changed(WEB, parent=None))
    assert decided(view, Delete("w"), Delete("l"))
    assert decided(view, Delete("w"), changed(linked, links={}))
    with pytest.raises(InvalidInput):
        decided(view, Delete("h1"), changed(WEB, tenant="t"))


def test_a_node_that_links_to_itself_can_go() -> None:
    selfish = Record(id="s", name="s", links={"me": ("s",)}, revision="1")
    assert decided(view_of(selfish), Delete("s"))


def test_nothing_changes_nothing() -> None:
    view = view_of(HV1, WEB)
    assert decided(view) == decided(view, Put(WEB), Delete("nobody")) == ()


def test_one_change_for_each_node() -> None:
    with pytest.raises(InvalidInput):
        decided(view_of(HV1, WEB), Delete("w"), changed(WEB, tenant="t"))


def test_the_view_is_left_alone() -> None:
    view = view_of(HV1, WEB)
    decided(view, changed(WEB, name="other"), Put(Record(id="n", name="n")))
    assert list(view) == [HV1, WEB]
    assert view.by_name("other") is None


def test_undurable_changes_count_in_what_is_decided_next() -> None:
    """Commits that share a write: each is decided as if those before it had happened."""
    view = view_of(HV1, HV2, WEB)
    ahead = Ahead(view)
    for change in decided(view, changed(WEB, name="www", keys=("ip:2",), parent="h2")):
        ahead.apply(change)
    expect = {"w": "new", "h1": "1", "h2": "1"}
    assert decided(ahead, Put(Record(id="n", name="web1", keys=("ip:1",))), expect={"n": None})
    assert decided(ahead, Delete("h1"), expect=expect)
    with pytest.raises(InUse):
        decided(ahead, Delete("h2"), expect=expect)
    with pytest.raises(Taken):
        decided(ahead, Put(Record(id="n", name="www")), expect={"n": None})
    with pytest.raises(Taken):
        decided(ahead, Put(Record(id="n", name="n", keys=("ip:2",))), expect={"n": None})
    with pytest.raises(StaleRevision):
        decided(ahead, Delete("w"), expect={"w": "1"})
    for change in decided(ahead, Delete("w"), expect=expect):
        ahead.apply(change)
    assert ahead.get("w") is ahead.by_name("www") is ahead.by_name("web1") is None
    assert decided(ahead, Delete("h2"), expect={"h2": "1"})
    assert view.get("w") is WEB
