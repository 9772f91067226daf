"""``store.json``: a TinyDB file with all records as they were at one commit.

::

    {"nodes": {"1": {…a record…}, …},
     "vagoth": {"1": {"format": 1, "store": "5f1c…", "position": "…", "digest": "…",
                      "journal": {…}}}}

Plain ``tinydb.TinyDB(path).table("nodes")`` reads it. ``journal`` says up to where the journal is
in it, ``digest`` belongs to the nodes as we wrote them: it shows if another program wrote since.

Everything here blocks, and belongs on a worker thread.
"""

from __future__ import annotations

import fcntl
import os
import zlib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from tinydb.storages import Storage

from vagoth.errors import InvalidInput, RegistryError
from vagoth.model import Record
from vagoth.registry.files import (
    keep_owner,
    read_at,
    read_bytes,
    same_file,
    sync_directory,
    trouble,
    write_at,
)

FORMAT = 1
_TAIL = 4096
_EXPECTED = "a Vagoth store"

Stamp = tuple[int, int, int, int]


class Folded(msgspec.Struct, frozen=True):
    """How much of the journal is in the file: its last commit, and the bytes of that line."""

    seq: int
    start: int
    end: int
    sum: str


class Meta(msgspec.Struct, frozen=True, omit_defaults=True):
    """The document in the table ``vagoth``."""

    format: int
    store: str = ""
    position: str = ""
    digest: str = ""
    journal: Folded | None = None


class Content(NamedTuple):
    """What was read: the nodes not decoded yet, and which file it was."""

    meta: Meta
    nodes: bytes
    stamp: Stamp

    @property
    def is_ours(self) -> bool:
        """Whether the nodes are as a registry wrote them, however the JSON is spaced."""
        if self.meta.digest == digest(self.nodes):
            return True
        # Plain TinyDB may have written the same content in its own spacing.
        return bool(self.meta.digest) and self.meta.digest == digest(
            msgspec.json.encode(msgspec.json.decode(self.nodes))
        )

    @property
    def has_history(self) -> bool:
        """Whether a journal's commits were folded into it, and it was not cut off from that."""
        return self.meta.journal is not None and self.meta.journal.end > 0


class _Tables(msgspec.Struct, forbid_unknown_fields=True):
    vagoth: dict[str, msgspec.Raw]
    nodes: msgspec.Raw = msgspec.Raw(b"{}")


_tables = msgspec.json.Decoder(_Tables)
_metas = msgspec.json.Decoder(Meta)
_nodes = msgspec.json.Decoder(dict[str, Record])


def digest(nodes: bytes) -> str:
    """What ``Meta.digest`` must be for these nodes."""
    return f"crc32:{zlib.crc32(nodes):08x}"


def stamp_of(path: Path) -> Stamp | None:
    """Which file is there, in which state; none if there is none. May run on the loop."""
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise trouble(error, "read", path) from error
    return stamp(found)


def records_in(content: Content, path: Path, *, is_ours: bool) -> dict[str, Record]:
    """The records by id. What a registry did not write itself is checked for duplicates.

    :raises InvalidInput: a document is no record; two have one id, name or key
    """
    try:
        documents = _nodes.decode(content.nodes)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidInput(
            "store", str(path), "a store of records", message=f"{path}: nodes: {error}"
        ) from error
    if not is_ours:
        _check_unique(documents, path)
    return {record.id: record for record in documents.values()}


