"""The lab by hand: ``python -m tests.lab up [N] | run N -- COMMAND… | clean``."""

import argparse
import asyncio
import contextlib
import os
import signal
import sys
import time

from tests.lab import runs
from tests.lab.errors import LabError
from tests.lab.lab import Lab


def main() -> int:
    """Parse the command line and do it; the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.lab", description="Real hosts to try on."
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    up = verbs.add_parser("up", help="bring hosts up; take them down at Ctrl-C or end of input")
    up.add_argument("count", type=int, nargs="?", default=3)
    up.add_argument("--prefix", help="the lab's name")
    run = verbs.add_parser("run", help="run a command while hosts are up, told of them by LAB_…")
    run.add_argument("count", type=int)
    run.add_argument("command", nargs="+")
    verbs.add_parser("clean", help="remove what killed runs left behind")
    args = parser.parse_args()
    try:
        if args.verb == "clean":
            sys.stdout.writelines(f"removed {prefix}\n" for prefix in runs.clean())
            return 0
        if args.verb == "up":
            return asyncio.run(_up(args.count, args.prefix))
        return asyncio.run(_run(args.count, args.command))
    except LabError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except KeyboardInterrupt:
        return 130


async def _up(count: int, prefix: str | None) -> int:
    began = time.monotonic()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, stop.set)
    async with Lab(count, prefix=prefix) as lab:
        sys.stdout.write(f"{count} hosts up in {time.monotonic() - began:.1f} s\n")
        for name, value in environment(lab).items():
            sys.stdout.write(f"{name}={value}\n")
        sys.stdout.writelines(
            f"{host.name} {host.ssh}   ssh -F {lab.ssh_config} {host.name}\n" for host in lab.hosts
        )
        sys.stdout.write("Ctrl-C or end of input takes them down.\n")
        sys.stdout.flush()
        # A terminal's or a pipe's end is read; a file or /dev/null as input would end us at once.
        with contextlib.suppress(PermissionError):
            loop.add_reader(0, lambda: None if os.read(0, 4096) else stop.set())
        await stop.wait()
    return 0


async def _run(count: int, command: list[str]) -> int:
    async with Lab(count) as lab:
        child = await asyncio.create_subprocess_exec(
            *command, env={**os.environ, **environment(lab)}
        )
        # A Ctrl-C reaches the command as well, by the terminal: let it end by itself.
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, child.send_signal, number)
        status = await child.wait()
    return status if status >= 0 else 128 - status


def environment(lab: Lab) -> dict[str, str]:
    """What a command run on a lab is told of it."""
    return {
        "LAB_SSH_CONFIG": str(lab.ssh_config),
        "LAB_HOSTS": " ".join(host.name for host in lab.hosts),
        "LAB_KERNEL": str(lab.kernel),
        "LAB_INITRD": str(lab.initrd),
        "LAB_CMDLINE": lab.cmdline,
    }


if __name__ == "__main__":
    sys.exit(main())
