"""Ways to give a line to Vagoth: inside this process, and as a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import vagoth
from vagoth.shell.context import Result, Surroundings
from vagoth.shell.line import split
from vagoth.shell.parser import parse
from vagoth.shell.runner import run

Say = Callable[..., Any]
Program = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def say(cluster: vagoth.Cluster) -> Say:
    """Run a line over the test's cluster, as the shell would; gives its result."""

    async def say(line: str, surroundings: Surroundings | None = None) -> Result:
        return await run(parse(split(line)), cluster, surroundings or Surroundings())

    return say


def command(*arguments: str) -> Sequence[str]:
    """How the command line is started as a process."""
    return [sys.executable, "-m", "vagoth", *arguments]


@pytest.fixture
def program(store: Path) -> Program:
    """Run ``vagoth`` as a process over the test's store and three simulated hosts."""

    def run(
        *arguments: str, environment: dict[str, str] | None = None, **settings: Any
    ) -> subprocess.CompletedProcess[str]:
        settings.setdefault("stdin", subprocess.DEVNULL)
        return subprocess.run(
            command("--store", str(store), "--sim", "3", *arguments),
            text=True,
            capture_output=True,
            check=False,
            timeout=20,
            env={**os.environ, **(environment or {})},
            **settings,
        )

    return run
