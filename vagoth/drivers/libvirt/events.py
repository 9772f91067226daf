"""What happens to a host's guests, handed from libvirt's thread to those who listen."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING

from vagoth.drivers.base import GuestEvent, Power
from vagoth.drivers.libvirt.link import Link
from vagoth.drivers.libvirt.looking import find
from vagoth.drivers.libvirt.workers import Call
from vagoth.errors import HostError, VagothError

if TYPE_CHECKING:
    import libvirt

# virDomainEventType, and details of some: libvirt's numbers are part of its ABI.
_DEFINED, _UNDEFINED, _STARTED, _SUSPENDED, _RESUMED, _STOPPED = 0, 1, 2, 3, 4, 5
_SHUTDOWN, _PMSUSPENDED, _CRASHED = 6, 7, 8
_UNDEFINED_RENAMED = 1
_STOPPED_CRASHED, _STOPPED_FAILED = 2, 5
_POWER = {
    _STARTED: Power.RUNNING,
    _RESUMED: Power.RUNNING,
    _SUSPENDED: Power.PAUSED,
    _PMSUSPENDED: Power.PAUSED,
    _CRASHED: Power.CRASHED,
}
_DETAIL = {
    _DEFINED: "defined",
    _UNDEFINED: "undefined",
    _STARTED: "started",
    _SUSPENDED: "paused",
    _RESUMED: "resumed",
    _STOPPED: "stopped",
    _PMSUSPENDED: "suspended itself",
    _CRASHED: "crashed",
}
_STOPPED_DETAIL = {0: "shut down", 1: "destroyed", 2: "crashed", 3: "migrated", 4: "saved"}


class Stream(AsyncIterator[GuestEvent]):
    """Events as they come; ends with the error that ended the connection."""

    def __init__(self) -> None:
        self._items: asyncio.Queue[GuestEvent | HostError] = asyncio.Queue()

    def put(self, item: GuestEvent | HostError) -> None:
        """Add what comes next; after an error, nothing does."""
        self._items.put_nowait(item)

    async def __anext__(self) -> GuestEvent:
        item = await self._items.get()
        if isinstance(item, HostError):
            self._items.put_nowait(item)
            raise copy_of(item)
        return item


class Lifecycle:
    """The events of one link, registered with libvirt when they are first needed.

    :param defined: told, first of all, of each guest that was defined anew or is gone
    """

    def __init__(self, link: Link, *, defined: Callable[[str], None]) -> None:
        self._link = link
        self._defined = defined
        self._loop = asyncio.get_running_loop()
        self._streams: set[Stream] = set()
        self._registering: asyncio.Task[None] | None = None
        # What a guest last was, for events that do not say.
        self._last: dict[str, Power] = {}
        self._looking: set[asyncio.Task[None]] = set()
        link.on_end(self._fail)

    @contextlib.asynccontextmanager
    async def listen(self) -> AsyncIterator[Stream]:
        """Events from entering the context on.

        :raises HostUnreachable: the link has ended
        """
        stream = Stream()
        self._streams.add(stream)
        try:
            await self.register()
            yield stream
        finally:
            self._streams.discard(stream)

    async def register(self) -> None:
        """Begin to be told by libvirt, unless that has begun.

        :raises HostUnreachable: the link has ended
        """
        if self._link.end_reason is not None:
            raise copy_of(self._link.end_reason)
        if self._registering is None or _has_failed(self._registering):
            # A task of its own: libvirt registers it once, whoever of those waiting is cancelled.
            call = self._link.call("listening for events", self._register_with)
            self._registering = self._loop.create_task(call)
            self._registering.add_done_callback(_has_failed)
        await asyncio.shield(self._registering)

    def _register_with(self, connection: libvirt.virConnect, call: Call) -> None:
        import libvirt

        lifecycle = libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE
        number = connection.domainEventRegisterAny(None, lifecycle, self._happened, None)
        self._link.on_close(lambda connection: connection.domainEventDeregisterAny(number))

    def _happened(
        self,
        connection: object,
        domain: libvirt.virDomain,
        event: int,
        detail: int,
        opaque: object,
    ) -> None:
        # On libvirt's event thread, which serves all hosts: no call may be made here. What the
        # domain says below came with the event.
        known = (domain.UUIDString(), domain.name(), domain.ID() != -1)
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._deliver, *known, event, detail)

    def _deliver(self, uuid: str, name: str, is_active: bool, event: int, detail: int) -> None:
        if event in (_DEFINED, _UNDEFINED):
            self._defined(uuid)
        if event == _SHUTDOWN or (event == _UNDEFINED and detail == _UNDEFINED_RENAMED):
            # It is about to stop, which is said when it has; it goes on under another name,
            # which is said next.
            return
        power = self._power(uuid, is_active, event, detail)
        if power is None:
            self._last.pop(uuid, None)
        else:
            self._last[uuid] = power
        words = _STOPPED_DETAIL.get(detail, "stopped") if event == _STOPPED else _DETAIL.get(event)
        self._tell(GuestEvent(uuid, name, power, words or "changed"))
        if event == _STOPPED:
            looking = self._loop.create_task(self._look_whether_gone(uuid, name))
            self._looking.add(looking)
            looking.add_done_callback(self._looking.discard)

    async def _look_whether_gone(self, uuid: str, name: str) -> None:
        """libvirt does not say that a guest is gone that it does not keep, or that moved away."""
        with contextlib.suppress(VagothError):
            found = await self._link.call(f"guest {name}", lambda c, _: find(c, uuid) is not None)
            # Where it is not among the last known any more, it was said meanwhile.
            if not found and self._last.pop(uuid, None) is not None:
                self._tell(GuestEvent(uuid, name, None, "gone"))

    def _tell(self, happened: GuestEvent) -> None:
        for stream in self._streams:
            stream.put(happened)

    def _power(self, uuid: str, is_active: bool, event: int, detail: int) -> Power | None:
        if event == _STOPPED:
            crashed = detail in (_STOPPED_CRASHED, _STOPPED_FAILED)
            return Power.CRASHED if crashed else Power.OFF
        if event == _UNDEFINED and not is_active:
            return None
        if event in (_DEFINED, _UNDEFINED):
            # One that runs keeps on running, or is paused, whatever is said of its definition.
            last = self._last.get(uuid, Power.RUNNING if is_active else Power.OFF)
            is_known = (last in (Power.RUNNING, Power.PAUSED)) == is_active
            return last if is_known else Power.RUNNING if is_active else Power.OFF
        return _POWER.get(event, Power.RUNNING)

    def _fail(self, reason: HostError) -> None:
        for stream in self._streams:
            stream.put(reason)


def copy_of(error: HostError) -> HostError:
    """The same error, to be raised once more: each has a traceback of its own."""
    return type(error)(error.host, error.problem, cure=error.cure)


def _has_failed(task: asyncio.Task[None]) -> bool:
    return task.done() and (task.cancelled() or task.exception() is not None)
