"""``vagoth list``: how long a person waits for a table."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from benchmarks.catalogue import Entrants
from benchmarks.programs import command
from benchmarks.setting import Setting, full_store
from tests.lab import Lab

IMPORTS = {
    "python": "pass",
    "import rich.table": "import rich.table",
    "import of five": "import asyncio, rich.table, rich.console, msgspec, tinydb",
}


@asynccontextmanager
async def entrants(setting: Setting) -> AsyncIterator[Entrants]:
    """``vagoth list`` of a full store, virsh asking one host, and what Python alone takes."""
    env, nodes = setting.env, setting.options.nodes
    store = setting.folder / "full.json"
    await full_store(store, nodes)
    listed = [*setting.vagoth, "--store", str(store), "list"]
    contenders = [command("vagoth list", listed, env=env, shown="vagoth list", is_ours=True)]
    left_out = {}
    if isinstance(setting.lab, Lab):
        uri = setting.virsh_uris(setting.lab)[0]
        shown = "virsh -c qemu+ssh://HOST/system list --all"
        argv = ["virsh", "-c", uri, "list", "--all"]
        contenders.append(command("virsh list", argv, env=env, shown=shown))
    else:
        left_out["virsh list"] = setting.lab
    contenders += [
        command(name, [sys.executable, "-c", code], env=env, shown=f'python -c "{code}"')
        for name, code in IMPORTS.items()
    ]
    yield Entrants(contenders, left_out, f"{nodes} nodes")
