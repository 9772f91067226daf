"""The demo: without a terminal a tour, with one the shell; each time from the beginning."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from vagoth.shell.demo import TOUR

DEMO = [sys.executable, "-m", "vagoth.shell.demo"]


def test_without_a_terminal_it_is_a_tour_that_can_be_repeated() -> None:
    for _ in range(2):
        done = subprocess.run(
            DEMO,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=20,
        )
        assert (done.returncode, done.stderr) == (0, "")
        for line in TOUR:
            assert f"$ vagoth {line}\n" in done.stdout
        assert "failed" not in done.stdout


def test_two_demos_do_not_meet() -> None:
    with subprocess.Popen(DEMO, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as first:
        second = subprocess.run(
            DEMO, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=20
        )
        assert first.wait(20) == 0
    assert second.returncode == 0


def test_at_a_terminal_it_is_the_shell() -> None:
    pexpect = pytest.importorskip("pexpect")
    child = pexpect.spawn(
        DEMO[0],
        DEMO[1:],
        env={**os.environ, "TERM": "xterm"},
        encoding="utf-8",
        timeout=15,
        dimensions=(40, 100),
    )
    child.expect("nothing here is real")
    child.expect("vagoth>")
    child.send("list web*\r")
    child.expect("web3")
    child.send("exit\r")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 0
