"""Where to log in, as a host's definition says it."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from typing import Self

from vagoth.errors import InvalidInput

# Names may be put into an ssh_config's ProxyCommand: nothing in them may mean something there.
_TARGET = re.compile(
    r"(?:(?P<user>\w[\w.@+-]*)@)?"
    r"(?:\[(?P<bracketed>[0-9A-Fa-f:.]+(?:%\w+)?)\]|(?P<host>\w[\w.+-]*))"
    r"(?::(?P<port>\d{1,5}))?"
)
EXPECTED = "user@host:port, [address]:port, or an alias in ssh_config"


@dataclass(frozen=True)
class SSHTarget:
    """A host to log in to. What is left out, ssh_config and its defaults say."""

    host: str
    user: str | None = None
    port: int | None = None

    @classmethod
    def parse(cls, text: str, *, field: str = "ssh") -> Self:
        """Read ``user@host:port``, ``[::1]:22`` or an alias.

        :raises InvalidInput: it is malformed; names ``field``
        """
        user, _, rest = text.rpartition("@")
        if _is_ipv6(rest):
            text = f"{user}@[{rest}]" if user else f"[{rest}]"
        match = _TARGET.fullmatch(text)
        if match is None:
            raise InvalidInput(field, text, EXPECTED)
        if match["bracketed"] and not _is_ipv6(match["bracketed"]):
            raise InvalidInput(field, text, f"{EXPECTED}; in brackets stands an IPv6 address")
        port = int(match["port"]) if match["port"] else None
        if port is not None and not 1 <= port <= 65535:
            raise InvalidInput(field, text, f"{EXPECTED}, with a port from 1 to 65535")
        return cls(match["bracketed"] or match["host"], match["user"], port)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        user = f"{self.user}@" if self.user else ""
        return f"{user}{host}" if self.port is None else f"{user}{host}:{self.port}"


def _is_ipv6(text: str) -> bool:
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True
