"""The line below the prompt: store, nodes by state, hosts in trouble, running jobs. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vagoth.model import State
from vagoth.render import STATES, one_line
from vagoth.scheduler import Job
from vagoth.view import View

#: States in the order in which they matter.
_SHOWN = (
    State.RUNNING,
    State.PAUSED,
    State.STARTING,
    State.STOPPING,
    State.MIGRATING,
    State.STOPPED,
    State.DEFINED,
    State.NEW,
    State.CRASHED,
    State.UNKNOWN,
    State.MISSING,
)
_BAD = {State.CRASHED, State.UNKNOWN, State.MISSING}
_NAMES = 3


def toolbar(
    store: str, view: View, jobs: Sequence[Job], *, width: int = 80
) -> list[tuple[str, str]]:
    """Styled pieces of text for the toolbar, no wider than the terminal."""
    pieces: list[tuple[str, str]] = [("bold", f" {one_line(Path(store).name)} ")]
    for state in _SHOWN:
        count = view.count("state", state)
        if count:
            style = "class:toolbar.bad" if state in _BAD else ""
            pieces.append((style, f" {STATES[state][0]} {count} {state} "))
    hosts = view.count("type", "hv")
    pieces.append(("", f" {hosts} host{'s' * (hosts != 1)} "))
    down = view.select(state=State.UNREACHABLE)
    if down:
        names = ", ".join(host.name for host in down[:_NAMES])
        more = f" and {len(down) - _NAMES} more" if len(down) > _NAMES else ""
        pieces.append(("class:toolbar.bad", f" ✖ unreachable: {one_line(names)}{more} "))
    if jobs:
        pieces.append(("class:toolbar.busy", f" ↻ {len(jobs)} job{'s' * (len(jobs) != 1)} "))
    return _fitted(pieces, width)


def _fitted(pieces: list[tuple[str, str]], width: int) -> list[tuple[str, str]]:
    kept = []
    left = width
    # Hosts in trouble matter more than how many machines are merely new.
    for style, text in sorted(pieces[1:], key=lambda piece: "bad" not in piece[0]):
        if len(text) <= left - len(pieces[0][1]):
            kept.append((style, text))
            left -= len(text)
    return [pieces[0], *(piece for piece in pieces[1:] if piece in kept)]
