"""One connection to a host's libvirt, and the SSH connection that carries it."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, TypeVar

from vagoth.drivers.libvirt import loop as libvirt_loop
from vagoth.drivers.libvirt.errors import Meaning, lost, meaning_of, translate, words_of
from vagoth.drivers.libvirt.workers import Abandoned, Call, Workers, on_thread
from vagoth.errors import HostError, HostUnreachable
from vagoth.ssh import SSHConnection

if TYPE_CHECKING:
    import libvirt

# A dead peer is found after the product of the two, or once more the first.
KEEPALIVE_S = 5
KEEPALIVE_COUNT = 3
CLOSE_TIMEOUT_S = 2.0

T = TypeVar("T")


class Held:
    """A connection that another link's worker may use, until it is given back."""

    def __init__(
        self,
        connection: libvirt.virConnect,
        loop: asyncio.AbstractEventLoop,
        give_back: Callable[[], None],
    ) -> None:
        self.connection = connection
        self.is_used = False
        self._loop = loop
        self._give_back = give_back

    def release(self) -> None:
        """Give it back. From any thread; may be repeated."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._give_back)


class Link:
    """libvirt's connection to one host, its calls, and its end.

    It ends once, for one reason: closed by us, lost, or declared dead because a call did not
    end in its time. From then on all calls fail, those under way included.
    """

    def __init__(self, host_name: str, call_timeout_s: float, ssh: SSHConnection | None) -> None:
        self.host_name = host_name
        self.ssh = ssh
        self._call_timeout_s = call_timeout_s
        self._loop = asyncio.get_running_loop()
        self._workers = Workers(self._overdue)
        self._connection: libvirt.virConnect | None = None
        self._ended = asyncio.Event()
        self._end_reason: HostError | None = None
        self._ending: asyncio.Task[None] | None = None
        self._watch: asyncio.Task[None] | None = None
        self._on_end: list[Callable[[HostError], None]] = []
        self._on_close: list[Callable[[libvirt.virConnect], object]] = []

    # --- its life ---------------------------------------------------------------------

    async def open(self, uri: str) -> None:
        """Open the connection. Whoever calls it bounds the time, and closes the link if it fails.

        :raises libvirt.libvirtError: libvirt refuses
        """
        given_up = threading.Event()
        try:
            self._connection = await on_thread(lambda: self._open(uri, given_up))
        finally:
            given_up.set()
        if self.ssh is not None:
            self._watch = self._loop.create_task(self._watch_ssh(self.ssh))

    def _open(self, uri: str, given_up: threading.Event) -> libvirt.virConnect:
        import libvirt

        connection = libvirt.open(uri)
        libvirt_loop.keep(connection)
        if given_up.is_set():
            _close(connection, ())
            raise Abandoned
        # A driver that has no connection of its own to keep alive supports neither.
        with contextlib.suppress(libvirt.libvirtError):
            connection.setKeepAlive(KEEPALIVE_S, KEEPALIVE_COUNT)
        with contextlib.suppress(libvirt.libvirtError):
            connection.registerCloseCallback(self._libvirt_closed, None)
        return connection

    def _libvirt_closed(self, connection: object, reason: int, opaque: object) -> None:
        # On libvirt's event thread.
        words = {0: "an error", 1: "its end", 2: "no answer to keepalives", 3: "our own end"}
        problem = f"the connection to libvirt was closed by {words.get(reason, 'something')}"
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self.end, HostUnreachable(self.host_name, problem))

    async def _watch_ssh(self, ssh: SSHConnection) -> None:
        await ssh.closed()
        self.end(HostUnreachable(self.host_name, "the SSH connection was lost"))

    def _overdue(self, call: Call, timeout_s: float) -> None:
        problem = f"libvirt did not answer {call.what} within {timeout_s:g} s"
        self.end(HostUnreachable(self.host_name, problem, cure="see whether libvirtd there hangs"))

    @property
    def is_open(self) -> bool:
        """Whether calls can still be made; once false, always false."""
        return not self._ended.is_set()

    @property
    def end_reason(self) -> HostError | None:
        """Why it ended; nothing while it has not."""
        return self._end_reason

    def on_end(self, told: Callable[[HostError], None]) -> None:
        """Have ``told`` called when the link ends."""
        self._on_end.append(told)

    def on_close(self, undo: Callable[[libvirt.virConnect], object]) -> None:
        """Have ``undo`` called, on a worker, before the connection is closed: libvirt keeps one
        open of which something is still registered."""
        self._on_close.append(undo)

    async def ended(self) -> None:
        """Wait until it ends."""
        await self._ended.wait()

    def end(self, reason: HostError, *, is_broken: bool = True) -> None:
        """End it: all who wait fail now. The first reason counts.

        :param is_broken: what carries it is of no more use, and goes first
        """
        if self._end_reason is not None:
            return
        self._end_reason = reason

        def why(call: Call) -> BaseException:
            return lost(self.host_name, reason.problem, call.what, call.abandon(), reason.cure)

        self._workers.fail(why)
        self._ended.set()
        for told in self._on_end:
            told(reason)
        self._ending = self._loop.create_task(self._let_go(is_broken))

    async def close(self) -> None:
        """End it, and wait until the host was let go. May be repeated; never raises."""
        self.end(HostUnreachable(self.host_name, "the session was closed"), is_broken=False)
        assert self._ending is not None
        await asyncio.shield(self._ending)

    async def _let_go(self, is_broken: bool) -> None:
        if self._watch is not None:
            self._watch.cancel()
        if is_broken:
            await self._close_ssh()
        if not await self._is_idle():
            # What hangs in a thread ends when what carries it does.
            await self._close_ssh()
            await self._is_idle()
        connection, self._connection = self._connection, None
        # With a call still in it, closing the connection would take it away from under the call.
        # Then it stays, and goes with the process.
        if connection is not None and self._workers.is_idle:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_TIMEOUT_S):
                    await on_thread(lambda: _close(connection, self._on_close))
        await self._close_ssh()

    async def _is_idle(self) -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await self._workers.idle()
        return self._workers.is_idle

    async def _close_ssh(self) -> None:
        if self.ssh is not None:
            await self.ssh.close()

    # --- its calls --------------------------------------------------------------------

    async def call(
        self,
        what: str,
        function: Callable[[libvirt.virConnect, Call], T],
        *,
        uuid: str = "",
        xml: str | None = None,
        is_bounded: bool = True,
    ) -> T:
        """What ``function`` returns, called on a worker with the connection.

        :param what: what is done, as a noun, for errors
        :param uuid: the guest that it is about
        :param xml: the user's own XML that takes part in it
        :param is_bounded: it ends in the time for calls, or the link is declared dead
        :raises HostUnreachable: the answer was lost, and nothing was changed
        :raises OutcomeUnknown: the answer was lost, and it may have happened
        """
        import libvirt

        call, connection = Call(what), self._connection
        timeout_s = self._call_timeout_s if is_bounded else None

        def run() -> T:
            assert connection is not None
            return function(connection, call)

        try:
            return await self._workers.submit(call, run, timeout_s=timeout_s)
        except asyncio.CancelledError:
            call.abandon()
            raise
        except libvirt.libvirtError as error:
            translated = translate(
                error, self.host_name, what=what, was_sent=call.was_sent, uuid=uuid, xml=xml
            )
            if meaning_of(error) is Meaning.LOST:
                problem = f"the connection to libvirt was lost: {words_of(error)}"
                self.end(HostUnreachable(self.host_name, problem))
            raise translated from error

    async def hold(self) -> Held:
        """The connection itself, for a call of another link's worker that needs both.

        It counts among the calls of this link, and keeps the connection from being closed.

        :raises HostUnreachable: the link has ended
        """
        give_back = await self._workers.hold()
        assert self._connection is not None
        return Held(self._connection, self._loop, give_back)


def _close(
    connection: libvirt.virConnect, undone: Iterable[Callable[[libvirt.virConnect], object]]
) -> None:
    """Close a connection, on a worker. A connection that is lost is closed nonetheless."""
    import libvirt

    for undo in undone:
        with contextlib.suppress(libvirt.libvirtError):
            undo(connection)
    with contextlib.suppress(libvirt.libvirtError):
        connection.unregisterCloseCallback()
    with contextlib.suppress(libvirt.libvirtError):
        connection.close()
    libvirt_loop.release(connection)
