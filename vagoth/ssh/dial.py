"""Looking a name up and connecting, so that each way to fail is told from the others.

asyncio's own way joins the errors of several addresses into one text, and looks names up on a
pool of few threads that a dead DNS server fills for all hosts, and that a loop waits for as it
ends. Here each look-up has a thread of its own, which nobody waits for.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from vagoth.ssh.config import Settings

T = TypeVar("T")


@dataclass(frozen=True)
class Address:
    """One address of a host, as the socket functions take it."""

    family: int
    sockaddr: Any

    @property
    def text(self) -> str:
        """The address without the port."""
        return str(self.sockaddr[0])


async def in_thread(function: Callable[[], T]) -> T:
    """What ``function`` returns, called in a thread of its own that may be left behind."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(value: T | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(value)  # type: ignore[arg-type]

    def run() -> None:
        value, error = None, None
        try:
            value = function()
        except BaseException as caught:
            error = caught
        # The loop may have ended meanwhile; then nobody wants to know.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(settle, value, error)

    threading.Thread(target=run, name="vagoth-ssh", daemon=True).start()
    return await future


async def resolve(settings: Settings) -> list[Address]:
    """All addresses of a host, best first. :raises socket.gaierror: it has none."""
    found = await in_thread(
        lambda: socket.getaddrinfo(
            settings.host, settings.port, settings.family, socket.SOCK_STREAM
        )
    )
    return list(dict.fromkeys(Address(family, sockaddr) for family, _, _, _, sockaddr in found))


async def dial(addresses: Sequence[Address], settings: Settings) -> tuple[socket.socket, str]:
    """Connect to the first address that answers; return the socket, and in words what to.

    :raises OSError: none does; the error of the first one
    """
    first: OSError | None = None
    for address in addresses:
        try:
            sock = await _connected(address, settings.local_host)
        except OSError as error:
            first = first or error
            continue
        return sock, f"{address.text} port {settings.port}"
    raise first or OSError("it has no address")


async def _connected(address: Address, local_host: str | None) -> socket.socket:
    sock = socket.socket(address.family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        if local_host:
            sock.bind((local_host, 0))
        await asyncio.get_running_loop().sock_connect(sock, address.sockaddr)
    except BaseException:
        sock.close()
        raise
    return sock
