"""Changes as a registry keeps them: plain data, and nobody else's. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from vagoth.errors import InvalidInput
from vagoth.model import Change, Put, Record


def prepared(changes: Sequence[Change], *, max_bytes: int) -> list[Change]:
    """The changes as they will be read back: nothing in them is the caller's any more.

    :raises InvalidInput: something in them cannot be stored, or they are too large together
    """
    owned: list[Change] = []
    size = 0
    for change in changes:
        if not isinstance(change, Put):
            owned.append(change)
            continue
        data = _encoded(change.record)
        size += len(data)
        if size > max_bytes:
            raise InvalidInput("changes", size, f"at most {max_bytes} bytes in one commit")
        owned.append(Put(_decoded(data, change.record)))
    return owned


def _encoded(record: Record) -> bytes:
    try:
        for field in ("definition", "metadata"):
            for path, value in _floats(field, getattr(record, field)):
                if not math.isfinite(value):
                    raise InvalidInput(path, value, "a finite number")
        return msgspec.json.encode(record)
    except InvalidInput:
        raise
    except (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError) as error:
        raise InvalidInput(
            "record",
            record.name,
            "plain data",
            message=f"{record.name}: cannot be stored: {error}",
            cure="use only text, numbers, true, false, null, lists and mappings",
        ) from error


def _decoded(data: bytes, given: Record) -> Record:
    try:
        return msgspec.json.decode(data, type=Record)
    except (msgspec.DecodeError, RecursionError) as error:
        raise InvalidInput(
            "record", given.name, "a record", message=f"{given.name}: {error}"
        ) from error


def _floats(path: str, value: Any) -> Iterator[tuple[str, float]]:
    # JSON has no NaN and no infinity: they would come back as null.
    if isinstance(value, float):
        yield path, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(item, str):
                yield from _floats(f"{path}.{key}", item)
    elif isinstance(value, list | tuple | set | frozenset):
        for number, item in enumerate(value):
            if not isinstance(item, str):
                yield from _floats(f"{path}[{number}]", item)
