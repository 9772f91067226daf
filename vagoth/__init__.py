"""Vagoth: an agentless cluster controller for libvirt hosts.

>>> import vagoth
>>> async with vagoth.connect() as cluster:
...     web = await cluster.new("web1", definition={"memory": "512MiB"})
...     await web.start()

All public names are here, each imported when it is first used: a command that is refused, or
completed, should not have to wait for what it does not need.
"""

from __future__ import annotations

import importlib
import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from IPython.core.interactiveshell import InteractiveShell

    from vagoth.actions.base import Action, Context, Plan, Step
    from vagoth.allocator import Allocator, Placement, Spread
    from vagoth.cluster import Cluster, ClusterWatch, NewNode, connect
    from vagoth.config import Config
    from vagoth.definition import VMDefinition
    from vagoth.drivers.base import (
        Capability,
        Check,
        Driver,
        DriverSettings,
        Guest,
        GuestEvent,
        GuestSpec,
        Host,
        HostFacts,
        MigrationProgress,
        Power,
        Session,
    )
    from vagoth.errors import (
        Busy,
        Claimed,
        ConfigError,
        Conflict,
        GuestNotFound,
        HostError,
        HostKeyError,
        HostUnreachable,
        HypervisorUnavailable,
        InUse,
        InvalidInput,
        JobFailed,
        LoginRefused,
        MissingExtra,
        NodeNotFound,
        NoHostFits,
        NotSupported,
        OutcomeUnknown,
        PassphraseNeeded,
        RegistryError,
        ShutdownTimeout,
        StaleRevision,
        Taken,
        VagothError,
        WatchGap,
    )
    from vagoth.history import Snapshot
    from vagoth.model import Commit, Holder, Intent, Record, RecordChange, State
    from vagoth.monitor import HostReport, Monitor
    from vagoth.nodes.base import Node, NodeList
    from vagoth.nodes.hypervisor import Hypervisor
    from vagoth.nodes.service import Service
    from vagoth.nodes.vm import VM
    from vagoth.nodes.volume import Volume
    from vagoth.registry.base import Registry, Watch
    from vagoth.scheduler import Job, JobState, Scheduler
    from vagoth.tables import Column, Look, Table
    from vagoth.transaction import Transaction, TransactionFilter
    from vagoth.view import View

# A library's log is its user's to switch on: errors are raised, not printed besides.
logging.getLogger("vagoth").addHandler(logging.NullHandler())

__version__ = "0.1.0.dev0"

__all__ = [
    "VM",
    "Action",
    "Allocator",
    "Busy",
    "Capability",
    "Check",
    "Claimed",
    "Cluster",
    "ClusterWatch",
    "Column",
    "Commit",
    "Config",
    "ConfigError",
    "Conflict",
    "Context",
    "Driver",
    "DriverSettings",
    "Guest",
    "GuestEvent",
    "GuestNotFound",
    "GuestSpec",
    "Holder",
    "Host",
    "HostError",
    "HostFacts",
    "HostKeyError",
    "HostReport",
    "HostUnreachable",
    "Hypervisor",
    "HypervisorUnavailable",
    "InUse",
    "Intent",
    "InvalidInput",
    "Job",
    "JobFailed",
    "JobState",
    "LoginRefused",
    "Look",
    "MigrationProgress",
    "MissingExtra",
    "Monitor",
    "NewNode",
    "NoHostFits",
    "Node",
    "NodeList",
    "NodeNotFound",
    "NotSupported",
    "OutcomeUnknown",
    "PassphraseNeeded",
    "Placement",
    "Plan",
    "Power",
    "Record",
    "RecordChange",
    "Registry",
    "RegistryError",
    "Scheduler",
    "Service",
    "Session",
    "ShutdownTimeout",
    "Snapshot",
    "Spread",
    "StaleRevision",
    "State",
    "Step",
    "Table",
    "Taken",
    "Transaction",
    "TransactionFilter",
    "VMDefinition",
    "VagothError",
    "View",
    "Volume",
    "Watch",
    "WatchGap",
    "__version__",
    "connect",
    "load_ipython_extension",
]

#: Where each name comes from; the same as the imports for type checkers above.
_HOMES = {
    "vagoth.actions.base": (
        "Action",
        "Context",
        "Plan",
        "Step",
    ),
    "vagoth.allocator": (
        "Allocator",
        "Placement",
        "Spread",
    ),
    "vagoth.cluster": (
        "Cluster",
        "ClusterWatch",
        "NewNode",
        "connect",
    ),
    "vagoth.config": ("Config",),
    "vagoth.definition": ("VMDefinition",),
    "vagoth.drivers.base": (
        "Capability",
        "Check",
        "Driver",
        "DriverSettings",
        "Guest",
        "GuestEvent",
        "GuestSpec",
        "Host",
        "HostFacts",
        "MigrationProgress",
        "Power",
        "Session",
    ),
    "vagoth.errors": (
        "Busy",
        "Claimed",
        "ConfigError",
        "Conflict",
        "GuestNotFound",
        "HostError",
        "HostKeyError",
        "HostUnreachable",
        "HypervisorUnavailable",
        "InUse",
        "InvalidInput",
        "JobFailed",
        "LoginRefused",
        "MissingExtra",
        "NoHostFits",
        "NodeNotFound",
        "NotSupported",
        "OutcomeUnknown",
        "PassphraseNeeded",
        "RegistryError",
        "ShutdownTimeout",
        "StaleRevision",
        "Taken",
        "VagothError",
        "WatchGap",
    ),
    "vagoth.history": ("Snapshot",),
    "vagoth.model": (
        "Commit",
        "Holder",
        "Intent",
        "Record",
        "RecordChange",
        "State",
    ),
    "vagoth.monitor": (
        "HostReport",
        "Monitor",
    ),
    "vagoth.nodes.base": (
        "Node",
        "NodeList",
    ),
    "vagoth.nodes.hypervisor": ("Hypervisor",),
    "vagoth.nodes.service": ("Service",),
    "vagoth.nodes.vm": ("VM",),
    "vagoth.nodes.volume": ("Volume",),
    "vagoth.registry.base": (
        "Registry",
        "Watch",
    ),
    "vagoth.scheduler": (
        "Job",
        "JobState",
        "Scheduler",
    ),
    "vagoth.tables": (
        "Column",
        "Look",
        "Table",
    ),
    "vagoth.transaction": (
        "Transaction",
        "TransactionFilter",
    ),
    "vagoth.view": ("View",),
}
_MODULES = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    module = _MODULES.get(name)
    if module is None:
        raise AttributeError(f"module 'vagoth' has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(module), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def load_ipython_extension(ipython: InteractiveShell) -> None:
    """Called by ``%load_ext vagoth``: adds the ``%vagoth`` magic."""
    from vagoth.notebook import load_ipython_extension as load

    load(ipython)
