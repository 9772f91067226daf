"""libvirt's own event loop: one thread for the process, and objects that only it may outlive."""

from __future__ import annotations

import atexit
import threading
from typing import TYPE_CHECKING

from vagoth.errors import MissingExtra

if TYPE_CHECKING:
    import libvirt

_lock = threading.Lock()
_thread: threading.Thread | None = None
_ending = threading.Event()

# The last reference to each open connection. Whoever drops it makes a call, which only a worker
# may do; a session that is forgotten leaks its connection here, which is the lesser evil.
_connections: set[libvirt.virConnect] = set()


def keep(connection: libvirt.virConnect) -> None:
    """Hold on to a connection until it is given to :func:`release`."""
    _connections.add(connection)


def release(connection: libvirt.virConnect) -> None:
    """Let go of a connection that is closed. To be called on a worker."""
    _connections.discard(connection)


def start() -> None:
    """See to it that libvirt's event loop runs; it must before the first connection is made.

    :raises MissingExtra: libvirt-python is not installed
    """
    global _thread
    try:
        import libvirt
    except ImportError as error:
        raise MissingExtra("libvirt", "a host of the libvirt driver") from error
    with _lock:
        if _thread is not None:
            return
        # Else libvirt prints each error.
        libvirt.registerErrorHandler(lambda context, error: None, None)
        libvirt.virEventRegisterDefaultImpl()
        _thread = threading.Thread(target=_run, name="vagoth-libvirt-events", daemon=True)
        _thread.start()
        atexit.register(_end)


def _run() -> None:
    import libvirt

    while not _ending.is_set():
        libvirt.virEventRunDefaultImpl()


def _end() -> None:
    """End the thread before the interpreter goes, and keep it from closing what is still open.

    A connection that is open then belongs to a session whose loop, and SSH connection, are gone:
    closing it would wait for an answer for ever.
    """
    import libvirt

    _ending.set()
    # A timer that is due wakes the thread.
    libvirt.virEventAddTimeout(0, lambda timer, opaque: None, None)
    if _thread is not None:
        _thread.join(timeout=1.0)
    for connection in _connections:
        connection._o = None
