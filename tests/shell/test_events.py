"""Commits and toolbar as lines that people read: pure, from records to text."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from vagoth.actions.base import this_process
from vagoth.model import Commit, Intent, Record, RecordChange
from vagoth.scheduler import Job
from vagoth.shell.commits import commit_data, commit_lines
from vagoth.shell.toolbar import toolbar
from vagoth.view import View


def record(name: str, **fields: Any) -> Record:
    return Record(id=f"id-{name}", name=name, revision="1", **fields)


HV1 = record("hv1", type="hv", state="up")
HV2 = record("hv2", type="hv", state="unreachable")
WEB = record("web1", state="running", parent="id-hv1")


def view(*more: Record) -> View:
    found = View()
    found.load([HV1, HV2, WEB, *more])
    return found


def commit(*changes: tuple[Record | None, Record | None]) -> Commit:
    return Commit(
        position="7",
        txid="tx1",
        time=0.0,
        source="anna",
        reason="stop web1",
        changes=tuple(RecordChange(before, after) for before, after in changes),
    )


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        (None, WEB, "new vm, running"),
        (WEB, None, "deleted"),
        (WEB, replace(WEB, state="stopped"), "running → stopped"),
        (WEB, replace(WEB, parent="id-hv2"), "hv1 → hv2"),
        (WEB, replace(WEB, parent=None, state="new"), "running → new; no longer on hv1"),
        (replace(WEB, parent=None), WEB, "on hv1"),
        (WEB, replace(WEB, name="www1"), "was web1"),
        (WEB, replace(WEB, alarm="duplicate"), "alarm: duplicate"),
        (replace(WEB, alarm="duplicate"), WEB, "no longer duplicate"),
        (WEB, replace(WEB, tags={"a": ""}, tenant="x"), "tenant, tags changed"),
        (
            WEB,
            replace(WEB, intent=Intent(action="stop", txid="t", since=1, owner=this_process())),
            "stop begun",
        ),
    ],
)
def test_a_line_says_what_happened_and_who_did_it(
    before: Record | None, after: Record | None, told: str
) -> None:
    [line] = commit_lines(commit((before, after)), view())
    name = (after or before or WEB).name
    assert line.text.split("  ", 1)[1] == f"{name}  {told}  (anna: stop web1, tx1)"


def test_of_lives_alone_other_changes_are_left_out() -> None:
    told = commit(
        (WEB, replace(WEB, tags={"a": ""})),
        (HV1, replace(HV1, state="unreachable", metadata={"problem": "gone"})),
    )
    [line] = commit_lines(told, view(), only_life=True)
    assert "hv1  up → unreachable  (" in line.text
    assert line.state == "unreachable"


def test_the_end_of_an_intent_alone_is_no_event() -> None:
    begun = replace(WEB, intent=Intent(action="stop", txid="t", since=1, owner=this_process()))
    assert not list(commit_lines(commit((begun, WEB)), view()))


def test_as_data_a_commit_has_the_fields_that_differ() -> None:
    moved = replace(WEB, parent="id-hv2", tags={"a": "b"})
    data = commit_data(commit((WEB, moved), (None, HV2)), view())
    assert data["transaction"] == "tx1"
    assert data["changes"][0]["fields"] == {
        "parent": {"before": "hv1", "after": "hv2"},
        "tags": {"before": {}, "after": {"a": "b"}},
    }
    assert [change["change"] for change in data["changes"]] == ["set", "new"]
    msgspec.json.encode(data)


def text(width: int, *more: Record, jobs: int = 0) -> str:
    active = [Job("start", "id", "web1", "tx") for _ in range(jobs)]
    pieces = toolbar("/x/store.json", view(*more), active, width=width)
    assert sum(len(piece) for _, piece in pieces) <= width
    return "".join(piece for _, piece in pieces)


def test_the_toolbar_tells_store_states_hosts_and_jobs() -> None:
    shown = text(100, jobs=2)
    for told in ("store.json", "● 1 running", "2 hosts", "✖ unreachable: hv2", "↻ 2 jobs"):
        assert told in shown


def test_what_is_wrong_stays_longest_in_a_narrow_toolbar() -> None:
    many = [record(f"x{number}", state="missing") for number in range(12)]
    assert "! 12 missing" in text(60, *many, record("n", state="new"))
    assert "unreachable: hv2" in text(60, *many, record("n", state="new"))
    down = [record(f"down{number}", type="hv", state="unreachable") for number in range(9)]
    assert "and 7 more" in text(80, *down)
