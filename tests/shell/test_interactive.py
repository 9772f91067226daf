"""Somebody types at the real shell, through a real terminal."""

from __future__ import annotations

import asyncio
import os
import re
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import vagoth
from tests.shell.conftest import Program, command

pexpect = pytest.importorskip("pexpect")

pytestmark = pytest.mark.timeout(60)
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]|\x1b[=>]|\x1b\][^\x07]*\x07")


class Typist:
    """A shell in a pseudo-terminal, and somebody who types at it and reads the screen."""

    def __init__(self, store: Path, *arguments: str, columns: int = 100) -> None:
        self.child = pexpect.spawn(
            sys.executable,
            [*command("--store", str(store), "--sim", "3", *arguments)[1:]],
            env={**os.environ, "TERM": "xterm-256color"},
            encoding="utf-8",
            timeout=15,
            dimensions=(30, columns),
        )
        self.seen = ""

    def keys(self, text: str) -> None:
        """Press keys."""
        self.child.send(text)

    def line(self, text: str) -> None:
        """Type a line and Enter."""
        self.keys(text + "\r")

    def reads(self, *texts: str) -> None:
        """Wait until each text, in order, has come on the screen."""
        for text in texts:
            self._read_until(text)

    def sees(self, text: str) -> bool:
        """Whether the text comes on the screen within a second."""
        try:
            self._read_until(text, within_s=1)
        except AssertionError:
            return False
        return True

    def _read_until(self, text: str, within_s: int = 15) -> None:
        while text not in self.seen:
            try:
                new = self.child.read_nonblocking(4096, within_s)
            except (pexpect.EOF, pexpect.TIMEOUT) as ended:
                raise AssertionError(f"{text!r} did not come; the screen: {self.seen}") from ended
            # What a terminal answers when it is asked where its cursor is.
            for _ in range(new.count("\x1b[6n")):
                self.keys("\x1b[1;1R")
            self.seen = _ESCAPES.sub("", self.seen + new)
        self.seen = self.seen.partition(text)[2]

    def left(self) -> int:
        """Wait until the shell is gone; its exit code."""
        while True:
            try:
                self.child.read_nonblocking(4096, 15)
            except pexpect.EOF:
                break
        self.child.close()
        assert self.child.exitstatus is not None
        return int(self.child.exitstatus)


async def _furnish(store: Path) -> None:
    async with vagoth.connect(store=store, sim=3) as cluster:
        await cluster.new("web1", definition={"memory": 128})
        await cluster.new("database", definition={"memory": 128})
        await cluster["web1"].submit("start", on="hv1")


@pytest.fixture
def typist(store: Path) -> Iterator[Typist]:
    """Somebody before a shell that waits for its first line."""
    asyncio.run(_furnish(store))
    typist = Typist(store)
    typist.reads("vagoth>", "3 hosts")
    yield typist
    typist.child.close(force=True)


def state(store: Path, name: str) -> Any:
    """The state of a node as the store has it."""

    async def read() -> str:
        async with vagoth.connect(store=store) as cluster:
            return cluster[name].state

    return asyncio.run(read())


def test_tab_completes_commands_and_names_and_the_line_runs(typist: Typist, store: Path) -> None:
    typist.keys("star\tdata\t\r")
    typist.reads("OUTCOME", "database", "done", "running", "vagoth>")
    assert state(store, "database") == "running"
    typist.line("exit")
    assert typist.left() == 0


def test_tables_have_symbols_and_the_toolbar_counts(typist: Typist) -> None:
    typist.line("list web*")
    typist.reads("NAME", "web1", "● running", "hv1", "1 running")
    typist.line("quit")
    assert typist.left() == 0


