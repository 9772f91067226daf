"""Looking a node up: by id, by name and by key. See :mod:`benchmarks.store`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from benchmarks.catalogue import Entrants
from benchmarks.setting import Setting
from benchmarks.store import contenders


@asynccontextmanager
async def entrants(setting: Setting) -> AsyncIterator[Entrants]:
    """One node by id, one by name, one by key."""
    async with contenders("lookup", ("tinydb", "caching", "sqlite"), setting) as found:
        yield Entrants(found)
