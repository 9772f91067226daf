"""vagoth.toml: what may stand in it, where it is found, and what holds without it."""

from __future__ import annotations

import hashlib
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import msgspec

from vagoth.definition import convert
from vagoth.errors import ConfigError, InvalidInput

Seconds = Annotated[float, msgspec.Meta(gt=0, le=86400)]


class StoreSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[store]``: where nodes are kept; relative to the folder of vagoth.toml."""

    path: str | None = None


class SSHSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[ssh]``: another ssh_config or known_hosts than the user's own."""

    config: str | None = None
    known_hosts: str | None = None


class HostsSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[hosts]``: how long a host may take, and how many jobs it is given at once."""

    connect_timeout_s: Seconds = 10.0
    call_timeout_s: Seconds = 30.0
    jobs_per_host: Annotated[int, msgspec.Meta(ge=1, le=64)] = 4


class JobsSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[jobs]``: ``shutdown_grace_s`` is how long a guest may take to power off when asked."""

    shutdown_grace_s: Seconds = 120.0


class MonitorSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``[monitor]``: a full look at each host every so often, whatever events say."""

    interval_s: Seconds = 60.0


class AllocatorSection(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename={"reference": "class"}
):
    """``[allocator]``: ``class = "module:Class"`` to replace it; else how far hosts may be filled.

    ``memory`` and ``vcpus`` are factors of what a host has.
    """

    reference: str | None = None
    memory: Annotated[float, msgspec.Meta(gt=0, le=100)] = 1.0
    vcpus: Annotated[float, msgspec.Meta(gt=0, le=1000)] = 8.0


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole of vagoth.toml. ``nodes`` and ``drivers`` name classes as ``module:Class``."""

    store: StoreSection = StoreSection()
    ssh: SSHSection = SSHSection()
    hosts: HostsSection = HostsSection()
    jobs: JobsSection = JobsSection()
    monitor: MonitorSection = MonitorSection()
    allocator: AllocatorSection = AllocatorSection()
    nodes: Mapping[str, str] = {}
    drivers: Mapping[str, str] = {}


class Config(msgspec.Struct, frozen=True):
    """Settings, and the file they came from if there was one."""

    settings: Settings
    path: Path | None
    store: Path
    sim: int | None = None

    @property
    def folder(self) -> Path | None:
        """The folder of vagoth.toml: relative paths, and the user's modules, start there."""
        return self.path.parent if self.path is not None else None

    @property
    def state_dir(self) -> Path:
        """Where this user's process may keep what belongs to this store and is no part of it."""
        import platformdirs

        digest = hashlib.sha256(str(self.store).encode()).hexdigest()[:16]
        return platformdirs.user_state_path("vagoth") / "stores" / digest

    def file(self, name: str | None) -> Path | None:
        """A path from the configuration, made absolute."""
        if name is None:
            return None
        return (self.folder or Path.cwd()) / Path(name).expanduser()


def find_config() -> Path | None:
    """``$VAGOTH_CONFIG``, else ``./vagoth.toml``, else the user's own, else none."""
    if named := os.environ.get("VAGOTH_CONFIG"):
        return Path(named)
    if (here := Path("vagoth.toml")).is_file():
        return here.absolute()
    import platformdirs

    own = platformdirs.user_config_path("vagoth") / "vagoth.toml"
    return own if own.is_file() else None


def load_config(
    path: Path | str | None = None, *, store: Path | str | None = None, sim: int | None = None
) -> Config:
    """Read the configuration.

    :param path: the file; without it :func:`find_config` looks for one
    :param store: the store, whatever the file says
    :param sim: simulated hosts to be there; they have a store of their own unless one is named
    :raises ConfigError: the file cannot be read, is no TOML, or holds what it may not; with line
    """
    if sim is not None and not 1 <= sim <= 1000:
        raise InvalidInput("--sim", sim, "a number of simulated hosts from 1 to 1000")
    found = Path(path).expanduser().absolute() if path is not None else find_config()
    settings = _read(found) if found is not None else Settings()
    if store is not None:
        kept = Path(store).expanduser().absolute()
    elif sim is not None:
        kept = _data_path() / f"sim-{sim}.json"
    elif settings.store.path is not None and found is not None:
        kept = (found.parent / Path(settings.store.path).expanduser()).absolute()
    else:
        kept = _data_path() / "store.json"
    return Config(settings, found, kept, sim)


def _data_path() -> Path:
    import platformdirs

    return platformdirs.user_data_path("vagoth")


def _read(path: Path) -> Settings:
    try:
        text = path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise ConfigError(str(path), None, f"it is not UTF-8: {error.reason}") from None
    except OSError as error:
        raise ConfigError(str(path), None, f"it cannot be read: {error.strerror}") from None
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        match = re.search(r"\(at line (\d+)", str(error))
        line: int | None = int(match[1]) if match else text.count("\n") + 1
        problem = re.sub(r" \(at .*\)$", "", str(error))
        raise ConfigError(str(path), line, f"not TOML: {problem}") from None
    try:
        settings = convert(data, Settings)
    except InvalidInput as error:
        line = _line_of(text, error.field)
        raise ConfigError(str(path), line, error.message, cure=error.cure) from None
    # A file that is missing here is nobody's fault but ours: no host must be blamed for it.
    for field, name in (("config", settings.ssh.config), ("known_hosts", settings.ssh.known_hosts)):
        if name is not None and not (path.parent / Path(name).expanduser()).is_file():
            line = _line_of(text, f"ssh.{field}")
            raise ConfigError(str(path), line, f"ssh.{field}: there is no file {name}")
    return settings


def _line_of(text: str, field: str) -> int | None:
    """The line on which a dotted field stands; the line of its section if it does not itself."""
    *sections, _key = field.split(".")
    section, found = "", None
    for number, line in enumerate(text.splitlines(), 1):
        if header := re.match(r"\s*\[\s*([^\]]+?)\s*\]", line):
            section = header[1].replace('"', "")
            if section == field or (section == ".".join(sections) and found is None):
                found = number
        elif assignment := re.match(r"\s*\"?([\w.-]+)\"?\s*=", line):
            name = ".".join(part for part in (section, assignment[1]) if part)
            if name == field:
                return number
            if field.startswith(name + "."):
                found = number
    return found
