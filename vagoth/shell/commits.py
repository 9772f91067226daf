"""Commits as lines that people read, and as data: pure."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import msgspec

from vagoth.model import Commit, RecordChange
from vagoth.shell.context import Line
from vagoth.view import View

#: What is told of a record besides its state, place and name.
_OTHERS = ("tenant", "tags", "keys", "links", "definition", "metadata")


def commit_lines(commit: Commit, view: View, *, only_life: bool = False) -> Iterator[Line]:
    """A line for each record that a commit changed: when, what, and who did it.

    :param only_life: only of nodes that came, went, or differ in state, place or alarm, and
        nothing else of them
    """
    when = time.strftime("%H:%M:%S", time.localtime(commit.time))
    by = commit.source + (f": {commit.reason}" if commit.reason else "")
    for change in commit.changes:
        if only_life and not is_life(change):
            continue
        told = "; ".join(told_of(change, view, only_life=only_life))
        if told:
            state = change.after.state if change.after is not None else ""
            text = f"{when}  {change.record.name}  {told}  ({by}, {commit.txid})"
            yield Line(text, None, state)


def told_of(change: RecordChange, view: View, *, only_life: bool = False) -> Iterator[str]:
    """What happened to a record, in words: its life first, then the other fields by name."""
    before, after = change.before, change.after
    if after is None:
        yield "deleted"
        return
    if before is None:
        yield f"new {after.type}, {after.state}"
        return
    if before.name != after.name:
        yield f"was {before.name}"
    if before.state != after.state:
        yield f"{before.state} → {after.state}"
    if before.parent != after.parent:
        old, new = view.name_of(before.parent), view.name_of(after.parent)
        yield (
            f"on {new}"
            if old is None
            else f"no longer on {old}"
            if new is None
            else (f"{old} → {new}")
        )
    if before.alarm != after.alarm:
        yield f"alarm: {after.alarm}" if after.alarm else f"no longer {before.alarm}"
    if only_life:
        return
    if before.intent != after.intent and after.intent is not None:
        yield f"{after.intent.action} begun"
    others = [field for field in change.fields() if field in _OTHERS]
    if others:
        yield f"{', '.join(others)} changed"


def is_life(change: RecordChange) -> bool:
    """Whether a node came, went, or differs in state, place or alarm."""
    before, after = change.before, change.after
    if before is None or after is None:
        return True
    return (before.state, before.parent, before.alarm) != (after.state, after.parent, after.alarm)


def commit_data(commit: Commit, view: View) -> dict[str, Any]:
    """A commit as ``watch --json`` prints it: of each record, the fields that differ."""
    return {
        "position": commit.position,
        "time": commit.time,
        "transaction": commit.txid,
        "source": commit.source,
        "reason": commit.reason,
        "changes": [
            {
                "id": change.record.id,
                "name": change.record.name,
                "type": change.record.type,
                "change": (
                    "new" if change.before is None else "deleted" if change.after is None else "set"
                ),
                "fields": {
                    field: {
                        "before": _shown(field, getattr(change.before, field, None), view),
                        "after": _shown(field, getattr(change.after, field, None), view),
                    }
                    for field in change.fields()
                },
            }
            for change in commit.changes
        ],
    }


def _shown(field: str, value: Any, view: View) -> Any:
    return view.name_of(value) if field == "parent" else msgspec.to_builtins(value)
