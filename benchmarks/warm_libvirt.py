"""The floor: the states of all guests, by libvirt-python in a thread for each open connection.

``python -m benchmarks.warm_libvirt URI…``. One call for each host, whose answer is not looked at.
"""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

import libvirt

from benchmarks.rounds import serve


def main(uris: list[str]) -> None:
    """Connect to all, and ask them all at once for each line of standard input."""
    with ThreadPoolExecutor(len(uris)) as threads:
        connections = list(threads.map(libvirt.open, uris))
        serve(lambda: list(threads.map(_states, connections)))
        for connection in connections:
            connection.close()


def _states(connection: libvirt.virConnect) -> object:
    return connection.getAllDomainStats(libvirt.VIR_DOMAIN_STATS_STATE, 0)


if __name__ == "__main__":
    main(sys.argv[1:])
