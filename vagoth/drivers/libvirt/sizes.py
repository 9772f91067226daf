"""What a host's guests are defined to use: asked once, and anew when one is defined anew."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from vagoth.drivers.base import Guest
from vagoth.drivers.libvirt.looking import Size


class KnownSizes:
    """A cache that libvirt's events keep true: of states it tells in bulk at no cost, of sizes
    not."""

    def __init__(self) -> None:
        self._sizes: dict[str, Size] = {}
        self._generation = 0

    def now(self) -> tuple[Mapping[str, Size], int]:
        """What is known, and a number to give to :meth:`learn` with what a look then finds."""
        return dict(self._sizes), self._generation

    def learn(self, guests: Iterable[Guest], generation: int) -> None:
        """Take over what a look has found; unless a definition changed while it looked."""
        if generation == self._generation:
            self._sizes |= {guest.uuid: Size(guest.memory_bytes, guest.vcpus) for guest in guests}

    def forget(self, uuid: str) -> None:
        """The guest has been defined anew, or is gone."""
        self._sizes.pop(uuid, None)
        self._generation += 1
