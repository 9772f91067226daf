"""A look at all hosts: as a command, and over connections that are open already."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from benchmarks.catalogue import Entrants
from benchmarks.programs import command, kept_open
from benchmarks.setting import Setting, lab_config
from benchmarks.timing import Contender
from tests.lab import Lab


@asynccontextmanager
async def entrants(setting: Setting) -> AsyncIterator[Entrants]:
    """``vagoth poll`` and the SDK's, virsh over ssh for each host, and the floor."""
    if not isinstance(setting.lab, Lab):
        names = ("vagoth poll", "SDK poll", "virsh in turn", "virsh at once", "libvirt in threads")
        yield Entrants([], dict.fromkeys(names, setting.lab))
        return
    lab, env = setting.lab, setting.env
    config = str(await lab_config(setting, lab))
    uris = setting.virsh_uris(lab)
    async with AsyncExitStack() as stack:
        sdk = await stack.enter_async_context(
            kept_open(
                "SDK poll",
                "benchmarks.warm_vagoth",
                [config],
                env=env,
                shown="await cluster.poll()   # sessions open",
                is_ours=True,
            )
        )
        contenders = [
            command(
                "vagoth poll",
                [*setting.vagoth, "--config", config, "poll"],
                env=env,
                shown="vagoth poll",
                is_ours=True,
            ),
            sdk,
            _virsh("virsh in turn", uris, 1, setting),
            _virsh("virsh at once", uris, len(uris), setting),
        ]
        left_out = {}
        try:
            import libvirt  # noqa: F401
        except ImportError:
            left_out["libvirt in threads"] = "libvirt-python is not installed"
        else:
            contenders.append(
                await stack.enter_async_context(
                    kept_open(
                        "libvirt in threads",
                        "benchmarks.warm_libvirt",
                        uris,
                        env=env,
                        shown="conn.getAllDomainStats(STATE)   # a thread each, connections open",
                    )
                )
            )
        about = f"{len(uris)} hosts with {setting.options.guests} guests each"
        yield Entrants(contenders, left_out, about)


def _virsh(name: str, uris: list[str], at_once: int, setting: Setting) -> Contender:
    asked = ["virsh", "-c", "{}", "list", "--all"]
    return command(
        name,
        ["xargs", "-P", str(at_once), "-I{}", *asked],
        env=setting.env,
        stdin="".join(f"{uri}\n" for uri in uris),
        shown=f"xargs -P {at_once} -I{{}} virsh -c qemu+ssh://{{}}/system list --all <hosts",
    )
