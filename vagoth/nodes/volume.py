"""Volume: storage that nodes use; its parent is the host whose pool holds it, none if shared."""

from __future__ import annotations

import msgspec

from vagoth.definition import parse_size
from vagoth.nodes.base import Node


class VolumeDefinition(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where a volume is. ``size`` is in MiB, or text with a unit."""

    pool: str | None = None
    volume: str | None = None
    path: str | None = None
    size: int | str | None = None
    format: str = "raw"

    def __post_init__(self) -> None:
        if self.size is not None:
            try:
                parse_size(self.size)
            except ValueError as error:
                raise ValueError(f"size: {error}") from None


class Volume(Node):
    """A volume as an entry of the registry; the nodes it is attached to are its links."""

    type = "volume"
    Definition = VolumeDefinition
