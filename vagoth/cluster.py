"""The front door: a cluster is a registry, its nodes, and what moves them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, TypedDict, Unpack, overload

from vagoth.actions.base import Action, Context, Plan, hypervisor, hypervisors
from vagoth.actions.lastlooks import LastLooks
from vagoth.actions.records import New
from vagoth.allocator import Allocator, Spread
from vagoth.config import Config, load_config
from vagoth.definition import convert
from vagoth.drivers.base import Check, Driver, DriverSettings
from vagoth.drivers.sessions import Sessions
from vagoth.errors import InvalidInput, NodeNotFound
from vagoth.model import Commit, Record, new_id
from vagoth.monitor import HostReport, Monitor
from vagoth.nodes.base import Node, NodeList, UnusableNode
from vagoth.plugins import Plugins, load
from vagoth.query import Document, every, hint_of
from vagoth.registry.base import Registry, Watch
from vagoth.scheduler import Job, Scheduler
from vagoth.transaction import Transaction, current, transaction
from vagoth.view import View, is_glob

if TYPE_CHECKING:
    from vagoth.actions.undo import Undo
    from vagoth.history import Snapshot, When
    from vagoth.nodes.hypervisor import Hypervisor
    from vagoth.nodes.vm import VM

log = logging.getLogger(__name__)

NODE_TYPES = {
    "vm": "vagoth.nodes.vm:VM",
    "hv": "vagoth.nodes.hypervisor:Hypervisor",
    "volume": "vagoth.nodes.volume:Volume",
    "service": "vagoth.nodes.service:Service",
}
DRIVERS = {
    "sim": "vagoth.drivers.sim:SimDriver",
    "libvirt": "vagoth.drivers.libvirt:LibvirtDriver",
}


class NewNode(TypedDict, total=False):
    """What a new node may be given, besides its name and type. All of it may be left out.

    ``id`` is what never changes, made up if not given; ``definition`` what the node should be,
    and its type says what may be in it; ``keys`` are further unique names such as
    ``asset:4711``; ``links`` relations to other nodes, by name. ``state`` and ``parent`` are
    for types that no driver keeps them of.
    """

    id: str | None
    definition: Mapping[str, Any] | None
    tenant: str | None
    tags: Mapping[str, str] | None
    keys: Iterable[str]
    metadata: Mapping[str, Any] | None
    links: Mapping[str, Iterable[Node | str]] | None
    state: str | None
    parent: Node | str | None


class Cluster:
    """All nodes, and the verbs on them. Made by :func:`connect`.

    Reading (``cluster["web1"]``, :meth:`nodes`) is instant: it never waits for I/O, and follows
    what other processes write. What changes anything is awaited, and is durable when it returns.
    """

    def __init__(self, config: Config, registry: Registry) -> None:
        settings = config.settings
        self.config = config
        self.registry = registry
        self.types: Plugins[Node] = Plugins(
            "nodes", Node, built_in=NODE_TYPES, configured=settings.nodes, below=config.folder
        )
        self.drivers: Plugins[Driver] = Plugins(
            "drivers",
            Driver,  # type: ignore[type-abstract]  # it is never made, only asked for subclasses
            built_in=DRIVERS,
            configured=settings.drivers,
            below=config.folder,
        )
        self._driver_objects: dict[str, Driver] = {}
        self.scheduler = Scheduler(jobs_per_host=settings.hosts.jobs_per_host)
        self.context = Context(
            registry=registry,
            sessions=Sessions(self.driver),
            scheduler=self.scheduler,
            allocator=_allocator(config),
            looks=LastLooks(config.state_dir / "looks.json"),
            connect_timeout_s=settings.hosts.connect_timeout_s,
            shutdown_grace_s=settings.jobs.shutdown_grace_s,
        )
        self.monitor = Monitor(self.context, self.driver, interval_s=settings.monitor.interval_s)

    # --- reading -----------------------------------------------------------------------

    @property
    def view(self) -> View:
        """Every record, in memory."""
        return self.registry.view

    def __getitem__(self, name: str) -> Node:
        return self.get(name)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self.view.by_name(name) is not None

    def __len__(self) -> int:
        return len(self.view)

    def get(
        self, name: str | None = None, *, id: str | None = None, key: str | None = None
    ) -> Node:
        """The node of that name (or id, or key), or of that ``id`` or ``key`` and nothing else.

        :raises NodeNotFound: there is none; the error holds the nearest name
        """
        if name is not None:
            return self.node(self.view.find(name))
        record = self.view.get(id) if id is not None else self.view.by_key(key or "")
        if record is None:
            raise NodeNotFound(id if id is not None else key or "")
        return self.node(record)

    def vm(self, name: str) -> VM:
        """The VM of that name, with its verbs known to type checkers.

        :raises InvalidInput: the node is no VM
        """
        from vagoth.nodes.vm import VM

        node = self.get(name)
        if not isinstance(node, VM):
            raise InvalidInput("node", name, f"a VM, and {name} is a {node.record.type}")
        return node

    def nodes(
        self,
        *conditions: str | Callable[[Mapping[str, Any]], bool],
        type: str | None = None,
        state: str | None = None,
        parent: Node | str | None = None,
        tenant: str | None = None,
        tags: Mapping[str, str | None] | None = None,
        key: str | None = None,
    ) -> NodeList:
        """The nodes that meet every condition, sorted by name.

        :param conditions: a pattern for the name (``"web*"``), or TinyDB queries on the record
            (``where("state") == "running"``), or any function of the record as a mapping
        :param tags: a value of ``None`` asks only that the tag is there
        """
        glob = next((text for text in conditions if isinstance(text, str)), None)
        queries = [query for query in conditions if not isinstance(query, str)]
        if len(conditions) - len(queries) > 1:
            raise InvalidInput("conditions", conditions, "one pattern for the name at most")

        hints = [hint for query in queries if (hint := hint_of(query)) is not None]

        def meets(record: Record) -> bool:
            document = Document(record)
            return all(query(document) for query in queries)

        records = self.view.select(
            glob,
            type=type,
            state=state,
            parent=self.resolve(parent).id if parent is not None else None,
            tenant=tenant,
            tags=tags,
            key=key,
            where=meets if queries else None,
            hint=every(hints),
        )
        return NodeList(self, map(self.node, records))

    def select(self, names: Iterable[str], *, type: str | None = None) -> NodeList:
        """The nodes that a person named: by name, id, key or pattern, each once, in that order.

        :raises NodeNotFound: a name, or a pattern, means no node
        :raises InvalidInput: a node that was named is not of that ``type``
        """
        chosen: dict[str, Record] = {}
        for name in names:
            if is_glob(name) and self.view.by_name(name) is None:
                found = self.view.select(name, type=type)
                if not found:
                    raise NodeNotFound(name)
            else:
                found = [self.view.find(name)]
                if type is not None and found[0].type != type:
                    raise InvalidInput(
                        "node",
                        name,
                        f"a {type}",
                        message=f"{name} is a {found[0].type}, not a {type}",
                    )
            chosen |= {record.id: record for record in found}
        return NodeList(self, map(self.node, chosen.values()))

    def node(self, record: Record) -> Node:
        """A live handle on a record.

        A type that nobody knows any more is a plain Node; one whose class fails can be read.
        """
        try:
            cls = self.types.get(record.type, field="type")
        except InvalidInput as trouble:
            if record.type in self.types.names():
                return UnusableNode(self, record, trouble)
            cls = Node
        return cls(self, record)

    def resolve(self, node: Node | str) -> Record:
        """The record that a handle, name, id or key means. :raises NodeNotFound: none."""
        return node.record if isinstance(node, Node) else self.view.find(node)

    def resolve_links(
        self, links: Mapping[str, Iterable[Node | str]]
    ) -> dict[str, tuple[str, ...]]:
        """Links with ids as targets."""
        return {
            name: tuple(self.resolve(target).id for target in targets)
            for name, targets in links.items()
        }

    # --- changing ----------------------------------------------------------------------

    def prepared(self, name: str, *, type: str = "vm", **given: Unpack[NewNode]) -> New:
        """The action that :meth:`new` runs, checked as far as its type can tell."""
        cls = self.types.get(type, field="type")
        state, parent, id = given.get("state"), given.get("parent"), given.get("id")
        if cls.is_driven and state is not None:
            raise InvalidInput("state", state, f"left out: the state of a {type} is seen on hosts")
        if cls.claims_parent and parent is not None:
            raise InvalidInput("parent", parent, "left out: define and start claim a host")
        record = Record(
            id=id if id is not None else new_id(),
            name=name,
            type=type,
            state=state if state is not None else cls.initial_state,
            tenant=given.get("tenant"),
            parent=self.resolve(parent).id if parent is not None else None,
            tags=dict(given.get("tags") or {}),
            keys=tuple(sorted({*(given.get("keys") or ())})),
            links=self.resolve_links(given.get("links") or {}),
            definition=dict(given.get("definition") or {}),
            metadata=dict(given.get("metadata") or {}),
        )
        return New(cls.prepare(record, None, self))

    @overload
    async def new(
        self, name: str, *, type: Literal["vm"] = "vm", **given: Unpack[NewNode]
    ) -> VM: ...
    @overload
    async def new(
        self, name: str, *, type: Literal["hv"], **given: Unpack[NewNode]
    ) -> Hypervisor: ...
    @overload
    async def new(self, name: str, *, type: str, **given: Unpack[NewNode]) -> Node: ...
    async def new(self, name: str, *, type: str = "vm", **given: Unpack[NewNode]) -> Node:
        """Add a node to the registry. No host is contacted.

        :param given: see :class:`NewNode`
        :return: a live handle
        :raises InvalidInput: a value is refused; nothing was added
        :raises Taken: the id, the name or a key has an owner, which the error names
        """
        job = self.run(self.prepared(name, type=type, **given), name)
        return self.node(await job)

    def plan_new(self, name: str, *, type: str = "vm", **given: Unpack[NewNode]) -> Plan:
        """What :meth:`new` would do, without doing it."""
        return self.prepared(name, type=type, **given).plan(self.view, self.context.allocator)

    async def delete(self, node: Node | str, *, wait_s: float = 0.0) -> None:
        """Remove a node; see :meth:`vagoth.nodes.base.Node.delete`."""
        await self.node(self.resolve(node)).delete(wait_s=wait_s)

    def submit(self, node: Node | str, verb: str, **arguments: Any) -> Job:
        """Begin a verb on a node as a job, which can be awaited, watched and cancelled."""
        handle = node if isinstance(node, Node) else self[node]
        return self.run(handle.action(verb, **arguments), handle.name)

    def run(self, action: Action, name: str) -> Job:
        """Run an action of one's own as a job. :param name: what to call its node in messages."""

        async def run(job: Job) -> Any:
            return await action.run(self.context, job)

        return self.scheduler.submit(
            action.verb, action.node_id, name, run, in_order=action.in_order
        )

    @asynccontextmanager
    async def transaction(
        self, *, source: str | None = None, reason: str = ""
    ) -> AsyncIterator[Transaction]:
        """Give all that is done inside one txid, source and reason; a nested one keeps the txid."""
        with transaction(source=source, reason=reason) as tx:
            yield tx

    # --- what was ----------------------------------------------------------------------

    async def history(
        self,
        *,
        node: Node | str | None = None,
        txid: str | None = None,
        since: When | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[Commit]:
        """Past commits, newest first, that meet every condition; read as they are asked for.

        :param node: a node, or what it is called; one that was deleted, by its last name or its id
        :param txid: of this transaction
        :param since: epoch seconds, a datetime, or text such as ``"1h"`` or an ISO time
        :param limit: at most so many
        :raises NodeNotFound: there is, and was, no such node
        :raises InvalidInput: history has no such transaction; ``since`` is no time, or lies in the
            future; several deleted nodes had that last name
        """
        from vagoth.history import no_transaction, time_of

        if limit is not None and limit < 1:
            raise InvalidInput("limit", limit, "a number from 1 on")
        after = time_of(since, now=time.time(), field="since") if since is not None else None
        await self.registry.refresh()
        if isinstance(node, str):
            node = await self.past_id(node)
        node_id = node.id if isinstance(node, Node) else node
        found = self.registry.history(node_id=node_id, txid=txid, since=after, limit=limit)
        is_there = False
        async for commit in found:
            is_there = True
            yield commit
        if txid is not None and not is_there:
            known = [commit.txid async for commit in self.registry.history(limit=1000)]
            if not any([commit async for commit in self.registry.history(txid=txid, limit=1)]):
                raise no_transaction(txid, known)

    async def past_id(self, name: str) -> str:
        """The id of the node of that name, id or key; else of the deleted one that last had it.

        :raises NodeNotFound: there is, and was, none; the error holds the nearest name
        :raises InvalidInput: several deleted nodes had that last name; the error holds their ids
        """
        from vagoth.history import deleted_node

        await self.registry.refresh()
        try:
            return self.view.find(name).id
        except NodeNotFound:
            return await deleted_node(name, self.view, self.registry.history())

    async def at(self, when: When) -> Snapshot:
        """The cluster as it was: all records, found and selected as those that are.

        History is read backwards from now, only as far as needed.

        :param when: epoch seconds, a datetime, or text such as ``"1h"`` or an ISO time: what had
            been committed by then; or the id of a transaction: right after its last commit
        :raises InvalidInput: it is none of these, lies in the future, or before what is kept of
            history; or history has no such transaction
        """
        from vagoth.history import Moment, rewound

        moment = Moment.of(when, now=time.time())
        await self.registry.refresh()
        return await rewound(self.view, self.registry.position, self.registry.history(), moment)

    async def undo(self, txid: str, *, wait_s: float = 0.0) -> Commit | None:
        """Take a transaction back, by a new one. No host is asked to do anything.

        Fields are put back one by one, so that what others changed beside them stays. Undoing an
        undo does it again.

        :return: the commit; nothing if all was as before already, so a retry is safe
        :raises InvalidInput: history has no such transaction, or it is the one in force
        :raises Conflict: later changes stand on what it did, or a host would have to act; the
            error names all of it, and what to do instead. Nothing was changed
        :raises Busy: a node that would be removed is worked on, and still is after ``wait_s``
        """
        undo = self._undoing(txid, wait_s=wait_s)

        async def run(_job: Job) -> Commit | None:
            return await undo.run(self.context)

        job = self.scheduler.submit("undo", txid, f"transaction {txid}", run, in_order=False)
        commit: Commit | None = await job
        return commit

    async def plan_undo(self, txid: str) -> list[Plan]:
        """What :meth:`undo` would do, a plan for each node; none: all is as before already.

        :raises VagothError: as :meth:`undo` does
        """
        return await self._undoing(txid).plan(self.registry)

    def _undoing(self, txid: str, *, wait_s: float = 0.0) -> Undo:
        from vagoth.actions.inverse import Types
        from vagoth.actions.undo import Undo

        tx = current()
        if tx is not None and tx.id == txid:
            raise InvalidInput(
                "transaction",
                txid,
                "one that is over",
                message=f"{txid} is the transaction in force, and not over yet",
            )

        def initial_state(type: str) -> str | None:
            cls = self._type_of(type)
            return cls.initial_state if cls.is_driven else None

        def check(record: Record) -> None:
            wanted = self._type_of(record.type).definition_type(record.definition, self)
            if wanted is not None:
                convert(record.definition, wanted)

        return Undo(txid, Types(initial_state, check), wait_s=wait_s)

    def _type_of(self, name: str) -> type[Node]:
        try:
            return self.types.get(name, field="type")
        except InvalidInput:
            return Node

    # --- hosts -------------------------------------------------------------------------

    async def poll(self, hosts: Iterable[Node | str] | None = None) -> list[HostReport]:
        """Look at these hosts, or all, at once, and write down what differs.

        :return: a report for each; that of a host in trouble holds its ``error``
        """
        chosen = [self.resolve(host) for host in hosts] if hosts is not None else None
        return await self.monitor.poll(chosen)

    async def check(self, hosts: Iterable[Node | str] | None = None) -> dict[str, Sequence[Check]]:
        """Try each prerequisite of these hosts, or all; by the host's name."""
        chosen = [self.resolve(host) for host in hosts] if hosts is not None else None
        records = hypervisors(self.view) if chosen is None else chosen
        targets = [hypervisor(record) for record in records]
        results = await asyncio.gather(
            *(self.driver(str(host.definition.get("driver"))).check(host) for host in targets)
        )
        return {host.name: found for host, found in zip(targets, results, strict=True)}

    def driver(self, name: str) -> Driver:
        """The driver of that name. :raises InvalidInput: there is none."""
        if name not in self._driver_objects:
            settings = self.config.settings
            self._driver_objects[name] = self.drivers.get(name, field="driver")(
                DriverSettings(
                    state_dir=self.config.state_dir,
                    connect_timeout_s=settings.hosts.connect_timeout_s,
                    call_timeout_s=settings.hosts.call_timeout_s,
                    ssh_config=self.config.file(settings.ssh.config),
                    known_hosts=self.config.file(settings.ssh.known_hosts),
                )
            )
        return self._driver_objects[name]

    def watch(self, since: str | None = None, *, follow: bool = True) -> ClusterWatch:
        """Every commit from now on, or from a position on, as an async iterator.

        It is subscribed at once: what is committed between this call and the first iteration
        is not lost. Close it, or use ``async with``.

        :param follow: follow the hosts while it is open, so that what changes on them arrives
        :raises WatchGap: commits were missed; raised by the iteration
        """
        return ClusterWatch(self, self.registry.watch(since), follow=follow)

    # --- opening and closing -------------------------------------------------------------

    async def close(self) -> None:
        """Stop what is on its way, let go of all hosts, and close the registry."""
        await self.monitor.close()
        await self.scheduler.close()
        await self.context.sessions.close()
        for driver in self._driver_objects.values():
            await driver.close()
        await asyncio.to_thread(self.context.looks.save)
        await self.registry.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()


class ClusterWatch(AsyncIterator[Commit]):
    """A watch on the registry that has the hosts followed while it is open."""

    def __init__(self, cluster: Cluster, watch: Watch, *, follow: bool) -> None:
        self._monitor = cluster.monitor if follow else None
        self._watch = watch
        self._open = True
        if self._monitor is not None:
            self._monitor.start()

    async def __anext__(self) -> Commit:
        return await self._watch.__anext__()

    async def close(self) -> None:
        """Stop receiving; hosts are followed no more, unless others want it."""
        if not self._open:
            return
        self._open = False
        self._watch.close()
        if self._monitor is not None:
            await self._monitor.stop()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.close()


class _Connecting:
    """What :func:`connect` returns: ``await`` it, or enter it with ``async with``."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._cluster: Cluster | None = None

    def __await__(self) -> Generator[Any, None, Cluster]:
        return self._open().__await__()

    async def __aenter__(self) -> Cluster:
        self._cluster = await self._open()
        return self._cluster

    async def __aexit__(self, *_exc: object) -> None:
        if self._cluster is not None:
            await self._cluster.close()

    async def _open(self) -> Cluster:
        from vagoth.registry.tinydb import TinyDBRegistry

        registry = TinyDBRegistry(self._config.store, state_dir=self._config.state_dir)
        cluster = Cluster(self._config, registry)
        await registry.open()
        try:
            if self._config.sim is not None:
                await _ensure_simulated_hosts(cluster, self._config.sim)
        except BaseException:
            await cluster.close()
            raise
        return cluster


def connect(
    config: Path | str | None = None,
    *,
    store: Path | str | None = None,
    sim: int | None = None,
) -> _Connecting:
    """Open a cluster: ``async with connect() as cluster``, or ``cluster = await connect()``.

    :param config: a vagoth.toml; without it ``$VAGOTH_CONFIG``, ``./vagoth.toml`` or the
        user's own is used, or the defaults
    :param store: the JSON file to keep nodes in, whatever the configuration says
    :param sim: have that many simulated hosts; they have a store of their own unless one is named
    :raises ConfigError: the configuration is refused; names file and line
    :raises InvalidInput: the store is not ours (raised when opened)
    :raises RegistryError: the store cannot be read, or is damaged (raised when opened)
    """
    return _Connecting(load_config(config, store=store, sim=sim))


async def _ensure_simulated_hosts(cluster: Cluster, count: int) -> None:
    for number in range(1, count + 1):
        if f"hv{number}" not in cluster:
            with transaction(reason=f"--sim {count}"):
                await cluster.new(f"hv{number}", type="hv", definition={"driver": "sim"})


def _allocator(config: Config) -> Allocator:
    settings = config.settings.allocator
    cls: Any = Spread
    if settings.reference is not None:
        cls = load(settings.reference, field="allocator.class", below=config.folder)
        if not (isinstance(cls, type) and issubclass(cls, Allocator)):
            raise InvalidInput(
                "allocator.class", settings.reference, "a class that inherits vagoth.Allocator"
            )
    allocator: Allocator = cls(memory=settings.memory, vcpus=settings.vcpus)
    return allocator
