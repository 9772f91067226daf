"""Polls through the SDK, over sessions that are open: ``python -m benchmarks.warm_vagoth CONFIG``.

The event loop goes on between rounds, as it does in a shell: events and keepalives are served.
"""

from __future__ import annotations

import asyncio
import sys
import time

import vagoth
from benchmarks.rounds import say


async def main(config: str) -> None:
    """Open the cluster, and poll it for each line of standard input."""
    async with vagoth.connect(config) as cluster:
        await _poll(cluster)
        say("ready")
        while await asyncio.to_thread(sys.stdin.readline):
            begun = time.perf_counter()
            await _poll(cluster)
            say(repr(time.perf_counter() - begun))


async def _poll(cluster: vagoth.Cluster) -> None:
    for report in await cluster.poll():
        if report.error is not None:
            raise report.error


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
