"""What looks at hosts mean: tables of cases over pure functions."""

from __future__ import annotations

from typing import Any

import pytest

from vagoth.actions.observe import Look, guests_seen, host_down, host_up, strangers
from vagoth.actions.recovery import resolve
from vagoth.drivers.base import Guest, Power
from vagoth.errors import HostUnreachable
from vagoth.model import Holder, Intent, Record, RecordChange
from vagoth.view import View

UUID = "00000000-0000-0000-0000-000000000001"
OWNER = Holder(process=1, machine="box")


def guest(power: Power = Power.RUNNING, uuid: str = UUID) -> Guest:
    return Guest(uuid, "web1", power, 2**20, 1)


def vm(**fields: Any) -> Record:
    return Record(**{"id": "w", "name": "web1", "keys": (f"uuid:{UUID}",), **fields})


def world(*records: Record) -> View:
    view = View()
    for name in ("hv1", "hv2", "hv3"):
        view.apply(RecordChange(None, Record(id=name, name=name, type="hv", state="up")))
    for record in records:
        view.apply(RecordChange(None, record))
    return view


def look(view: View, host: str, *guests: Guest, at: int | None = None) -> Look:
    generation = view.generation if at is None else at
    return Look(host, generation, 0.0, 0.0, guests={guest.uuid: guest for guest in guests})


def after(view: View, *looks: Look) -> Record:
    [record] = guests_seen(view, looks)
    return record


@pytest.mark.parametrize(
    ("before", "power", "state"),
    [
        ("running", Power.OFF, "stopped"),
        ("defined", Power.RUNNING, "running"),
        ("running", Power.PAUSED, "paused"),
        ("running", Power.CRASHED, "crashed"),
        ("running", None, "missing"),
        ("unknown", Power.OFF, "stopped"),
        ("missing", Power.RUNNING, "running"),
    ],
)
def test_the_host_of_the_claim_gives_the_state(
    before: str, power: Power | None, state: str
) -> None:
    view = world(vm(parent="hv1", state=before))
    guests = [guest(power)] if power else []
    assert after(view, look(view, "hv1", *guests)).state == state


@pytest.mark.parametrize(
    ("before", "power"),
    [("defined", Power.OFF), ("stopped", Power.OFF), ("running", Power.RUNNING)],
)
def test_what_is_as_it_was_is_not_written(before: str, power: Power) -> None:
    view = world(vm(parent="hv1", state=before))
    assert guests_seen(view, [look(view, "hv1", guest(power))]) == []


def test_what_was_written_after_the_look_began_is_newer_than_the_look() -> None:
    view = world(vm(parent="hv1", state="running"))
    began = view.generation
    before = view.get("w")
    view.apply(RecordChange(before, vm(parent="hv1", state="stopped")))
    assert guests_seen(view, [look(view, "hv1", guest(), at=began)]) == []
    assert after(view, look(view, "hv1", guest())).state == "running"


def test_an_edit_during_the_look_does_not_make_it_old() -> None:
    view = world(vm(parent="hv1", state="running"))
    began = view.generation
    view.apply(RecordChange(view.get("w"), vm(parent="hv1", state="running", tags={"a": "1"})))
    assert after(view, look(view, "hv1", at=began)).state == "missing"


def test_a_node_under_an_action_is_left_to_the_action() -> None:
    intent = Intent(action="start", txid="t", since=0, owner=OWNER)
    view = world(vm(parent="hv1", state="starting", intent=intent))
    assert guests_seen(view, [look(view, "hv1")]) == []


def test_one_that_nobody_claimed_is_followed_to_where_it_runs() -> None:
    view = world(vm(state="new"))
    found = after(view, look(view, "hv2", guest()))
    assert (found.parent, found.state, found.alarm) == ("hv2", "running", None)


def test_one_that_is_off_elsewhere_is_followed_nowhere() -> None:
    view = world(vm(state="new"))
    assert guests_seen(view, [look(view, "hv2", guest(Power.OFF))]) == []


def test_one_that_was_moved_behind_our_back_is_followed() -> None:
    view = world(vm(parent="hv1", state="running"))
    found = after(view, look(view, "hv1"), look(view, "hv2", guest()))
    assert (found.parent, found.state, found.alarm) == ("hv2", "running", None)


def test_one_on_two_hosts_is_an_alarm_and_is_not_moved() -> None:
    view = world(vm(parent="hv1", state="running"))
    found = after(view, look(view, "hv1", guest()), look(view, "hv2", guest()))
    assert (found.parent, found.alarm) == ("hv1", "duplicate")
    assert found.metadata["duplicate_on"] == ["hv2"]


def test_one_that_runs_elsewhere_while_its_host_is_silent_is_an_alarm() -> None:
    view = world(vm(parent="hv1", state="unknown"))
    found = after(view, look(view, "hv2", guest()))
    assert (found.parent, found.state, found.alarm) == ("hv1", "unknown", "duplicate")


