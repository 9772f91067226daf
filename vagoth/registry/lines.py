r"""The lines of a journal: what they hold, and how one tells that they are whole. Pure.

::

    {"sum":"9a0c31f2","format":1,"store":"5f1c…","base":0}
    {"sum":"77b1e09d","seq":1,"durable":0,"txid":"…","time":…,"source":"…","reason":"…","changes":[
        {"after":{…}}, {"after":{…},"was":{…}}, {"gone":{…}}]}

``sum`` is the CRC-32 of what follows its comma. Commits are numbered (``seq``) without a gap
from ``base`` + 1 on. ``after`` is the whole record, ``was`` the fields that had other values
before, ``gone`` the record that was deleted.

``durable`` is the last commit that was surely on disk when the line was written. It tells a torn
tail from damage: a bad line that no later line calls durable was never acknowledged, even if the
disk wrote the pages of one append in another order. A bad line that *is* called durable means
that acknowledged commits are damaged, and is an error.
"""

from __future__ import annotations

import zlib
from typing import Any, NamedTuple, Self

import msgspec

from vagoth.model import Record, RecordChange

FORMAT = 1
_SUM = 18  # {"sum":"01234567",


class Header(msgspec.Struct, frozen=True, omit_defaults=True):
    """The first line: whose journal this is, and how many commits came before it.

    ``first`` is there once older commits were pruned: the byte at which commit ``base`` + 1
    stood before that. Places in a journal are counted from there on, so that they stay the
    same for all who know them.
    """

    format: int
    store: str
    base: int
    first: int = 0


class LineChange(msgspec.Struct, frozen=True, omit_defaults=True):
    """One record's change as a line holds it."""

    after: Record | None = None
    was: dict[str, Any] | None = None
    gone: Record | None = None

    @classmethod
    def of(cls, change: RecordChange) -> Self:
        """The change, without what can be worked out from it."""
        before, after = change.before, change.after
        if after is None:
            return cls(gone=before)
        if before is None:
            return cls(after=after)
        was = {
            field: value
            for field in Record.__struct_fields__
            if (value := getattr(before, field)) != getattr(after, field)
        }
        return cls(after=after, was=was)

    @property
    def id(self) -> str:
        """The id of the record."""
        record = self.after or self.gone
        return record.id if record is not None else ""

    @property
    def revision_before(self) -> str | None:
        """The revision that the record must have had, if there was one."""
        if self.gone is not None:
            return self.gone.revision
        if self.was is None:
            return None
        return str(self.was.get("revision", ""))

    def restored(self) -> RecordChange:
        """The whole change."""
        if self.after is None or self.was is None:
            return RecordChange(self.gone, self.after)
        fields = {**msgspec.to_builtins(self.after), **self.was}
        return RecordChange(msgspec.convert(fields, Record), self.after)


class Line(msgspec.Struct, frozen=True):
    """One commit as the journal holds it."""

    seq: int
    durable: int
    txid: str
    time: float
    source: str
    reason: str
    changes: tuple[LineChange, ...]


class Mark(NamedTuple):
    """A place in the journal: behind commit ``seq``, whose line is the bytes ``start:end``.

    Bytes are counted as if nothing had ever been pruned.
    """

    seq: int = 0
    start: int = 0
    end: int = 0
    sum: str = ""


class Entry(NamedTuple):
    """A line, and where it stands."""

    line: Line
    mark: Mark


_encoder = msgspec.json.Encoder()
decode_line = msgspec.json.Decoder(Line).decode
decode_header = msgspec.json.Decoder(Header).decode


def seal(content: Header | Line) -> bytes:
    """The line for ``content``, with its checksum and the newline."""
    body = _encoder.encode(content)[1:]
    return b'{"sum":"%08x",%b\n' % (zlib.crc32(body), body)


def is_whole(line: bytes) -> bool:
    """Whether the line is what was written: it ends with a newline, and the checksum is right."""
    return (
        len(line) > _SUM + 2
        and line.endswith(b"\n")
        and line[:_SUM] == b'{"sum":"%08x",' % zlib.crc32(memoryview(line)[_SUM:-1])
    )


def sum_of(line: bytes) -> str:
    """The checksum that the line claims."""
    return line[8:16].decode("ascii", errors="replace")
