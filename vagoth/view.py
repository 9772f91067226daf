"""The view: every record in memory, indexed, never waiting for I/O.

A registry owns one and applies commits to it, whoever made them; all else only reads.
Look-ups by id, name and key cost the same at any size; type, state, parent, tenant and
tag are indexed too, so a selection costs what it returns.
"""

from __future__ import annotations

import fnmatch
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping

from vagoth.errors import NodeNotFound
from vagoth.model import Record, RecordChange
from vagoth.query import Among, Either, Hint

_GLOB = re.compile(r"[*?\[]")
_DIGITS = re.compile(r"(\d+)")


def is_glob(text: str) -> bool:
    """Whether ``text`` is a pattern such as ``web*`` and not a plain name."""
    return _GLOB.search(text) is not None


def natural(name: str) -> tuple[tuple[str, int, str], ...]:
    """A sort key under which ``web2`` comes before ``web10``."""
    parts = _DIGITS.split(name)
    return tuple(("", int(part), part) if part.isdecimal() else (part, 0, "") for part in parts)


def _life(record: Record) -> tuple[object, ...]:
    return record.state, record.parent, record.intent


def _place(record: Record) -> tuple[object, ...]:
    """All that the indexes and the generation depend on."""
    return (
        record.name,
        record.state,
        record.parent,
        record.intent,
        record.keys,
        record.tags,
        record.type,
        record.tenant,
        record.links,
    )