def test_an_alarm_stands_until_all_who_had_the_guest_were_asked_again() -> None:
    alarmed = vm(
        parent="hv1", state="running", alarm="duplicate", metadata={"duplicate_on": ["hv2"]}
    )
    view = world(alarmed)
    assert guests_seen(view, [look(view, "hv1", guest())]) == []
    calmed = after(view, look(view, "hv1", guest()), look(view, "hv2"))
    assert (calmed.alarm, dict(calmed.metadata)) == (None, {})


def test_a_silent_host_leaves_its_guests_unknown_and_their_claims_alone() -> None:
    view = world(vm(parent="hv1", state="running"))
    [host, web] = host_down(view, "hv1", HostUnreachable("hv1", "timed out"))
    assert (host.state, host.metadata["problem"]) == ("unreachable", "timed out")
    assert (web.state, web.parent) == ("unknown", "hv1")


def test_a_host_that_is_back_has_no_problem_any_more() -> None:
    view = world()
    down = Record(id="hv1", name="hv1", type="hv", state="unreachable", metadata={"problem": "x"})
    view.apply(RecordChange(view.get("hv1"), down))
    [host] = host_up(view, look(view, "hv1"))
    assert (host.state, dict(host.metadata)) == ("up", {})


def test_strangers_are_those_that_no_record_knows() -> None:
    view = world(vm(parent="hv1"))
    stranger = guest(uuid="00000000-0000-0000-0000-000000000002")
    assert strangers(view, look(view, "hv1", guest(), stranger)) == [stranger]


def intent(action: str, **args: str) -> Intent:
    return Intent(action=action, txid="t", since=0.0, owner=OWNER, args=args)


OFF, ON, NONE = guest(Power.OFF), guest(), None


@pytest.mark.parametrize(
    ("action", "args", "there", "parent", "state", "leftover"),
    [
        # A start that claimed: what runs stays, all else is taken back.
        ("start", {"claimed": "yes", "state": "new"}, {"hv1": ON}, "hv1", "running", None),
        ("start", {"claimed": "yes", "state": "new"}, {"hv1": OFF}, None, "new", "hv1"),
        ("start", {"claimed": "yes", "state": "new"}, {"hv1": NONE}, None, "new", None),
        # A start where it was already.
        ("start", {"state": "stopped"}, {"hv1": OFF}, "hv1", "stopped", None),
        ("start", {"state": "defined"}, {"hv1": OFF}, "hv1", "defined", None),
        ("start", {"state": "stopped"}, {"hv1": ON}, "hv1", "running", None),
        ("start", {"state": "stopped"}, {"hv1": NONE}, "hv1", "missing", None),
        # A define is finished if it got there.
        ("define", {"claimed": "yes", "state": "new"}, {"hv1": OFF}, "hv1", "defined", None),
        ("define", {"claimed": "yes", "state": "new"}, {"hv1": NONE}, None, "new", None),
        ("undefine", {"state": "stopped"}, {"hv1": NONE}, None, "new", None),
        ("undefine", {"state": "stopped"}, {"hv1": OFF}, "hv1", "stopped", None),
        ("shutdown", {"state": "running"}, {"hv1": OFF}, "hv1", "stopped", None),
        ("shutdown", {"state": "running"}, {"hv1": ON}, "hv1", "running", None),
        # A migration ends where it runs; what is left elsewhere goes.
        ("migrate", {"state": "running"}, {"hv1": ON, "hv2": NONE}, "hv1", "running", None),
        ("migrate", {"state": "running"}, {"hv1": NONE, "hv2": ON}, "hv2", "running", None),
        ("migrate", {"state": "running"}, {"hv1": OFF, "hv2": ON}, "hv2", "running", "hv1"),
        ("migrate", {"state": "running"}, {"hv1": OFF, "hv2": NONE}, "hv1", "stopped", None),
        ("migrate", {"state": "running"}, {"hv1": NONE, "hv2": OFF}, "hv2", "stopped", None),
        ("migrate", {"state": "running"}, {"hv1": NONE, "hv2": NONE}, "hv1", "missing", None),
    ],
)
def test_what_becomes_of_an_action_that_ended_half_way(
    action: str,
    args: dict[str, str],
    there: dict[str, Guest | None],
    parent: str | None,
    state: str,
    leftover: str | None,
) -> None:
    truth = resolve(vm(parent="hv1"), intent(action, **args), there)
    assert (truth.parent, truth.state, truth.leftover) == (parent, state, leftover)
    assert truth.alarm is None


def test_one_that_runs_twice_after_a_migration_is_an_alarm() -> None:
    truth = resolve(vm(parent="hv1"), intent("migrate"), {"hv1": ON, "hv2": ON})
    assert (truth.parent, truth.alarm, truth.leftover) == ("hv1", "duplicate", None)


def test_a_migration_that_died_before_its_last_step_is_where_the_guest_is_awake() -> None:
    there = {"hv1": guest(Power.PAUSED), "hv2": ON}
    truth = resolve(vm(parent="hv1"), intent("migrate", state="running"), there)
    assert (truth.parent, truth.state, truth.alarm) == ("hv2", "running", "duplicate")
