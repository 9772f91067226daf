"""What a benchmark is, and which there are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from importlib import import_module
from typing import cast

from benchmarks.setting import Setting
from benchmarks.timing import Contender


@dataclass(frozen=True)
class Entrants:
    """Who takes part; who does not, with the reason; and how much there was of everything."""

    contenders: Sequence[Contender]
    left_out: Mapping[str, str] = field(default_factory=dict)
    setting: str = ""


Prepare = Callable[[Setting], AbstractAsyncContextManager[Entrants]]


@dataclass(frozen=True)
class Benchmark:
    """One comparison. ``module`` has ``entrants``, which makes and cleans up what it needs."""

    name: str
    title: str
    module: str

    def prepare(self, setting: Setting) -> AbstractAsyncContextManager[Entrants]:
        """Those who take part, for as long as the context is open."""
        return cast(Prepare, import_module(self.module).entrants)(setting)


BENCHMARKS: Mapping[str, Benchmark] = {
    each.name: each
    for each in (
        Benchmark("list", "a table of nodes, from a cold start", "benchmarks.listing"),
        Benchmark("poll", "the state of all guests on all hosts", "benchmarks.polling"),
        Benchmark("store", "one durable change of one node", "benchmarks.store"),
        Benchmark("store-lookup", "a node by id, by name and by key", "benchmarks.store_lookup"),
        Benchmark("store-open", "from a path to a store to ask", "benchmarks.store_open"),
    )
}
