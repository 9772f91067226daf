"""One session for each host, opened when first needed and shared by all who need it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from vagoth.drivers.base import Driver, Host, Session
from vagoth.errors import HostUnreachable, InvalidInput


class Sessions:
    """The open sessions of one process, by host.

    A lost session is replaced when the host is next asked for. A host whose definition has
    changed gets a new one; the old one is closed.

    :param driver: gives the driver of a name; raises InvalidInput where there is none
    """

    def __init__(self, driver: Callable[[str], Driver]) -> None:
        self._driver = driver
        self._opening: dict[str, tuple[Host, asyncio.Task[Session]]] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._closed = False

    async def get(self, host: Host) -> Session:
        """The host's session, opened if need be.

        Cancelled, the opening goes on for whoever asks next: a connection half made is not
        worth throwing away, and opens within its own timeout.

        :raises HostError: it could not be opened; the next call tries again
        """
        if self._closed:
            raise RuntimeError("the cluster is closed")
        known = self._opening.get(host.id)
        if known is not None and not self._usable(*known, host):
            self._discard(host.id)
            known = None
        if known is None:
            task = asyncio.create_task(self._open(host), name=f"open {host.name}")
            # Whoever waited may have been cancelled: nobody else would look at the error.
            task.add_done_callback(lambda done: done.cancelled() or done.exception())
            self._opening[host.id] = known = (host, task)
        try:
            return await asyncio.shield(known[1])
        except asyncio.CancelledError:
            me = asyncio.current_task()
            if known[1].cancelled() and not (me and me.cancelling()):
                raise HostUnreachable(host.name, "its connection was closed meanwhile") from None
            raise

    def peek(self, host_id: str) -> Session | None:
        """The host's session if there is an open one already."""
        known = self._opening.get(host_id)
        if known is None or not known[1].done() or known[1].cancelled() or known[1].exception():
            return None
        session = known[1].result()
        return session if session.is_open else None

    async def close(self) -> None:
        """Close all of them, at once, and those that are being opened."""
        self._closed = True
        for host_id in tuple(self._opening):
            self._discard(host_id)
        while self._closing:
            await asyncio.gather(*self._closing, return_exceptions=True)

    @staticmethod
    def _usable(opened_for: Host, task: asyncio.Task[Session], host: Host) -> bool:
        if opened_for.definition != host.definition:
            return False
        if not task.done():
            return True
        return not task.cancelled() and task.exception() is None and task.result().is_open

    async def _open(self, host: Host) -> Session:
        name = host.definition.get("driver")
        if not isinstance(name, str):
            raise InvalidInput("driver", name, "the name of a driver")
        return await self._driver(name).open(host)

    def _discard(self, host_id: str) -> None:
        _, task = self._opening.pop(host_id)
        closing = asyncio.create_task(self._close(task))
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)

    @staticmethod
    async def _close(task: asyncio.Task[Session]) -> None:
        if not task.done():
            task.cancel()
        try:
            session = await task
        except BaseException:
            return
        await session.close()
