"""One connection to a host, and all that is carried by it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import shutil
import socket
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vagoth.errors import (
    HostUnreachable,
    InvalidInput,
    LoginRefused,
    OutcomeUnknown,
    PassphraseNeeded,
)
from vagoth.ssh.config import Settings, read_known_hosts, read_settings
from vagoth.ssh.dial import dial, in_thread, resolve
from vagoth.ssh.errors import Attempt, translate
from vagoth.ssh.target import SSHTarget

if TYPE_CHECKING:
    import asyncssh

# A dead peer is found after 20 s: three questions unanswered, and the time for a fourth.
KEEPALIVE_S = 5
KEEPALIVE_COUNT = 3
CLOSE_TIMEOUT_S = 2.0
# The kernel's limit for the path of a UNIX socket, its final zero included.
SUN_PATH_BYTES = 108

#: Called as a connection gets further: what holds now (``address``, ``port``, ``host key``,
#: ``login``), and with what in particular.
Passed = Callable[[str, str], None]


@dataclass(frozen=True)
class Result:
    """How a command on a host ended. ``status`` is negative where a signal ended it."""

    status: int
    stdout: str
    stderr: str


class SSHConnection:
    """A host, logged in to; made by :func:`connect`. Close it."""

    def __init__(
        self,
        host_name: str,
        settings: Settings,
        connection: asyncssh.SSHClientConnection,
        jump: SSHConnection | None,
    ) -> None:
        self.host_name = host_name
        self._settings = settings
        self._connection = connection
        self._jump = jump
        self._forwards: dict[Path, asyncssh.SSHListener] = {}
        self._folder: Path | None = None

    @property
    def user(self) -> str:
        """Who we are logged in as."""
        return self._settings.user

    @property
    def peer_address(self) -> str:
        """The host's address: what we are connected to, or, behind a jump host, how that one
        calls it."""
        peer = self._connection.get_extra_info("peername")
        if self._settings.is_dialled_by_us and peer:
            return str(peer[0]).partition("%")[0]
        return self._settings.host

    @property
    def is_open(self) -> bool:
        """Whether it can still be used; once false, always false."""
        return not self._connection.is_closed()

    async def closed(self) -> None:
        """Wait until it can no longer be used: closed by either side, or the peer is dead."""
        await self._connection.wait_closed()

    async def close(self) -> None:
        """End it and all that it carries. May be repeated; never raises."""
        for path in list(self._forwards):
            self.stop_forwarding(path)
        self._connection.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await self._connection.wait_closed()
        self._remove_folder()
        if self._jump is not None:
            await self._jump.close()

    async def run(self, argv: Sequence[str], *, timeout_s: float) -> Result:
        """Run a command and return how it ended, whatever its status.

        Each argument arrives as it is: nothing in it means anything to the host's shell.

        :raises HostUnreachable: it was not begun
        :raises OutcomeUnknown: it was begun, and the connection was lost or the time was up
        """
        import asyncssh

        try:
            async with asyncio.timeout(timeout_s):
                process = await self._connection.create_process(
                    shlex.join(argv), stdin=asyncssh.DEVNULL, errors="replace"
                )
        except (asyncssh.Error, OSError, TimeoutError) as error:
            raise self._translated(error, timeout_s) from error
        try:
            async with asyncio.timeout(timeout_s):
                done = await process.wait(check=False)
        except TimeoutError:
            raise OutcomeUnknown(
                f"{self.host_name}: {shlex.join(argv)} did not end within {timeout_s:g} s"
            ) from None
        except (asyncssh.Error, OSError) as error:
            raise self._lost_during(argv) from error
        finally:
            # Its end is asked for, and not waited for: the host may not hear of it.
            process.terminate()
            process.close()
        if done.returncode is None:
            raise self._lost_during(argv)
        return Result(done.returncode, str(done.stdout or ""), str(done.stderr or ""))

    def _lost_during(self, argv: Sequence[str]) -> OutcomeUnknown:
        return OutcomeUnknown(f"{self.host_name}: the connection was lost during {argv[0]}")

    async def can_reach_socket(self, remote_path: str, *, timeout_s: float) -> bool:
        """Whether the host's UNIX socket at a path accepts a connection of ours.

        :raises HostUnreachable: the connection is lost
        """
        import asyncssh

        try:
            async with asyncio.timeout(timeout_s):
                _, writer = await self._connection.open_unix_connection(remote_path)
        except asyncssh.ChannelOpenError as error:
            if self.is_open:
                return False
            raise self._translated(error, timeout_s) from error
        except (asyncssh.Error, OSError, TimeoutError) as error:
            raise self._translated(error, timeout_s) from error
        writer.close()
        return True

    async def forward_socket(self, remote_path: str) -> Path:
        """Make the host's UNIX socket at ``remote_path`` appear here; return where.

        Only this user can get at it. It goes at the latest when the connection is closed.
        """
        path = self._local_folder() / f"{len(self._forwards)}"
        self._forwards[path] = await self._connection.forward_local_path(str(path), remote_path)
        return path

    def stop_forwarding(self, path: Path) -> None:
        """Take no further connections at ``path``, and remove it. Those that are made go on."""
        listener = self._forwards.pop(path, None)
        if listener is not None:
            listener.close()
            # asyncssh leaves it behind.
            path.unlink(missing_ok=True)
        if not self._forwards:
            self._remove_folder()

    def _remove_folder(self) -> None:
        folder, self._folder = self._folder, None
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)

    def _local_folder(self) -> Path:
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="vagoth-", dir=_parent_folder()))
        return self._folder

    def _translated(self, error: BaseException, timeout_s: float) -> BaseException:
        attempt = Attempt(self.host_name, self._settings, timeout_s, stage="it was in use")
        return translate(error, attempt)


def _parent_folder() -> str:
    """A folder for folders of ours, whose path leaves room for a socket's name."""
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    for parent in (runtime, tempfile.gettempdir()):
        fits = len(os.fsencode(parent)) + len("/vagoth-xxxxxxxx/00") < SUN_PATH_BYTES
        if parent and fits and os.access(parent, os.W_OK | os.X_OK):
            return parent
    return "/tmp"


