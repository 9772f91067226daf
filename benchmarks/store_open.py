"""Opening a store, and what it takes on disk and of memory. See :mod:`benchmarks.store`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from benchmarks.catalogue import Entrants
from benchmarks.setting import Setting
from benchmarks.store import contenders, sizes


@asynccontextmanager
async def entrants(setting: Setting) -> AsyncIterator[Entrants]:
    """From a path to a store that can be asked."""
    async with contenders("open", ("tinydb", "caching", "sqlite", "decode"), setting) as found:
        yield Entrants(found, {}, await sizes(setting))
