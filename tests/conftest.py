"""What every test stands on: folders of its own, clusters over simulated hosts, the lab."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio

import vagoth
from tests.lab import Lab, lab_unavailable

LAB_MISSING = lab_unavailable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give tests on real hosts their time, and skip them by name where there can be none."""
    for item in items:
        if item.get_closest_marker("lab"):
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(120))
            if LAB_MISSING is not None:
                item.add_marker(pytest.mark.skip(reason=f"no real hosts here: {LAB_MISSING}"))


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep each test out of the user's folders, and the user's configuration out of each test."""
    home = tmp_path / "home"
    home.mkdir()
    for variable, folder in {
        "HOME": ".",
        "XDG_DATA_HOME": "data",
        "XDG_STATE_HOME": "state",
        "XDG_CONFIG_HOME": "config",
        "XDG_CACHE_HOME": "cache",
    }.items():
        monkeypatch.setenv(variable, str(home / folder))
    for variable in ("VAGOTH_CONFIG", "SSH_AUTH_SOCK", "NO_COLOR"):
        monkeypatch.delenv(variable, raising=False)
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    return home


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Where the store of this test is."""
    return tmp_path / "store.json"


@pytest.fixture
async def cluster(store: Path) -> AsyncIterator[vagoth.Cluster]:
    """A cluster over three simulated hosts, ``hv1`` to ``hv3``."""
    async with vagoth.connect(store=store, sim=3) as cluster:
        yield cluster


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def lab() -> AsyncIterator[Lab]:
    """Three real hosts for the whole run. A test leaves them as it found them."""
    async with Lab(3) as lab:
        yield lab


@pytest.fixture
def python() -> Callable[..., subprocess.Popen[str]]:
    """Run a Python script in a process of its own, its pipes open."""

    def run(script: str, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", script, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return run
