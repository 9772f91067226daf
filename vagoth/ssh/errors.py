"""What asyncssh and the network say, in our words: one table, at the edge."""

from __future__ import annotations

import errno
import shlex
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vagoth.errors import (
    ConfigError,
    HostError,
    HostKeyError,
    HostUnreachable,
    LoginRefused,
    PassphraseNeeded,
    VagothError,
)
from vagoth.ssh.config import Settings

if TYPE_CHECKING:
    import asyncssh

NO_ROUTE = {errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN, errno.ENETDOWN}


@dataclass
class Attempt:
    """One attempt to connect, and what has been seen of it so far."""

    host_name: str
    settings: Settings
    timeout_s: float
    place: str = ""
    key_offered: str = ""
    keys_on_record: int = 0
    methods: list[str] = field(default_factory=list)
    keys_encrypted: list[str] = field(default_factory=list)
    stage: str = "its name was looked up"

    def __post_init__(self) -> None:
        self.place = self.place or f"{self.settings.host} port {self.settings.port}"


def translate(error: BaseException, attempt: Attempt) -> VagothError:
    """The error of ours that says what ``error`` means for an attempt to connect."""
    import asyncssh

    if isinstance(error, VagothError):
        return error
    table: list[tuple[type[BaseException], Callable[[BaseException, Attempt], VagothError]]] = [
        (asyncssh.HostKeyNotVerifiable, _host_key),
        (asyncssh.KeyExchangeFailed, _key_exchange),
        (asyncssh.PermissionDenied, _login),
        (asyncssh.IllegalUserName, _login),
        (asyncssh.ConfigParseError, _config),
        (asyncssh.KeyImportError, _key_file),
        (asyncssh.KeyEncryptionError, _key_file),
        (asyncssh.ChannelOpenError, _channel),
        (asyncssh.ConnectionLost, _lost),
        (asyncssh.DisconnectError, _disconnect),
        (asyncssh.Error, _lost),
        (socket.gaierror, _name),
        (ConnectionRefusedError, _refused),
        (TimeoutError, _timeout),
        (ConnectionError, _lost),
        (OSError, _network),
        (ValueError, _config),
    ]
    for kind, explain in table:
        if isinstance(error, kind):
            return explain(error, attempt)
    return HostUnreachable(attempt.host_name, f"SSH failed: {type(error).__name__}: {error}")


def _name(error: BaseException, attempt: Attempt) -> HostError:
    return HostUnreachable(
        attempt.host_name,
        f"the name {attempt.settings.host} does not resolve",
        cure="correct ssh in its definition, or add the name to DNS, /etc/hosts or ssh_config",
    )


def _refused(error: BaseException, attempt: Attempt) -> HostError:
    return HostUnreachable(
        attempt.host_name,
        f"{attempt.place} refuses connections",
        cure="start sshd there, or correct the port in ssh or ssh_config",
    )


def _timeout(error: BaseException, attempt: Attempt) -> HostError:
    return HostUnreachable(
        attempt.host_name,
        f"{attempt.place} did not answer within {attempt.timeout_s:g} s, while {attempt.stage}",
        cure="see that it is on, and that no firewall drops what is sent to it",
    )


def _network(error: BaseException, attempt: Attempt) -> HostError:
    number = getattr(error, "errno", None)
    if number in NO_ROUTE:
        problem = f"there is no route to {attempt.place}"
        cure = "see that it is on, and how this machine reaches its network"
    else:
        problem = f"{attempt.place} cannot be reached: {_words(error)}"
        cure = "see the log of sshd there, and that it is reached without a hindrance"
    return HostUnreachable(attempt.host_name, problem, cure=cure)


def _lost(error: BaseException, attempt: Attempt) -> HostError:
    return HostUnreachable(
        attempt.host_name,
        f"{attempt.place} closed the connection while {attempt.stage}: {_words(error)}",
        cure="see the log of sshd there; many logins at once are refused by its MaxStartups",
    )


def _disconnect(error: BaseException, attempt: Attempt) -> HostError:
    if "authentication failures" in str(error):
        return LoginRefused(
            attempt.host_name,
            f"it gave up on user {attempt.settings.user}, after too many keys were tried",
            cure="name the right one with IdentityFile and IdentitiesOnly yes in ssh_config",
        )
    return _lost(error, attempt)


