"""What ssh_config and known_hosts say of a host. All of it reads files: not for the loop."""

from __future__ import annotations

import logging
import os
import re
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vagoth.errors import ConfigError
from vagoth.ssh.target import SSHTarget

if TYPE_CHECKING:
    import asyncssh

log = logging.getLogger(__name__)

DEFAULT_CONFIG = Path("~/.ssh/config")
DEFAULT_KEYS = ("id_ed25519_sk", "id_ecdsa_sk", "id_ed25519", "id_ecdsa", "id_rsa")
USER_KNOWN_HOSTS = ("~/.ssh/known_hosts", "~/.ssh/known_hosts2")
GLOBAL_KNOWN_HOSTS = ("/etc/ssh/ssh_known_hosts", "/etc/ssh/ssh_known_hosts2")

# asyncssh reads past these, and nothing that we do would be different if it did not.
_WITHOUT_EFFECT = frozenset(
    """
    addkeystoagent batchmode checkhostip clearallforwardings connectionattempts controlmaster
    controlpath controlpersist dynamicforward escapechar exitonforwardfailure fingerprinthash
    forkafterauthentication forwardx11 forwardx11timeout gatewayports hashknownhosts ignoreunknown
    ipqos localcommand localforward loglevel logverbose numberofpasswordprompts permitlocalcommand
    remoteforward sessiontype stdinnull streamlocalbindmask streamlocalbindunlink syslogfacility
    tunnel tunneldevice updatehostkeys usekeychain visualhostkey xauthlocation
    """.split()  # noqa: SIM905 - a list of forty literals would fill the page
)
_reported: set[tuple[Path, str]] = set()


@dataclass(frozen=True)
class Settings:
    """A target, with all that its aliases and defaults stand for."""

    target: SSHTarget
    host: str
    port: int
    user: str
    config: Path | None
    jump: str | None
    proxy_command: bool
    is_canonicalized: bool
    family: int
    local_host: str | None
    key_files: tuple[Path, ...]
    identities_only: bool
    agent: str | None
    known_hosts_files: tuple[Path, ...]
    host_key_alias: str | None
    has_host_key_types: bool

    @property
    def is_dialled_by_us(self) -> bool:
        """Whether its address is its own: no proxy, and no name that is yet to be rewritten."""
        return not (self.jump or self.proxy_command or self.is_canonicalized)

    @property
    def known_as(self) -> str:
        """How known_hosts calls it."""
        name = self.host_key_alias or self.host
        return name if self.port == 22 else f"[{name}]:{self.port}"


def read_settings(target: SSHTarget, config: Path | None, known_hosts: Path | None) -> Settings:
    """Look a target up in ssh_config.

    :param config: the file to read; by default ``~/.ssh/config``, if there is one
    :param known_hosts: the one file of host keys; by default those that ssh_config names
    :raises ConfigError: asyncssh cannot read ssh_config; says at which line
    """
    import asyncssh

    path = _config_file(config)
    if path is not None:
        _report_unsupported(path)
    try:
        # Keys are left out here: they cost time to load, and may need what is not there.
        options = asyncssh.SSHClientConnectionOptions(
            config=[str(path)] if path else None,
            host=target.host,
            port=target.port if target.port is not None else (),
            username=target.user if target.user is not None else (),
            client_keys=None,
        )
    except (ValueError, OSError) as error:
        raise _config_error(path, error) from error
    read = options.config.get
    agent = read("IdentityAgent") or os.environ.get("SSH_AUTH_SOCK")
    return Settings(
        target=target,
        host=options.host,
        port=options.port,
        user=options.username,
        config=path,
        jump=options.tunnel if isinstance(options.tunnel, str) else None,
        proxy_command=bool(options.proxy_command),
        is_canonicalized=bool(options.canonicalize_hostname) or options.config.has_match_final(),
        family=options.family or socket.AF_UNSPEC,
        local_host=options.local_addr[0] if options.local_addr else None,
        key_files=_key_files(read("IdentityFile")),
        identities_only=bool(read("IdentitiesOnly")),
        agent=str(agent) if agent and agent != "none" else None,
        known_hosts_files=(known_hosts,) if known_hosts else _known_hosts_files(read),
        host_key_alias=options.host_key_alias,
        has_host_key_types=read("HostKeyAlgorithms") is not None,
    )


def read_known_hosts(settings: Settings) -> asyncssh.SSHKnownHosts:
    """All host keys on record. Never nothing, which would tell asyncssh to check none.

    :raises ConfigError: a file of them is malformed
    """
    import asyncssh

    known = asyncssh.SSHKnownHosts()
    for path in settings.known_hosts_files:
        try:
            known.load(path.read_text(errors="replace"))
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, ValueError) as error:
            raise ConfigError(str(path), None, str(error)) from error
    return known


def _config_file(config: Path | None) -> Path | None:
    if config is not None:
        if not config.expanduser().is_file():
            raise ConfigError(str(config), None, "there is no such file", cure="see [ssh] config")
        return config.expanduser()
    default = DEFAULT_CONFIG.expanduser()
    return default if os.access(default, os.R_OK) else None


def _config_error(path: Path | None, error: Exception) -> ConfigError:
    # asyncssh: "/home/me/.ssh/config line 3: Invalid Port value"
    match = re.fullmatch(r"(?P<path>.*) line (?P<line>\d+): (?P<problem>.*)", str(error))
    if match:
        return ConfigError(match["path"], int(match["line"]), match["problem"])
    return ConfigError(str(path or DEFAULT_CONFIG), None, str(error))


def _key_files(configured: Any) -> tuple[Path, ...]:
    # As ssh does, and asyncssh does not, we pass over a file that is not there.
    for names in (configured or (), [f"~/.ssh/{name}" for name in DEFAULT_KEYS]):
        paths = [Path(name).expanduser() for name in names]
        if found := tuple(path for path in paths if os.access(path, os.R_OK)):
            return found
    return ()


def _known_hosts_files(read: Any) -> tuple[Path, ...]:
    # asyncssh reads "none" as an empty list, and would then check no host key at all.
    user, shared = read("UserKnownHostsFile"), read("GlobalKnownHostsFile")
    names = [
        *(USER_KNOWN_HOSTS if user is None else user),
        *(GLOBAL_KNOWN_HOSTS if shared is None else shared),
    ]
    return tuple(Path(name).expanduser() for name in names)


def _report_unsupported(path: Path) -> None:
    for directive in unsupported(path.read_text(errors="replace")):
        if (path, directive) not in _reported:
            _reported.add((path, directive))
            log.warning("%s: %s is not supported, and is passed over", path, directive)


def unsupported(text: str) -> list[str]:
    """Directives of an ssh_config that we pass over and that may have been meant to matter."""
    from asyncssh.config import SSHClientConfig

    supported = set(SSHClientConfig._handlers) | _WITHOUT_EFFECT
    found: dict[str, None] = {}
    for line in text.splitlines():
        match = re.match(r"\s*(?P<name>[A-Za-z]\w*)[\s=]*\"?(?P<value>[^\s\"]*)", line)
        if match is None or match["name"].lower() in supported:
            continue
        if match["name"].lower() == "stricthostkeychecking":
            # We are always strict, so to ask for that is to ask for nothing more.
            if match["value"].lower() not in ("yes", "ask"):
                found[f"{match['name']} {match['value']}"] = None
            continue
        found[match["name"]] = None
    return list(found)