def documents_in(content: Content) -> tuple[dict[str, Record], list[tuple[str, str]]]:
    """The whole records by their document's number; and what is wrong with each other one."""
    try:
        raw = msgspec.json.decode(content.nodes, type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        return {}, [("0", f"the table “nodes” is malformed: {error}")]
    records, problems = {}, []
    for number, document in raw.items():
        try:
            records[number] = msgspec.json.decode(document, type=Record)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            problems.append((number, f"it is no record: {error}"))
    return records, problems


def stamp(found: os.stat_result) -> Stamp:
    """Which file it is, and in which state: device, inode, size, time of the last change."""
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _check_unique(documents: Mapping[str, Record], path: Path) -> None:
    taken: dict[tuple[str, str], Record] = {}
    for record in documents.values():
        # A name that is another node's id would be as ambiguous as two equal names.
        for what, value in (
            ("id or name", record.id),
            ("id or name", record.name),
            *(("key", key) for key in record.keys),
        ):
            other = taken.setdefault((what, value), record)
            if other is not record:
                raise InvalidInput(
                    "store",
                    str(path),
                    "a store of records",
                    message=f"{path}: {other.name} (id {other.id}) and {record.name}"
                    f" (id {record.id}) have the same {what} {value!r}",
                    cure="give one of them another in the file",
                )


class StoreFile(Storage):
    """The file, as TinyDB's storage contract wants it, and faster for whole stores.

    It is always written beside, synced, renamed and the directory synced: a stop at any point
    leaves the old file or the new one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._beside = path.with_name(f"{path.name}.new")
        self._staged: int | None = None

    def read(self) -> dict[str, dict[str, Any]] | None:
        """All tables as plain data; none if there is no file."""
        data = read_bytes(self.path)
        tables: dict[str, dict[str, Any]] | None = (
            None if data is None else msgspec.json.decode(data)
        )
        return tables

    def write(self, data: Mapping[str, Mapping[str, Any]]) -> None:
        """Write all tables, durably."""
        if not self._stage([msgspec.json.encode(data)]):
            raise RegistryError(f"{self._beside} is being written by another process")
        self.publish()

    def close(self) -> None:
        """Give up what was staged and not published."""
        if self._staged is not None:
            with suppress(OSError):
                if same_file(self._staged, self._beside):
                    self._beside.unlink()
            os.close(self._staged)
            self._staged = None

    def load(self) -> Content | None:
        """What is there, if anything is.

        :raises InvalidInput: it is not JSON, not a Vagoth store, or one of another format
        :raises RegistryError: it cannot be read
        """
        # Looked at first: if the file is replaced in between, it is only read once more.
        found = stamp_of(self.path)
        data = read_bytes(self.path)
        if data is None or found is None:
            return None
        return self.content(data, found)

    def content(self, data: bytes, found: Stamp = (0, 0, 0, 0)) -> Content:
        """What the bytes of such a file say.

        :raises InvalidInput: they are not JSON, not a Vagoth store, or one of another format
        """
        try:
            tables = _tables.decode(data)
        except msgspec.ValidationError as error:
            # Another table would be lost when the file is written anew.
            raise self._refused(
                f"it is JSON, and not with our two tables alone: {error}"
            ) from error
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            # Of what is cut off msgspec does not say where.
            place = "" if "byte" in str(error) else f", at byte {len(data)}, its end"
            raise self._refused(f"it is not JSON ({error}{place})") from error
        return Content(self._meta(tables.vagoth), bytes(tables.nodes), found)

    def tail(self) -> tuple[Meta, Stamp] | None:
        """The table ``vagoth`` of a file that a registry wrote, without reading all of it.

        :return: nothing if there is no file, or its end is not as we write it
        """
        try:
            with open(self.path, "rb") as file:
                found = os.fstat(file.fileno())
                data = read_at(file.fileno(), _TAIL, max(0, found.st_size - _TAIL))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise trouble(error, "read", self.path) from error
        _before, is_there, table = data.rpartition(b',"vagoth":{"1":')
        if not is_there or not table.endswith(b"}}"):
            return None
        try:
            return _metas.decode(table[:-2]), stamp(found)
        except msgspec.DecodeError:
            return None

    def stage(self, records: Iterable[Record], meta: Meta) -> bool:
        """Write the file beside, and sync it. :meth:`publish` then puts it in place.

        :return: whether it was; not if another process is doing the same
        """
        encode = msgspec.json.Encoder().encode
        ordered = sorted(records, key=lambda record: (record.created, record.id))
        nodes = b"{%b}" % b",".join(
            b'"%d":%b' % (number, encode(record)) for number, record in enumerate(ordered, 1)
        )
        meta = msgspec.structs.replace(meta, digest=digest(nodes))
        return self._stage([b'{"nodes":', nodes, b',"vagoth":{"1":', encode(meta), b"}}"])

    def publish(self) -> Stamp:
        """Put the staged file in place, durably."""
        assert self._staged is not None
        try:
            os.rename(self._beside, self.path)
            sync_directory(self.path.parent)
            found = os.fstat(self._staged)
        except OSError as error:
            raise trouble(error, "written", self.path) from error
        finally:
            self.close()
        return stamp(found)

    def _stage(self, parts: list[bytes]) -> bool:
        self.close()
        fd = None
        try:
            fd = os.open(self._beside, os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Before it was locked it may have been renamed: then this is the store itself, which
            # must not be touched.
            if not same_file(fd, self._beside):
                os.close(fd)
                return False
            os.ftruncate(fd, 0)
            os.fchmod(fd, 0o600)
            keep_owner(fd, self.path)
            offset = 0
            for part in parts:
                write_at(fd, part, offset)
                offset += len(part)
            os.fsync(fd)
        except BlockingIOError:
            if fd is not None:
                os.close(fd)
            return False
        except OSError as error:
            if fd is not None:
                os.close(fd)
            raise trouble(error, "written", self._beside) from error
        self._staged = fd
        return True

    def _meta(self, table: Mapping[str, msgspec.Raw]) -> Meta:
        # The format is looked at before all else: another one may have other fields.
        for document in table.values():
            try:
                found = msgspec.json.decode(document, type=dict[str, Any]).get("format")
            except msgspec.DecodeError:
                continue
            if found == FORMAT:
                try:
                    return _metas.decode(document)
                except msgspec.DecodeError as error:
                    raise self._refused(f"its table “vagoth” is malformed ({error})") from error
            if isinstance(found, int):
                raise self._refused(
                    f"it has format {found}, and this version knows format {FORMAT}"
                )
        raise self._refused("its table “vagoth” does not say which format it has")

    def _refused(self, why: str) -> InvalidInput:
        return InvalidInput(
            "store",
            str(self.path),
            _EXPECTED,
            message=f"{self.path} is not {_EXPECTED}: {why}",
            cure="name another file, or one that does not exist yet",
        )
