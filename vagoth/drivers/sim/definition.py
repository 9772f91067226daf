"""What the definition of a simulated host may say."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import msgspec

from vagoth.definition import MIB, Kind, parse_size

_Chance = Annotated[float, msgspec.Meta(ge=0, le=1)]
_Seconds = Annotated[float, msgspec.Meta(ge=0, le=86400)]


class Down(StrEnum):
    """How a host is wholly gone: not at all, it refuses connections, or it never answers."""

    NONE = "none"
    REFUSE = "refuse"
    HANG = "hang"


class Faults(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How likely it is, from 0 to 1, that things go wrong.

    ``refuse``: a new connection is refused. ``hang``: a request or its answer is lost.
    ``drop``: the connection breaks under a request.
    """

    refuse: _Chance = 0.0
    hang: _Chance = 0.0
    drop: _Chance = 0.0

    def __bool__(self) -> bool:
        return bool(self.refuse or self.hang or self.drop)


class SimHostDefinition(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A simulated host: its size, how long things take there, and what goes wrong.

    Each request takes ``latency_s``, a start ``boot_s``, a polite shutdown ``shutdown_s``
    and a live migration away from it ``migration_s`` (all in seconds). ``seed`` makes the
    ``faults`` of one run those of the next. Guests of a ``deaf`` host ignore requests to
    shut down or reboot.
    """

    driver: str = "sim"
    memory: int | str = "8GiB"
    cpus: Annotated[int, msgspec.Meta(ge=1, le=4096)] = 8
    kinds: Annotated[tuple[Kind, ...], msgspec.Meta(min_length=1)] = (Kind.KVM, Kind.QEMU)
    latency_s: _Seconds = 0.0
    boot_s: _Seconds = 0.05
    shutdown_s: _Seconds = 0.05
    migration_s: _Seconds = 0.2
    seed: int = 0
    faults: Faults = Faults()
    down: Down = Down.NONE
    deaf: bool = False

    def __post_init__(self) -> None:
        try:
            too_small = parse_size(self.memory) < MIB
        except ValueError as error:
            raise ValueError(f"memory: {error}") from None
        if too_small:
            raise ValueError("memory: a size of at least 1MiB")

    @property
    def memory_bytes(self) -> int:
        """The memory that its running guests share."""
        return parse_size(self.memory)
