"""A registry in a TinyDB file keeps the promises of registries, and those of its files."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.registry.conformance import Clients, RegistryConformance
from vagoth.registry.base import Registry
from vagoth.registry.tinydb import TinyDBRegistry


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cluster" / "store.json"


class TestTinyDB(RegistryConformance):
    """The conformance suite, over a file."""

    @pytest.fixture
    async def client(self, path: Path) -> AsyncIterator[Clients]:
        opened: list[TinyDBRegistry] = []

        async def client() -> Registry:
            registry = TinyDBRegistry(path)
            await registry.open()
            opened.append(registry)
            return registry

        yield client
        for registry in opened:
            await registry.close()