def test_ctrl_c_cancels_the_command_and_not_the_shell(typist: Typist, store: Path) -> None:
    typist.line("set hv1 deaf=true")
    typist.reads("done", "vagoth>")
    typist.line("shutdown web1")
    typist.reads("waiting up to")
    typist.keys("\x03")
    typist.reads("cancelled", "running", "interrupted: this is what is known", "vagoth>")
    typist.line("stop web1")
    typist.reads("done", "stopped", "vagoth>")
    typist.keys("half a line\x03")
    typist.line("info web1")
    typist.reads("FIELD", "stopped", "vagoth>")
    typist.keys("\x04")
    assert typist.left() == 0
    assert state(store, "web1") == "stopped"


def test_errors_leave_the_shell_working(typist: Typist) -> None:
    for line, told in [
        ("strat web1", "there is no command 'strat' (did you mean start?)"),
        ("info wbe1", "there is no node 'wbe1' (did you mean web1?)"),
        ("info 'web1", "a quote is not closed"),
        ("--store x list", "--store is for the start of the shell"),
        ("monitor", "monitor is of no use inside the shell"),
        ("new web1 memory=1", "taken by web1"),
    ]:
        typist.line(line)
        typist.reads(told, "vagoth>")
    typist.line("list --json web1")
    typist.reads('"name": "web1"', "vagoth>")
    typist.line("list web1")
    typist.reads("● running", "vagoth>")


def test_what_others_do_appears_above_the_prompt(
    typist: Typist, program: Program, store: Path
) -> None:
    typist.keys("info da")
    assert program("stop", "web1").returncode == 0
    typist.reads("web1  stopping → stopped", "stop web1", "vagoth> info da")
    typist.keys("tabase\r")
    typist.reads("FIELD", "database")
    typist.reads("1 stopped")


def test_watch_in_the_shell_ends_with_ctrl_c(typist: Typist, program: Program) -> None:
    typist.line("watch")
    # It cannot be seen when it listens: do things until it tells of one.
    numbers = iter(range(20))
    while not typist.sees("tags changed"):
        assert program("set", "web1", "--tag", f"n={next(numbers)}").returncode == 0
    typist.keys("\x03")
    typist.reads("interrupted", "vagoth>")
    typist.line("list web1")
    typist.reads("running")


def test_history_is_kept_for_this_user_alone(
    typist: Typist, store: Path, own_folders: Path
) -> None:
    typist.line("list web1")
    typist.reads("running", "vagoth>")
    typist.line(" list --tag hidden")
    typist.reads("vagoth>")
    typist.line("exit")
    assert typist.left() == 0
    [history] = (own_folders / "state" / "vagoth").glob("stores/*/history")
    assert stat.S_IMODE(history.stat().st_mode) == 0o600
    assert "list web1" in history.read_text()
    assert "hidden" not in history.read_text()
    again = Typist(store)
    again.reads("vagoth>", "3 hosts")
    again.keys("\x1b[A\x1b[A\r")
    again.reads("list web1", "running")
    again.keys("lis")
    again.reads("t web1")  # ghost text from history
    again.keys("\x1b[C\r")
    again.reads("running", "vagoth>")
    again.keys("\x04")
    assert again.left() == 0


def test_each_line_is_one_transaction_with_the_line_as_its_reason(
    typist: Typist, store: Path
) -> None:
    typist.line("start database")
    typist.reads("done", "vagoth>")
    typist.line("exit")
    assert typist.left() == 0

    async def read() -> set[tuple[str, str]]:
        async with vagoth.connect(store=store) as cluster:
            node_id = cluster["database"].id
            history = cluster.registry.history(node_id=node_id)
            return {(c.txid, c.reason) async for c in history if c.reason == "start database"}

    assert len(asyncio.run(read())) == 1


def test_a_narrow_terminal_is_enough(store: Path) -> None:
    asyncio.run(_furnish(store))
    typist = Typist(store, columns=60)
    typist.reads("vagoth>")
    typist.line("list")
    typist.reads("database", "web1", "● running", "vagoth>")
    typist.line("exit")
    assert typist.left() == 0
