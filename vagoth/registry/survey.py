"""A look at all of a store's files, however damaged: what is whole in them, and what is wrong.

Opening a store stops at the first thing that is wrong. This goes on behind it, changes no byte,
and needs nobody's leave: others may go on using the store. It blocks.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from vagoth.errors import InvalidInput, RegistryError
from vagoth.model import Record
from vagoth.registry.files import read_bytes
from vagoth.registry.lines import Header, Line, decode_header, decode_line, is_whole
from vagoth.registry.locks import StoreLock
from vagoth.registry.storefile import Content, StoreFile, documents_in

_QUIET_WITHIN_S = 2.0
_LOOK_AGAIN_S = 0.01
_RECORD = re.compile(r'\{\s*"id"\s*:')


class Finding(msgspec.Struct, frozen=True):
    """One thing that is wrong: in which file, at which place in it, and what."""

    file: str
    place: str
    problem: str

    def __str__(self) -> str:
        return f"{self.file}, {self.place}: {self.problem}" if self.place else self.problem


class Piece(NamedTuple):
    """A whole line of the journal, and the byte of the file at which it stands."""

    at: int
    raw: bytes
    line: Line


class Survey:
    """What was found. ``findings`` is empty if the store is sound.

    ``documents`` are the whole records in ``store.json``, ``is_ours`` whether they are all and as
    a registry wrote them; ``pieces`` the whole lines of the journal, in order; ``is_torn``
    whether a commit that was never finished stands at its end, which is no damage.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.journal_path = path.with_name(f"{path.name}.journal")
        self.findings: list[Finding] = []
        self.content: Content | None = None
        self.documents: list[Record] = []
        self.is_ours = False
        self.header: Header | None = None
        self.pieces: list[Piece] = []
        self.is_torn = False
        self.size = 0

    def found(self, path: Path, place: str, problem: str) -> None:
        """Add something that is wrong."""
        self.findings.append(Finding(str(path), place, problem))

    @property
    def has_all_history(self) -> bool:
        """Whether the journal is whole from the very first commit on."""
        seqs = [piece.line.seq for piece in self.pieces if piece.line.changes]
        is_first = self.header is None or not self.header.base
        return is_first and bool(seqs) and seqs == list(range(1, max(self.folded, seqs[-1]) + 1))

    @property
    def folded(self) -> int:
        """The last commit that is in ``store.json``."""
        journal = self.content.meta.journal if self.content is not None else None
        return journal.seq if journal is not None else 0


def survey(path: Path) -> Survey:
    """Look at everything.

    :raises RegistryError: there is no store there, or its files cannot be read at all
    """
    found = Survey(path)
    data, journal, until = _contents(found)
    if data is None and journal is None:
        raise RegistryError(f"there is no store at {path}", cure="name another with --store")
    if data is not None:
        found.size = len(data)
        _look_at_file(found, data)
    if journal is not None:
        _look_at_journal(found, journal, until)
    _look_at_both(found, has_file=data is not None)
    return found


def _contents(found: Survey) -> tuple[bytes | None, bytes | None, int | None]:
    """Both files as they were at one moment; and up to where the journal was settled then."""
    lock = StoreLock(found.path.with_name(f"{found.path.name}.lock"))
    deadline = time.monotonic() + _QUIET_WITHIN_S
    try:
        while not (is_quiet := lock.try_shared()) and time.monotonic() < deadline:
            time.sleep(_LOOK_AGAIN_S)
        data = read_bytes(found.path)
        until = None if is_quiet else lock.settled()
        return data, read_bytes(found.journal_path), until
    finally:
        lock.close()


# --- store.json ---------------------------------------------------------------------------


def _look_at_file(found: Survey, data: bytes) -> None:
    file = StoreFile(found.path)
    try:
        found.content = file.content(data)
    except InvalidInput as error:
        found.found(found.path, "", error.message)
        found.documents = [record for _, record in _loose_documents(data)]
        return
    documents, problems = documents_in(found.content)
    for number, problem in problems:
        found.found(found.path, f"document {number}", problem)
    found.documents = list(documents.values())
    found.is_ours = found.content.is_ours and not problems


def _loose_documents(data: bytes) -> Iterator[tuple[int, Record]]:
    """Whole records in what is no longer JSON as a whole; and where each begins."""
    text = data.decode(errors="surrogateescape")
    decoder = json.JSONDecoder()
    at = 0
    while found := _RECORD.search(text, at):
        at = found.start() + 1
        try:
            document, end = decoder.raw_decode(text, found.start())
            text[found.start() : end].encode()  # refuses what was no UTF-8
            if "revision" not in document:
                continue  # something inside of a record that is not whole
            yield found.start(), msgspec.convert(document, Record)
        except (ValueError, RecursionError):
            continue
        at = end


# --- the journal --------------------------------------------------------------------------


def _look_at_journal(found: Survey, data: bytes, until: int | None) -> None:
    lines = list(_split(data))
    if not lines or (len(lines) == 1 and not lines[0][1].endswith(b"\n") and len(data) < 4096):
        # It was being made, and holds nothing yet; unless something was folded from it.
        if found.content is not None and found.content.has_history:
            problem = f"its first line is missing, and {found.path} was written from it"
            found.found(found.journal_path, "byte 0", problem)
        return
    pruned = 0
    try:
        if not is_whole(lines[0][1]):
            raise msgspec.DecodeError("it is damaged")
        found.header = decode_header(lines[0][1])
        first = found.header.first
        pruned = first - len(lines[0][1]) if first else 0
    except msgspec.DecodeError as error:
        found.found(
            found.journal_path, "byte 0", f"its first line does not say whose it is: {error}"
        )
    pieces = [
        (at, raw, _whole(raw)) for at, raw in lines[1:] if until is None or at + pruned < until
    ]
    _look_at_lines(found, pieces)


