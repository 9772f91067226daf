"""Node: the live handle on a record, to inherit and extend; and lists of them.

A type of node of your own is a subclass, named in vagoth.toml (``[nodes] rack = "mine:Rack"``)
or by an entry point in the group ``vagoth.nodes``::

    class Rack(Node):
        type = "rack"
        Definition = RackDefinition          # a msgspec.Struct: what its definition may hold
        actions = {**Node.actions, "audit": Audit}   # its own verbs

Without ``Definition`` any mapping will do; without actions of its own its state is the user's.
"""

from __future__ import annotations

import builtins
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Self, overload

import msgspec
from msgspec.structs import replace

from vagoth.actions.base import Action, Plan
from vagoth.actions.records import Remove, Set
from vagoth.definition import convert
from vagoth.errors import InvalidInput, MissingExtra, NodeNotFound, nearest
from vagoth.model import Intent, Record, State, merge_patch, read_only
from vagoth.scheduler import Job
from vagoth.tables import Table, as_dict, is_pending, node_table

if TYPE_CHECKING:
    from vagoth.cluster import Cluster


class Node:
    """A live handle on one node: its properties follow the registry, with nothing to refresh.

    After the node was deleted it keeps its last record, and its verbs raise NodeNotFound.
    Two handles are equal if they are of the same node.
    """

    #: The word in ``--type``.
    type: ClassVar[str] = "node"
    #: What its definition may hold; nothing: anything.
    Definition: ClassVar[builtins.type[msgspec.Struct] | None] = None
    initial_state: ClassVar[str] = State.NEW
    #: Whether actions and the monitor write its state; if not, ``set(state=…)`` does.
    is_driven: ClassVar[bool] = False
    #: Whether its parent is claimed by actions; if not, ``set(parent=…)`` sets it.
    claims_parent: ClassVar[bool] = False
    #: Its verbs. Each is called with the node's id and what the verb was given.
    actions: ClassVar[Mapping[str, Callable[..., Action]]] = {"delete": Remove}

    def __init__(self, cluster: Cluster, record: Record) -> None:
        self._cluster = cluster
        self._last = record

    # --- reading -----------------------------------------------------------------------

    @property
    def record(self) -> Record:
        """The record as the view has it now, or as it last was."""
        record = self._cluster.view.get(self._last.id)
        if record is not None:
            self._last = record
        return self._last

    @property
    def is_deleted(self) -> bool:
        """Whether the registry no longer has it."""
        return self._last.id not in self._cluster.view

    @property
    def id(self) -> str:
        """What never changes."""
        return self._last.id

    @property
    def name(self) -> str:
        """Unique, and free to change."""
        return self.record.name

    @property
    def state(self) -> str:
        """The state, as last seen or written."""
        return self.record.state

    @property
    def state_since(self) -> float:
        """When the state was last written differently, in epoch seconds."""
        return self.record.state_since

    @property
    def parent(self) -> Node | None:
        """The node that carries this one."""
        parent = self.record.parent
        return self._cluster.get(id=parent) if parent is not None else None

    @property
    def children(self) -> NodeList:
        """The nodes that this one carries."""
        return self._cluster.nodes(parent=self.id)

    @property
    def tenant(self) -> str | None:
        """Whose it is."""
        return self.record.tenant

    @property
    def tags(self) -> Mapping[str, str]:
        """The user's labels; a tag without a value has ``""``. Read-only."""
        return _mapping(self.record.tags)

    @property
    def keys(self) -> tuple[str, ...]:
        """Its further unique names, sorted."""
        return self.record.keys

    @property
    def links(self) -> Mapping[str, Sequence[Node]]:
        """Its relations, by name."""
        return {
            name: [self._cluster.get(id=target) for target in targets]
            for name, targets in self.record.links.items()
        }

    @property
    def definition(self) -> Mapping[str, Any]:
        """What it should be, as its user gave it. Read-only; ``set`` changes it."""
        return _mapping(self.record.definition)

    @property
    def metadata(self) -> Mapping[str, Any]:
        """Notes and facts about it. Read-only; ``set`` merges into it."""
        return _mapping(self.record.metadata)

    @property
    def alarm(self) -> str | None:
        """``duplicate``, where it was found on two hosts."""
        return self.record.alarm

    @property
    def intent(self) -> Intent | None:
        """What is being done to it, or was begun and never finished."""
        return self.record.intent

    @property
    def is_pending(self) -> bool:
        """Whether its host has another definition of it than the registry."""
        return is_pending(self.record)

    def to_dict(self) -> dict[str, Any]:
        """It as ``--json`` prints it: plain data, parent and links by name."""
        return msgspec.to_builtins(as_dict(self.record, self._cluster.view))  # type: ignore[no-any-return]

    # --- changing ----------------------------------------------------------------------

    async def set(
        self,
        *,
        name: str | None = None,
        tenant: str | None = None,
        tags: Mapping[str, str | None] | None = None,
        add_keys: Iterable[str] = (),
        remove_keys: Iterable[str] = (),
        state: str | None = None,
        parent: Node | str | None = None,
        definition: Mapping[str, Any] | None = None,
        metadata: Mapping[str, Any] | None = None,
        links: Mapping[str, Iterable[Node | str] | None] | None = None,
    ) -> Self:
        """Change the record, in one commit; what is left out stays.

        Tags, metadata, links and the definition merge key by key; ``None`` removes a key. A
        tenant or parent of ``""`` removes it. Retried on what other writers wrote meanwhile.

        :param state: only for types that no driver writes the state of
        :param parent: likewise: a VM's is claimed by ``define`` and ``start``
        :raises InvalidInput: a value is refused; nothing was changed
        :raises Taken: the name or a key has another owner; nothing was changed
        :raises NodeNotFound: it was deleted
        """
        given = {key: value for key, value in locals().items() if key != "self"}
        await self._cluster.submit(self, "set", **given)
        return self

    async def delete(self, *, wait_s: float = 0.0) -> None:
        """Remove it from the registry, with the links that others have to it.

        :raises InUse: it is placed on a host, or carries others; nothing was changed
        :raises Busy: another process works on it, and still does after ``wait_s``
        """
        await self._cluster.submit(self, "delete", wait_s=wait_s)

    def plan(self, verb: str, **arguments: Any) -> Plan:
        """What the verb would do now, without doing it: steps, hosts, changes.

        :raises VagothError: it would be refused
        """
        action = self.action(verb, **arguments)
        return action.plan(self._cluster.view, self._cluster.context.allocator)

    def submit(self, verb: str, **arguments: Any) -> Job:
        """Begin the verb as a job, which can be awaited, watched and cancelled."""
        return self._cluster.submit(self, verb, **arguments)

    def action(self, verb: str, **arguments: Any) -> Action:
        """The action behind a verb.

        :raises NodeNotFound: the node was deleted
        :raises InvalidInput: nodes of this type have no such verb, or it takes no such argument
        """
        if self.is_deleted:
            raise NodeNotFound(self.name)
        if verb == "set":
            return Set(self.id, self._changer(**arguments))
        make = self.actions.get(verb)
        if make is None:
            near = nearest(verb, self.actions)
            raise InvalidInput(
                "verb",
                verb,
                f"a verb of a {self.type}",
                message=f"{self.name} is a {self.type}, which cannot {verb}",
                cure=f"did you mean {near}?" if near else "",
            )
        for field in ("on", "host"):
            if isinstance(value := arguments.get(field), Node | str):
                arguments[field] = self._cluster.resolve(value).id
        return make(self.id, **arguments)

    # --- what a type decides -------------------------------------------------------------

    @classmethod
    def definition_type(
        cls, definition: Mapping[str, Any], cluster: Cluster
    ) -> builtins.type[msgspec.Struct] | None:
        """The type of such a definition; for types whose fields depend on one of them."""
        return cls.Definition

    @classmethod
    def prepare(cls, record: Record, before: Record | None, cluster: Cluster) -> Record:
        """Check a record before it is committed, and complete it; pure but for chance.

        Called for each new record, and for each change of a definition. Inherit it to add
        checks of your own (raise InvalidInput), defaults, or keys.

        :param before: the record so far; nothing if it is new
        """
        wanted = cls.definition_type(record.definition, cluster)
        if wanted is not None:
            convert(record.definition, wanted)
        return record

    def _changer(self, **given: Any) -> Callable[[Record], Record]:
        if given.get("state") is not None and self.is_driven:
            raise InvalidInput(
                "state", given["state"], "left out: the state of this type is seen on hosts"
            )
        if given.get("parent") is not None and self.claims_parent:
            raise InvalidInput(
                "parent", given["parent"], "left out: define and start claim a host for a VM"
            )
        return lambda record: changed(record, given, type(self), self._cluster)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Node) and (self._cluster, self.id) == (other._cluster, other.id)

    def __hash__(self) -> int:
        return hash(self.id)

    def __repr__(self) -> str:
        gone = ", deleted" if self.is_deleted else ""
        return f"<{self.type} {self.name}: {self.state}{gone}>"

    def _repr_html_(self) -> str:
        return NodeList(self._cluster, [self])._repr_html_()


