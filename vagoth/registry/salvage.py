"""Saving all that is whole of a damaged store into a new one. The damaged one is only read.

For each record the newest whole version there is counts. The history is kept with its numbers;
where commits cannot be read, each has an empty one in its place that says so.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from vagoth.errors import InvalidInput, RegistryError
from vagoth.model import Record
from vagoth.registry.files import make_directory, trouble
from vagoth.registry.journal import Journal
from vagoth.registry.lines import Line, Mark, seal, sum_of
from vagoth.registry.storefile import FORMAT, Folded, Meta, StoreFile
from vagoth.registry.survey import Survey, conflicts

_BY = "vagoth store repair"


class Salvage(msgspec.Struct, frozen=True):
    """What was saved, what was wrong with the old store, and what could not be saved as it was."""

    path: str
    nodes: int
    commits: int
    findings: tuple[str, ...]
    lost: tuple[str, ...]


class _Saved(NamedTuple):
    records: list[Record]
    lines: list[bytes]
    base: int
    seq: int
    commits: int
    lost: list[str]


def repair(found: Survey, target: Path, *, dry_run: bool = False) -> Salvage:
    """Write what a survey found whole to ``target``, which must not exist. Blocks.

    :param dry_run: only tell what would be saved
    :raises InvalidInput: there is something at ``target``
    :raises RegistryError: there is nothing to save, or it cannot be written
    """
    target = target.expanduser().resolve()
    journal = target.with_name(f"{target.name}.journal")
    for path in (target, journal):
        if path.exists():
            raise InvalidInput("output", str(path), "a store that does not exist yet")
    saved = _saved(found)
    if not saved.records and not saved.commits:
        raise RegistryError(f"{found.path}: nothing in it is whole", cure="restore it from a copy")
    if not dry_run:
        try:
            make_directory(target.parent)
            _write(saved, target, journal)
        except OSError as error:
            raise trouble(error, "written", target) from error
    return Salvage(
        str(target),
        len(saved.records),
        saved.commits,
        tuple(map(str, found.findings)),
        tuple(saved.lost),
    )


def _saved(found: Survey) -> _Saved:
    lost: list[str] = []
    newest = _newest(found, lost)
    records = list(_unique(newest, lost))
    there = {record.id for record in records}
    for record in records:
        if record.parent is not None and record.parent not in there:
            lost.append(f"{record.name}: its parent {record.parent}")
        for link, targets in record.links.items():
            lost += [
                f"{record.name}: what it links to ({link}), {t}" for t in targets if t not in there
            ]
    lines = list(_history(found, lost))
    first = found.pieces[0].line.seq if found.pieces else found.folded + 1
    base = found.header.base if found.header is not None else first - 1
    seqs = [_seq(record) for record in records]
    seq = max([found.folded, base + len(lines), *seqs])
    if not lines:
        base = seq
    elif base + len(lines) < seq:
        lost += [f"commit {number}" for number in range(base + len(lines) + 1, seq + 1)]
        lines += [_gap(number, found) for number in range(base + len(lines) + 1, seq + 1)]
    return _Saved(records, lines, base, seq, len(found.pieces), lost)


def _seq(record: Record) -> int:
    return int(record.revision) if record.revision.isdecimal() else 0


def _newest(found: Survey, lost: list[str]) -> list[Record]:
    """The newest whole version of each record, latest change first."""
    newest: dict[str, tuple[int, Record | None]] = {}
    if found.is_ours or not found.has_all_history:
        newest = {record.id: (_seq(record), record) for record in found.documents}
    for _, _, line in found.pieces:
        # Up to where a whole file was written it is right: also in what it no longer holds.
        if found.is_ours and line.seq <= found.folded:
            continue
        for change in line.changes:
            if line.seq >= newest.get(change.id, (0, None))[0]:
                newest[change.id] = (line.seq, change.after)
    if not found.is_ours and found.has_all_history:
        lost += [
            f"{record.name} (id {record.id}), which no commit made"
            for record in found.documents
            if record.id not in newest
        ]
    chosen = sorted(newest.values(), key=lambda version: -version[0])
    return [record for _, record in chosen if record is not None]


def _unique(records: list[Record], lost: list[str]) -> Iterator[Record]:
    """The records with names and keys that are theirs alone: the latest change has them."""
    clashes: dict[str, list[tuple[str, str]]] = {}
    for clash in conflicts(records):
        clashes.setdefault(clash.record.id, []).append((clash.what, clash.value))
        lost.append(clash.text)
    seen: set[str] = set()
    for record in records:
        mine = clashes.get(record.id, ())
        if record.id in seen:
            continue  # the same id twice: the later version was first
        seen.add(record.id)
        keys = tuple(key for key in record.keys if ("key", key) not in mine)
        is_free = not any(what in ("name", "id") for what, _ in mine)
        name = record.name if is_free else f"{record.name[:40]}~{secrets.token_hex(4)}"
        yield msgspec.structs.replace(record, name=name, keys=keys)


def _history(found: Survey, lost: list[str]) -> Iterator[bytes]:
    expected = found.header.base + 1 if found.header is not None else None
    for _, raw, line in found.pieces:
        for missing in range(line.seq if expected is None else expected, line.seq):
            lost.append(f"commit {missing}")
            yield _gap(missing, found)
        yield raw
        expected = line.seq + 1


def _gap(seq: int, found: Survey) -> bytes:
    times = [piece.line.time for piece in found.pieces if piece.line.seq < seq]
    reason = f"commit {seq} was damaged and could not be saved"
    return seal(Line(seq, seq - 1, "", times[-1] if times else 0.0, _BY, reason, ()))


def _write(saved: _Saved, target: Path, journal_path: Path) -> None:
    store = secrets.token_hex(16)
    mark = Mark(saved.seq)
    if saved.lines:
        journal = Journal.create(journal_path, store=store, base=saved.base)
        try:
            last = saved.lines[-1]
            data = b"".join(saved.lines)
            journal.append(data, Mark(saved.base, 0, journal.start))
            end = journal.start + len(data)
            mark = Mark(saved.seq, end - len(last), end, sum_of(last))
        finally:
            journal.close()
    meta = Meta(
        format=FORMAT,
        store=store,
        position=f"{store[:8]}:{mark.seq}:{mark.end}",
        journal=Folded(mark.seq, mark.start, mark.end, mark.sum),
    )
    file = StoreFile(target)
    if not file.stage(saved.records, meta):
        raise RegistryError(f"another process is writing {target}", cure="name another file")
    file.publish()
