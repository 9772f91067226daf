"""Vagoth to play with: three simulated hosts and some machines, in a store of their own.

At a terminal it opens the shell; elsewhere it shows a short tour of the main verbs. Each run begins
anew, and touches nothing but its own folder.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import platformdirs

from vagoth.cluster import Cluster, connect
from vagoth.config import load_config
from vagoth.errors import VagothError
from vagoth.shell.context import EXIT_INTERRUPTED, Surroundings
from vagoth.shell.line import Options, split
from vagoth.shell.output import Output, OutputClosed, OutputFailed, silence
from vagoth.shell.parser import parse
from vagoth.shell.runner import run

HOSTS = 3

GREETING = (
    "Three simulated hosts and six machines to play with: nothing here is real.",
    "Try  st<Tab>,  list,  migrate web1 hv2,  tree,  help.  Ctrl-D leaves.",
)

TOUR = (
    "list",
    "start db1 --dry-run",
    "start db1",
    "new web4 memory=512MiB vcpus=2 --tag env=prod --key asset:4711",
    "start web4 --on hv3",
    "migrate web1 hv2",
    "pause web2",
    "set web2 --tag env=test memory=1GiB",
    "list web*",
    "shutdown web3 web4",
    "undefine web4",
    "delete web4",
    "rename web3 www3",
    "poll",
    "tree",
    "info web1",
)


def main() -> int:
    """Run the demo; its exit code."""
    output = Output()
    try:
        with _folder() as folder:
            store = folder / "store.json"
            asyncio.run(_furnish(store))
            if sys.stdin.isatty() and sys.stdout.isatty():
                from vagoth.shell.app import run_shell

                options = Options(store=str(store), sim=HOSTS)
                return asyncio.run(run_shell(options, greeting=GREETING))
            return asyncio.run(_tour(store, output))
    except VagothError as error:
        output.error(error)
        return error.exit_code
    except (OutputClosed, OutputFailed) as error:
        silence()
        output.complain(str(error) or "nobody reads any more")
        return 1
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


@contextmanager
def _folder() -> Iterator[Path]:
    """A folder that no other running demo uses, emptied."""
    above = platformdirs.user_state_path("vagoth")
    # A configuration of the user's would name other stores, hosts and classes.
    os.environ["VAGOTH_CONFIG"] = os.devnull
    number = 1
    while True:
        folder = above / ("demo" if number == 1 else f"demo-{number}")
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            number += 1
            continue
        try:
            _empty(folder)
            yield folder
        finally:
            os.close(lock)
        return


def _empty(folder: Path) -> None:
    state = load_config(store=folder / "store.json").state_dir
    shutil.rmtree(state, ignore_errors=True)
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


async def _furnish(store: Path) -> None:
    """Put machines in every state on the hosts."""
    async with (
        connect(store=store, sim=HOSTS) as cluster,
        cluster.transaction(source="demo", reason="something to play with"),
    ):
        for number in range(1, HOSTS + 1):
            await _machine(cluster, f"web{number}", "512MiB", {"env": "prod", "tier": "web"})
            await cluster[f"web{number}"].submit("start", on=f"hv{number}")
        await _machine(cluster, "db1", "2GiB", {"env": "prod", "tier": "db"})
        await cluster["db1"].submit("define", on="hv1")
        await _machine(cluster, "db2", "2GiB", {"env": "test", "tier": "db"})
        await cluster["db2"].submit("start", on="hv2")
        await cluster["db2"].submit("pause")
        await _machine(cluster, "build1", "1GiB", {"env": "test"})
        if sys.stdin.isatty():
            # At a prompt, things that take no time look as if nothing had happened.
            for number in range(1, HOSTS + 1):
                slow = {"boot_s": 0.8, "shutdown_s": 1.5, "migration_s": 3.0}
                await cluster[f"hv{number}"].set(definition=slow)


async def _machine(cluster: Cluster, name: str, memory: str, tags: dict[str, str]) -> None:
    await cluster.new(name, definition={"memory": memory, "vcpus": 1}, tags=tags)


async def _tour(store: Path, output: Output) -> int:
    """Run each command of the tour and show it as it would be typed; 0 if all went well."""
    code = 0
    async with connect(store=store, sim=HOSTS) as cluster:
        for line in TOUR:
            output.write(f"\n$ vagoth {line}\n")
            parsed = parse(split(line))
            result = await run(parsed, cluster, Surroundings())
            await output.show(result)
            code = code or result.code
    return code


if __name__ == "__main__":
    sys.exit(main())