class UnusableNode(Node):
    """A node whose type is known and cannot be used: its class fails. To be read, not changed."""

    is_driven = True
    claims_parent = True

    def __init__(self, cluster: Cluster, record: Record, trouble: InvalidInput) -> None:
        super().__init__(cluster, record)
        self._trouble = trouble

    def action(self, verb: str, **arguments: Any) -> Action:
        """:raises InvalidInput: always, saying what is wrong with the type."""
        raise self._trouble


def changed(record: Record, given: Mapping[str, Any], cls: type[Node], cluster: Cluster) -> Record:
    """The record with what ``set`` was given."""
    fields: dict[str, Any] = {
        key: given[key] for key in ("name", "state") if given.get(key) is not None
    }
    if (tenant := given.get("tenant")) is not None:
        fields["tenant"] = tenant or None
    if (parent := given.get("parent")) is not None:
        fields["parent"] = cluster.resolve(parent).id if parent else None
    for key in ("tags", "metadata"):
        if given.get(key):
            fields[key] = merge_patch(getattr(record, key), given[key])
    if given.get("links"):
        resolved = cluster.resolve_links({k: v for k, v in given["links"].items() if v})
        removed = {name: None for name, targets in given["links"].items() if not targets}
        fields["links"] = merge_patch(record.links, {**resolved, **removed})
    for key in given.get("remove_keys") or ():
        if key not in record.keys:
            raise InvalidInput("keys", key, f"a key of {record.name}")
    keys = [key for key in record.keys if key not in set(given.get("remove_keys") or ())]
    fields["keys"] = tuple(sorted({*keys, *(given.get("add_keys") or ())}))
    if given.get("definition") is not None:
        fields["definition"] = merge_patch(record.definition, given["definition"])
    return cls.prepare(replace(record, **fields), record, cluster)