def _look_at_lines(found: Survey, lines: Sequence[tuple[int, bytes, Line | None]]) -> None:
    durable = max((line.durable for _, _, line in lines if line is not None), default=0)
    durable = max(durable, found.folded)
    expected = found.header.base + 1 if found.header is not None else None
    bad: int | None = None
    for at, raw, line in lines:
        if line is None:
            bad = at if bad is None else bad
            if expected is not None and durable < expected:
                break  # nobody was ever told of what should stand here
            continue
        if expected is not None and line.seq < expected:
            found.found(found.journal_path, f"byte {at}", f"commit {line.seq} stands there again")
            continue
        if expected is not None and line.seq > expected:
            place = at if bad is None else bad
            problem = f"{_commits(expected, line.seq - 1)} cannot be read"
            found.found(found.journal_path, f"byte {place}", problem)
        elif bad is not None:
            found.found(found.journal_path, f"byte {bad}", "there is something that is no commit")
        bad = None
        expected = line.seq + 1
        found.pieces.append(Piece(at, raw, line))
    found.is_torn = bad is not None
    if expected is not None and expected <= durable:
        end = f"byte {bad}" if bad is not None else "its end"
        problem = f"{_commits(expected, durable)} cannot be read, and was acknowledged"
        found.found(found.journal_path, end, problem)
        found.is_torn = False


def _split(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at < len(data):
        end = data.find(b"\n", at) + 1 or len(data)
        yield at, data[at:end]
        at = end


def _whole(raw: bytes) -> Line | None:
    if not is_whole(raw):
        return None
    try:
        return decode_line(raw)
    except msgspec.DecodeError:
        return None


def _commits(first: int, last: int) -> str:
    return f"commit {first}" if first == last else f"commits {first} to {last}"


# --- both together ------------------------------------------------------------------------


def _look_at_both(found: Survey, *, has_file: bool) -> None:
    content, header = found.content, found.header
    if header is not None and not has_file and header.base:
        found.found(
            found.path, "", f"it is missing, and its journal begins after commit {header.base}"
        )
    records = {record.id: record for record in found.documents}
    if content is not None and header is not None:
        if content.meta.store != header.store:
            found.found(
                found.journal_path, "byte 0", f"it belongs to another store than {found.path}"
            )
            return
        if not content.is_ours:
            found.found(
                found.path,
                "table nodes",
                "it was changed by another program than Vagoth, while its journal stands",
            )
            return
    if not found.findings:
        records = _replayed(found, records)
    _look_at_records(found, records)


def _replayed(found: Survey, folded: dict[str, Record]) -> dict[str, Record]:
    """The records as the journal leaves them, compared with the file on the way."""
    # A commit without changes stands in the place of one that could not be saved once.
    is_from_start = (
        found.header is not None
        and not found.header.base
        and all(piece.line.changes for piece in found.pieces)
    )
    records = {} if is_from_start else dict(folded)
    for at, _, line in found.pieces:
        if line.seq <= found.folded and not is_from_start:
            continue
        for change in line.changes:
            before = records.get(change.id)
            if (before.revision if before else None) != change.revision_before:
                problem = f"commit {line.seq} does not follow from those before it, for {change.id}"
                found.found(found.journal_path, f"byte {at}", problem)
            if change.after is not None:
                records[change.id] = change.after
            else:
                records.pop(change.id, None)
        if is_from_start and line.seq == found.folded and found.content is not None:
            _compare(found, records, folded)
    return records


def _compare(found: Survey, wanted: Mapping[str, Record], there: Mapping[str, Record]) -> None:
    for node_id in sorted({*wanted, *there}):
        if wanted.get(node_id) != there.get(node_id):
            record = wanted.get(node_id) or there[node_id]
            found.found(
                found.path,
                f"node {node_id}",
                f"{record.name} is not as the journal left it at commit {found.folded}",
            )


def _look_at_records(found: Survey, records: Mapping[str, Record]) -> None:
    for problem in conflicts(list(records.values())):
        found.found(found.path, f"node {problem.record.id}", problem.text)
    for record in records.values():
        if record.parent is not None and record.parent not in records:
            found.found(
                found.path,
                f"node {record.id}",
                f"{record.name}'s parent {record.parent} is not there",
            )
        for link, targets in record.links.items():
            for target in targets:
                if target not in records:
                    found.found(
                        found.path,
                        f"node {record.id}",
                        f"{record.name} links to {target} ({link}), which is not there",
                    )
    found.documents = list(records.values()) if not found.findings else found.documents


class Clash(NamedTuple):
    """A record that has what another one has: its ``name``, or that key."""

    record: Record
    what: str
    value: str
    text: str


def conflicts(records: list[Record]) -> Iterator[Clash]:
    """Whose name or key is an earlier one's already."""
    taken: dict[tuple[str, str], Record] = {}
    for record in records:
        for kind, value in (
            ("id", record.id),
            ("name", record.name),
            *(("key", key) for key in record.keys),
        ):
            # A name that is another node's id would be as ambiguous as two equal names.
            room = "key" if kind == "key" else "name"
            other = taken.setdefault((room, value), record)
            if other is not record:
                text = f"{other.name} (id {other.id}) and {record.name} (id {record.id})"
                yield Clash(record, kind, value, f"{text} have the same {room} {value!r}")