async def connect(
    host_name: str,
    target: SSHTarget,
    *,
    config: Path | None = None,
    known_hosts: Path | None = None,
    timeout_s: float,
    passed: Passed | None = None,
    jump: str | None = None,
) -> SSHConnection:
    """Log in to a host, within ``timeout_s`` seconds.

    :param host_name: what errors call it
    :param config: the ssh_config to read; by default the user's, if there is one
    :param known_hosts: the one file of host keys to go by; by default those of ssh_config
    :param passed: told of each thing that holds, on the way
    :param jump: the hosts to go through, as ProxyJump has them; by default, what it says
    :raises HostUnreachable: there is no SSH server to be reached; says why
    :raises HostKeyError: its key is unknown or has changed; says which, and the one offered
    :raises LoginRefused: it does not let the user in; says what was tried
    :raises PassphraseNeeded: it does not let the user in, and a key could not be tried
    :raises ConfigError: ssh_config cannot be read
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    settings = await in_thread(lambda: read_settings(target, config, known_hosts))
    if jump:
        settings = replace(settings, jump=jump)
    attempt = Attempt(host_name, settings, timeout_s)
    through: SSHConnection | None = None
    try:
        async with asyncio.timeout_at(deadline):
            if settings.jump:
                attempt.stage = f"its jump host {settings.jump} was reached"
                through = await _connect_jump(attempt, known_hosts, deadline - loop.time())
            connection = await _log_in(attempt, through, passed or (lambda stage, detail: None))
    except BaseException as error:
        if through is not None:
            await through.close()
        if not isinstance(error, Exception):
            raise
        await _see_why(error, attempt)
        translated = translate(error, attempt)
        if passed and isinstance(translated, LoginRefused | PassphraseNeeded):
            _note_host_key(attempt, passed)
        raise translated from error
    if passed:
        _note_host_key(attempt, passed)
        passed("login", f"as {settings.user}")
    return SSHConnection(host_name, settings, connection, through)


async def _connect_jump(
    attempt: Attempt, known_hosts: Path | None, timeout_s: float
) -> SSHConnection:
    """Log in to a jump host as to any other, so that its key is checked by the same rules."""
    assert attempt.settings.jump is not None
    before, _, last = attempt.settings.jump.rpartition(",")
    try:
        target = SSHTarget.parse(last.strip().removeprefix("ssh://"), field="ProxyJump")
    except InvalidInput as error:
        raise HostUnreachable(attempt.host_name, str(error), cure="see ssh_config") from error
    return await connect(
        f"{attempt.host_name}, at its jump host {target.host}",
        target,
        config=attempt.settings.config,
        known_hosts=known_hosts,
        timeout_s=timeout_s,
        jump=before or None,
    )


async def _log_in(
    attempt: Attempt, jump: SSHConnection | None, passed: Passed
) -> asyncssh.SSHClientConnection:
    import asyncssh

    settings = attempt.settings
    options: dict[str, Any] = {}
    sock: socket.socket | None = None
    if jump is not None:
        options["tunnel"] = jump._connection
    elif settings.is_dialled_by_us:
        addresses = await resolve(settings)
        passed("address", f"{settings.host} is {', '.join(each.text for each in addresses)}")
        attempt.stage = "a connection was made"
        sock, attempt.place = await dial(addresses, settings)
        passed("port", f"{attempt.place} answers")
    attempt.stage = "SSH greeted it"
    known_hosts = await in_thread(lambda: read_known_hosts(settings))
    options |= await in_thread(lambda: _key_options(settings))
    options |= _host_key_options(attempt, known_hosts, sock.getpeername()[0] if sock else "")

    def client() -> asyncssh.SSHClient:
        return _client(attempt)

    try:
        connection = await asyncssh.connect(
            settings.target.host,
            settings.target.port or (),
            username=settings.target.user or (),
            config=[str(settings.config)] if settings.config else None,
            sock=sock,
            client_factory=client,
            known_hosts=known_hosts,
            # Ours is the deadline that counts; a shorter ConnectTimeout is honoured.
            keepalive_interval=KEEPALIVE_S,
            keepalive_count_max=KEEPALIVE_COUNT,
            **options,
        )
    except BaseException:
        if sock is not None:
            sock.close()
        raise
    return connection


def _note_host_key(attempt: Attempt, passed: Passed) -> None:
    if not attempt.settings.is_dialled_by_us:
        way = f"by way of {attempt.settings.jump or 'a proxy'}"
        passed("address", way)
        passed("port", way)
    passed("host key", f"is the one on record for {attempt.settings.known_as}")


def _key_options(settings: Settings) -> dict[str, Any]:
    """Which keys to use. Files that are not there were left out already, as ssh leaves them out."""
    import asyncssh

    options: dict[str, Any] = {
        "client_keys": [str(path) for path in settings.key_files],
        "ignore_encrypted": True,
        "agent_path": settings.agent,
    }
    if settings.identities_only:
        # Of an encrypted key the public half still says which of the agent's keys is meant.
        allowed = []
        for path in settings.key_files:
            with contextlib.suppress(OSError, asyncssh.KeyImportError):
                allowed.append(asyncssh.read_public_key(f"{path}.pub").public_data)
        options["agent_identities"] = allowed or None
        if not allowed:
            options["agent_path"] = None
    return options


def _host_key_options(
    attempt: Attempt, known_hosts: asyncssh.SSHKnownHosts, address: str
) -> dict[str, Any]:
    """Which types of host keys to ask for: those on record first, as ssh does, then all others.

    asyncssh would ask for those on record alone. A host that was installed anew without them then
    hangs up, before anybody could say that its key has changed.
    """
    from asyncssh.public_key import get_default_certificate_algs, get_default_public_key_algs

    settings = attempt.settings
    name = settings.host_key_alias or settings.host
    port = settings.port if settings.port != 22 else None
    keys, authorities, *_ = known_hosts.match(name, address.partition("%")[0], port)
    attempt.keys_on_record = len(keys)
    if settings.has_host_key_types or not keys:
        return {}
    known = [algorithm for key in keys for algorithm in key.sig_algorithms]
    certified = get_default_certificate_algs() if authorities else []
    wanted = dict.fromkeys([*certified, *known, *get_default_public_key_algs()])
    return {"server_host_key_algs": [algorithm.decode() for algorithm in wanted]}


def _client(attempt: Attempt) -> asyncssh.SSHClient:
    """What asyncssh tells of a connection that is being made, noted in ``attempt``."""
    import asyncssh

    class Client(asyncssh.SSHClient):
        def validate_host_public_key(
            self, host: str, addr: str, port: int, key: asyncssh.SSHKey
        ) -> bool:
            attempt.key_offered = f"{key.get_algorithm()} {key.get_fingerprint()}"
            return False

        # Asked for when no key is left to try, for each way to log in that the host accepts.

        def public_key_auth_requested(self) -> None:
            attempt.methods.append("publickey")

        def password_auth_requested(self) -> None:
            attempt.methods.append("password")

        def kbdint_auth_requested(self) -> None:
            attempt.methods.append("keyboard-interactive")

    return Client()


async def _see_why(error: BaseException, attempt: Attempt) -> None:
    """After a refused login, find out which keys could not be tried."""
    import asyncssh

    if not isinstance(error, asyncssh.PermissionDenied):
        return
    encrypted = await in_thread(lambda: _encrypted(attempt.settings.key_files))
    held: set[bytes] = set()
    if encrypted and attempt.settings.agent:
        with contextlib.suppress(OSError, ValueError, TimeoutError):
            async with (
                asyncio.timeout(CLOSE_TIMEOUT_S),
                asyncssh.connect_agent(attempt.settings.agent) as agent,
            ):
                held = {key.public_data for key in await agent.get_keys()}
    attempt.keys_encrypted = [path for path, public in encrypted if public not in held]


def _encrypted(paths: Sequence[Path]) -> list[tuple[str, bytes | None]]:
    import asyncssh

    found: list[tuple[str, bytes | None]] = []
    for path in paths:
        try:
            asyncssh.read_private_key(path)
        except asyncssh.KeyImportError as error:
            if not str(error).startswith("Passphrase"):
                continue
            public = None
            with contextlib.suppress(OSError, asyncssh.KeyImportError):
                public = asyncssh.read_public_key(f"{path}.pub").public_data
            found.append((str(path), public))
        except OSError:
            continue
    return found
