"""All records as one JSON text, to keep, to compare and to bring into another store.

::

    {
      "format": 1,
      "nodes": [
        {"id": "…", "name": "web1", "type": "vm", …},
        …
      ]
    }

Nodes stand in the order of their ids, which never change; fields in the order of
:class:`~vagoth.model.Record`, with all of its fields but ``revision``, which belongs to a store;
names within a mapping in alphabetical order. So two exports of the same nodes are the same text,
and a change of one field is a change of one line.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from vagoth.errors import InvalidInput, VagothError
from vagoth.model import Put, Record
from vagoth.registry import rules
from vagoth.registry.ahead import Ahead
from vagoth.registry.base import Registry
from vagoth.view import View

FORMAT = 1
_FIRST = 5


class Export(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The shape of an export."""

    format: int
    nodes: tuple[msgspec.Raw, ...]


def exported(records: Iterable[Record]) -> bytes:
    """The text for these records."""
    nodes: list[Mapping[str, Any]] = []
    for record in sorted(records, key=lambda record: record.id):
        fields = msgspec.to_builtins(record, order="deterministic")
        del fields["revision"]
        nodes.append(fields)
    text = msgspec.json.encode({"format": FORMAT, "nodes": nodes})
    return msgspec.json.format(text, indent=2) + b"\n"


def is_export(data: bytes) -> bool:
    """Whether that is what :func:`exported` wrote, in this format or another."""
    try:
        return "nodes" in msgspec.json.decode(data, type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, UnicodeDecodeError):
        return False


def read(data: bytes, source: str) -> list[Record]:
    """The records in an export.

    :param source: what to call it in errors
    :raises InvalidInput: it is no export, or a node in it is malformed; names the first of them
    """
    try:
        found = msgspec.json.decode(data, type=Export)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidInput(
            "import", source, "an export", message=f"{source} is no export of a store: {error}"
        ) from error
    if found.format != FORMAT:
        raise InvalidInput(
            "import",
            source,
            "an export",
            message=f"{source} has format {found.format}; this version knows format {FORMAT}",
        )
    records, problems = [], []
    for number, node in enumerate(found.nodes):
        try:
            records.append(msgspec.json.decode(node, type=Record, strict=True))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            problems.append(f"nodes[{number}]: {error}")
    refuse(source, problems)
    return records


def refuse(source: str, problems: Sequence[str]) -> None:
    """Refuse an import with the first of its problems, if there are any."""
    if problems:
        more = len(problems) - _FIRST
        told = "; ".join(problems[:_FIRST]) + (f"; and {more} more" if more > 0 else "")
        raise InvalidInput("import", source, "", message=f"{source}: nothing was imported: {told}")


def wanted(records: Sequence[Record], view: View) -> tuple[list[Record], list[str]]:
    """The records that are not in the view yet, those that others need first; and all problems.

    A record that is there already and does not differ is left alone.
    """
    new: list[Record] = []
    problems: list[str] = []
    seen: dict[str, Record] = {}
    for record in records:
        if (other := seen.setdefault(record.id, record)) is not record:
            problems.append(f"{record.name}: id {record.id!r} is taken by {other.name}")
            continue
        there = view.get(record.id)
        if there is None:
            new.append(record)
            continue
        differ = [
            field
            for field in Record.__struct_fields__
            if field not in rules.CALCULATED and getattr(there, field) != getattr(record, field)
        ]
        if differ:
            problems.append(
                f"{record.name} (id {record.id}) is there already, as {there.name}, and differs"
                f" in {', '.join(differ)}"
            )
    ordered = _parents_first(new)
    problems += _refused(ordered, view)
    return ordered, problems


def _parents_first(records: Sequence[Record]) -> list[Record]:
    by_id = {record.id: record for record in records}
    ordered: dict[str, Record] = {}
    for record in records:
        line = [record]
        while (above := by_id.get(line[-1].parent or "")) is not None and above not in line:
            line.append(above)
        ordered |= {each.id: each for each in reversed(line) if each.id not in ordered}
    return list(ordered.values())


def _refused(records: Sequence[Record], view: View) -> Iterator[str]:
    """What the rules have against each of them, as if those before it were there."""
    ahead = Ahead(view)
    for record in records:
        alone = msgspec.structs.replace(record, links={})
        try:
            changes = rules.decide(
                ahead, [Put(alone)], expect={record.id: None}, revision="0", now=0.0
            )
        except VagothError as error:
            yield f"{record.name}: {error.message}"
            continue
        for change in changes:
            ahead.apply(change)
    for record in records:
        for link, targets in record.links.items():
            for target in targets:
                if ahead.get(target) is None:
                    yield f"{record.name}: links.{link}: {target!r} is not the id of a node"


async def bring_in(registry: Registry, records: Sequence[Record]) -> int:
    """Commit new records, parents first: in one commit, or as many as its limits ask for.

    :return: how many commits it took
    :raises VagothError: one was refused: somebody else was quicker. What is there by then is what
        is imported when the same is imported again
    """
    batches = list(_batches(registry, records))
    if len(batches) > 1:
        # A link may lead to a node of a later commit.
        plain = [msgspec.structs.replace(record, links={}) for record in records]
        batches = [*_batches(registry, plain), *_batches(registry, [r for r in records if r.links])]
    for batch in batches:
        await registry.commit(
            [Put(record) for record in batch],
            expect={
                record.id: there.revision if (there := registry.view.get(record.id)) else None
                for record in batch
            },
        )
    return len(batches)


def _batches(registry: Registry, records: Sequence[Record]) -> Iterator[list[Record]]:
    batch: list[Record] = []
    size = 0
    for record in records:
        length = len(msgspec.json.encode(record))
        if batch and (
            len(batch) >= registry.max_changes or size + length > registry.max_bytes // 2
        ):
            yield batch
            batch, size = [], 0
        batch.append(record)
        size += length
    if batch:
        yield batch