class NodeList(Sequence[Node]):
    """Some nodes, in order: iterable, sliceable, filterable; a table to look at.

    Which nodes are in it is settled when it is made; each of them is live.
    """

    def __init__(self, cluster: Cluster, nodes: Iterable[Node]) -> None:
        self._cluster = cluster
        self._nodes = list(nodes)

    def __len__(self) -> int:
        return len(self._nodes)

    def __iter__(self) -> Iterator[Node]:
        return iter(self._nodes)

    @overload
    def __getitem__(self, index: int) -> Node: ...
    @overload
    def __getitem__(self, index: slice) -> NodeList: ...
    def __getitem__(self, index: int | slice) -> Node | NodeList:
        if isinstance(index, slice):
            return NodeList(self._cluster, self._nodes[index])
        return self._nodes[index]

    def filter(self, condition: Callable[[Node], bool]) -> NodeList:
        """Those that meet the condition."""
        return NodeList(self._cluster, filter(condition, self._nodes))

    @property
    def names(self) -> list[str]:
        """Their names."""
        return [node.name for node in self._nodes]

    def table(self) -> Table:
        """They as a table; see :mod:`vagoth.render` for what draws it."""
        records = [node.record for node in self._nodes]
        return node_table(records, self._cluster.view, looked_at=self._cluster.context.looks.of)

    def to_dicts(self) -> list[dict[str, Any]]:
        """They as plain data, as ``--json`` prints them."""
        return [node.to_dict() for node in self._nodes]

    def to_pandas(self) -> Any:
        """They as a pandas DataFrame, indexed by name.

        :raises MissingExtra: pandas is not installed
        """
        try:
            import pandas
        except ImportError as error:
            raise MissingExtra("pandas", "a DataFrame") from error
        return pandas.DataFrame(self.to_dicts()).set_index("name") if self else pandas.DataFrame()

    def __repr__(self) -> str:
        from vagoth.render import plain

        return plain(self.table()) if self._nodes else "no nodes"

    def _repr_html_(self) -> str:
        from vagoth.render import html

        return html(self.table())


def _mapping(value: Mapping[str, Any]) -> Mapping[str, Any]:
    copy: Mapping[str, Any] = read_only(value)
    return copy