class View:
    """All records, found by id, name and key, and selected through indexes."""

    def __init__(self) -> None:
        self._records: dict[str, Record] = {}
        self._names: dict[str, str] = {}
        self._keys: dict[str, str] = {}
        self._touched: dict[str, int] = {}
        self.generation = 0
        self._indexes: dict[str, defaultdict[str, set[str]]] = {
            name: defaultdict(set)
            for name in ("type", "state", "parent", "tenant", "tag", "linked", "intent")
        }

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[Record]:
        return iter(self._records.values())

    def __contains__(self, node_id: object) -> bool:
        return node_id in self._records

    def get(self, node_id: str) -> Record | None:
        """The record of that id, or nothing."""
        return self._records.get(node_id)

    def by_name(self, name: str) -> Record | None:
        """The record of that name, or nothing."""
        node_id = self._names.get(name)
        return self._records[node_id] if node_id is not None else None

    def by_key(self, key: str) -> Record | None:
        """The record that holds the key (``ip:10.0.0.5``), or nothing."""
        node_id = self._keys.get(key)
        return self._records[node_id] if node_id is not None else None

    def find(self, name: str) -> Record:
        """The record that a person means by ``name``: its name, else its id, else a key.

        :raises NodeNotFound: none; the error holds the nearest name there is
        """
        record = self.by_name(name) or self.get(name) or self.by_key(name)
        if record is None:
            raise NodeNotFound(name, candidates=self._names)
        return record

    def name_of(self, node_id: str | None) -> str | None:
        """The name of the node of that id; the id itself if it has no record."""
        if node_id is None:
            return None
        record = self._records.get(node_id)
        return record.name if record is not None else node_id

    def children(self, node_id: str) -> list[Record]:
        """The records whose parent is that node."""
        return self.select(parent=node_id)

    def linking(self, node_id: str) -> list[Record]:
        """The records that have a link to that node."""
        return self._sorted(self._indexes["linked"].get(node_id, set()))

    def with_intent(self) -> list[Record]:
        """The records on which an action has begun and not ended."""
        return self._sorted(set().union(*self._indexes["intent"].values()))

    def touched(self, node_id: str) -> int:
        """The generation in which the record's state, parent or intent last changed.

        ``generation`` only grows, whatever the clock does: what was seen on a host in one
        generation is older than what was written in a later one.
        """
        return self._touched.get(node_id, 0)

    def names(self) -> Iterable[str]:
        """Every name, in no order."""
        return self._names.keys()

    def values(self, index: str) -> list[str]:
        """What is found under an index (``type``, ``state``, ``tenant``, ``tag``), sorted.

        Tags are given as ``key=value``, or ``key`` alone.
        """
        return sorted(self._indexes[index])

    def count(self, index: str, value: str) -> int:
        """How many records have that value under an index."""
        return len(self._indexes[index].get(value, ()))

    def select(
        self,
        glob: str | None = None,
        *,
        type: str | None = None,
        state: str | None = None,
        parent: str | None = None,
        tenant: str | None = None,
        tags: Mapping[str, str | None] | None = None,
        key: str | None = None,
        where: Callable[[Record], bool] | None = None,
        hint: Hint | None = None,
    ) -> list[Record]:
        """The records that meet every condition given, sorted by name (``web2`` before ``web10``).

        :param glob: pattern that the name must match; a plain name matches itself
        :param parent: the parent's id
        :param tags: a value of ``None`` or ``""`` asks only that the tag is there
        :param where: anything else; called last
        :param hint: what holds wherever ``where`` does; it saves looking at all the others
        """
        wanted: list[set[str]] = []
        for index, value in (
            ("type", type),
            ("state", state),
            ("parent", parent),
            ("tenant", tenant),
        ):
            if value is not None:
                wanted.append(self._indexes[index].get(value, set()))
        for tag, tag_value in (tags or {}).items():
            entry = f"{tag}={tag_value}" if tag_value else tag
            wanted.append(self._indexes["tag"].get(entry, set()))
        if key is not None:
            wanted.append({self._keys[key]} if key in self._keys else set())
        if glob is not None and (glob in self._names or not is_glob(glob)):
            wanted.append({self._names[glob]} if glob in self._names else set())
            glob = None
        if hint is not None:
            wanted.append(self._candidates(hint))
        wanted.sort(key=len)
        chosen: Iterable[str] = wanted[0].intersection(*wanted[1:]) if wanted else self._records
        if glob is not None:
            matches = re.compile(fnmatch.translate(glob)).match
            chosen = [id for id in chosen if matches(self._records[id].name)]
        if where is not None:
            chosen = [id for id in chosen if where(self._records[id])]
        return self._sorted(chosen)

    def _candidates(self, hint: Hint) -> set[str]:
        """The ids of the records that a hint leaves."""
        if isinstance(hint, Among):
            return set().union(*(self._under(hint.field, value) for value in hint.values))
        parts = [self._candidates(part) for part in hint.parts]
        if isinstance(hint, Either):
            return set().union(*parts)
        parts.sort(key=len)
        return parts[0].intersection(*parts[1:])

    def _under(self, index: str, value: str) -> Iterable[str]:
        match index:
            case "id":
                return (value,) if value in self._records else ()
            case "name":
                return (self._names[value],) if value in self._names else ()
            case "key":
                return (self._keys[value],) if value in self._keys else ()
        return self._indexes[index].get(value, ())

    def apply(self, change: RecordChange) -> None:
        """Make the change true here. For registries only."""
        node_id = change.record.id
        if change.after is not None:
            old = self._records.get(node_id)
            if old is not None and _place(old) == _place(change.after):
                self._records[node_id] = change.after
                return
        old = self._records.pop(node_id, None)
        if old is not None:
            self._unindex(old)
        if change.after is None:
            self._touched.pop(node_id, None)
            return
        self._records[node_id] = change.after
        self._index(change.after)
        if old is None or _life(old) != _life(change.after):
            self.generation += 1
            self._touched[node_id] = self.generation

    def load(self, records: Iterable[Record]) -> None:
        """Forget everything and hold these records. For registries only."""
        self._records = {record.id: record for record in records}
        self.generation += 1
        self._touched = dict.fromkeys(self._records, self.generation)
        self._names.clear()
        self._keys.clear()
        for index in self._indexes.values():
            index.clear()
        self._index_all()

    def _sorted(self, ids: Iterable[str]) -> list[Record]:
        return sorted((self._records[id] for id in ids), key=lambda record: natural(record.name))

    @staticmethod
    def _entries(record: Record) -> list[tuple[str, str]]:
        found = [("type", record.type), ("state", record.state)]
        if record.parent is not None:
            found.append(("parent", record.parent))
        if record.tenant is not None:
            found.append(("tenant", record.tenant))
        for tag, value in record.tags.items():
            found.append(("tag", tag))
            if value:
                found.append(("tag", f"{tag}={value}"))
        for targets in record.links.values():
            found += [("linked", target) for target in targets]
        if record.intent is not None:
            found.append(("intent", record.intent.action))
        return found

    def _index(self, record: Record) -> None:
        self._names[record.name] = record.id
        for key in record.keys:
            self._keys[key] = record.id
        for index, value in self._entries(record):
            self._indexes[index][value].add(record.id)

    def _index_all(self) -> None:
        """What :meth:`_index` does for each record, in half the time: opening waits for it."""
        records = self._records
        self._names.update((record.name, node_id) for node_id, record in records.items())
        self._keys.update((key, id) for id, record in records.items() for key in record.keys)
        types, states, parents, tenants, tags, linked, intents = self._indexes.values()
        for node_id, record in records.items():
            types[record.type].add(node_id)
            states[record.state].add(node_id)
            if record.parent is not None:
                parents[record.parent].add(node_id)
            if record.tenant is not None:
                tenants[record.tenant].add(node_id)
            for tag, value in record.tags.items():
                tags[tag].add(node_id)
                if value:
                    tags[f"{tag}={value}"].add(node_id)
            for targets in record.links.values():
                for target in targets:
                    linked[target].add(node_id)
            if record.intent is not None:
                intents[record.intent.action].add(node_id)

    def _unindex(self, record: Record) -> None:
        # In a commit that swaps two names the other record may hold ours by now.
        if self._names.get(record.name) == record.id:
            del self._names[record.name]
        for key in record.keys:
            if self._keys.get(key) == record.id:
                del self._keys[key]
        for index, value in self._entries(record):
            # One record may stand twice under one value: two links to the same node.
            ids = self._indexes[index].get(value, set())
            ids.discard(record.id)
            if not ids:
                self._indexes[index].pop(value, None)