def _channel(error: BaseException, attempt: Attempt) -> HostError:
    if attempt.settings.jump:
        problem = f"{attempt.settings.jump} cannot reach {attempt.place}: {_words(error)}"
        return HostUnreachable(attempt.host_name, problem, cure="see ProxyJump in ssh_config")
    return HostUnreachable(
        attempt.host_name,
        f"it opens no further channel: {_words(error)}",
        cure="see MaxSessions in its sshd_config",
    )


def _key_exchange(error: BaseException, attempt: Attempt) -> HostError:
    if attempt.keys_on_record and "host key" in str(error):
        return _changed(attempt, "it has no key of the type on record")
    return HostUnreachable(
        attempt.host_name,
        f"{attempt.place} and we have no algorithm in common: {_words(error)}",
        cure="see KexAlgorithms, Ciphers and HostKeyAlgorithms, there and in ssh_config",
    )


def _host_key(error: BaseException, attempt: Attempt) -> HostError:
    if "not trusted" not in str(error) or not attempt.key_offered:
        cure = "find out why before you log in; see known_hosts"
        return HostKeyError(attempt.host_name, f"its host key is refused: {error}", cure=cure)
    if attempt.keys_on_record:
        return _changed(attempt, f"it now offers {attempt.key_offered}")
    settings = attempt.settings
    port = "" if settings.port == 22 else f"-p {settings.port} "
    record = _quoted(settings.known_hosts_files[0]) if settings.known_hosts_files else "known_hosts"
    return HostKeyError(
        attempt.host_name,
        f"its host key is unknown; it offers {attempt.key_offered}",
        cure="compare that with ssh-keygen -lf /etc/ssh/ssh_host_*_key.pub there, then "
        f"ssh-keyscan -H {port}{_quoted(settings.host)} >> {record}",
    )


def _changed(attempt: Attempt, what: str) -> HostError:
    files = attempt.settings.known_hosts_files
    record = f" -f {_quoted(files[0])}" if files else ""
    return HostKeyError(
        attempt.host_name,
        f"its host key has changed: {what}, and {attempt.settings.known_as} is on record with "
        "another; it was installed anew, or somebody is in between",
        cure="find out which; if it was installed anew, "
        f"ssh-keygen -R {_quoted(attempt.settings.known_as)}{record}",
    )


def _login(error: BaseException, attempt: Attempt) -> HostError:
    settings = attempt.settings
    tried = [str(path) for path in settings.key_files if str(path) not in attempt.keys_encrypted]
    if attempt.keys_encrypted:
        return PassphraseNeeded(
            attempt.host_name,
            f"it does not let {settings.user} in, and {' and '.join(attempt.keys_encrypted)} could "
            "not be tried: encrypted, and held by no agent",
            cure=f"ssh-add {_quoted(attempt.keys_encrypted[0])}"
            if settings.agent
            else f'eval "$(ssh-agent)" && ssh-add {_quoted(attempt.keys_encrypted[0])}',
        )
    if settings.agent:
        tried.append("the keys of the agent")
    accepts = f"; it accepts {', '.join(attempt.methods)}" if attempt.methods else ""
    return LoginRefused(
        attempt.host_name,
        f"it does not let {settings.user} in; tried: {', '.join(tried) or 'no key, having none'}"
        f"{accepts}",
        cure=f"ssh-copy-id {_quoted(str(settings.target))}, or correct the user in ssh",
    )


def _key_file(error: BaseException, attempt: Attempt) -> HostError:
    names = ", ".join(str(path) for path in attempt.settings.key_files)
    return LoginRefused(
        attempt.host_name,
        f"a private key cannot be read ({names}): {error}",
        cure="see IdentityFile",
    )


def _config(error: BaseException, attempt: Attempt) -> VagothError:
    return ConfigError(str(attempt.settings.config or "~/.ssh/config"), None, str(error))


def _words(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    reason: asyncssh.Error | BaseException = error
    return str(getattr(reason, "reason", "")) or str(error) or type(error).__name__


def _quoted(text: object) -> str:
    return shlex.quote(str(text))
