"""Calls to libvirt: on threads, four at once, never on the loop's, none waited for in vain."""

from __future__ import annotations

import asyncio
import gc
import importlib
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.drivers.test_libvirt import TEST_HOST, make_spec
from vagoth.drivers.base import DriverSettings
from vagoth.drivers.libvirt import LibvirtDriver
from vagoth.drivers.libvirt.errors import Meaning, meaning_of, translate
from vagoth.drivers.libvirt.workers import AT_ONCE, Abandoned, Call, Workers
from vagoth.errors import (
    GuestNotFound,
    HostUnreachable,
    HypervisorUnavailable,
    InvalidInput,
    NotSupported,
    OutcomeUnknown,
    VagothError,
)

libvirt = pytest.importorskip("libvirt")

pytestmark = pytest.mark.libvirt


class Late(Exception):
    pass


@pytest.fixture
def overdue() -> list[str]:
    return []


@pytest.fixture
async def workers(overdue: list[str]) -> Workers:
    return Workers(lambda call, timeout_s: overdue.append(call.what))


# --- workers --------------------------------------------------------------------------


async def test_four_calls_run_at_once_and_no_more(workers: Workers) -> None:
    running, most, lock = 0, 0, threading.Lock()

    def work() -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.02)
        with lock:
            running -= 1

    calls = [workers.submit(Call(str(n)), work, timeout_s=5) for n in range(20)]
    await asyncio.gather(*calls)
    assert most == AT_ONCE == 4
    assert workers.is_idle


async def test_a_cancelled_call_keeps_its_place_until_its_thread_is_done(workers: Workers) -> None:
    """Else a host would be given a fifth call while four hang."""
    go_on = threading.Event()
    hanging = [workers.submit(Call("hangs"), go_on.wait, timeout_s=5) for _ in range(4)]
    for future in hanging:
        future.cancel()
    fifth = workers.submit(Call("fifth"), lambda: "done", timeout_s=5)
    await asyncio.sleep(0.05)
    assert not fifth.done()
    go_on.set()
    assert await fifth == "done"


async def test_a_cancelled_call_that_waits_for_its_turn_is_never_made(workers: Workers) -> None:
    go_on, made = threading.Event(), []
    hanging = [workers.submit(Call("hangs"), go_on.wait, timeout_s=5) for _ in range(4)]
    fifth = workers.submit(Call("fifth"), lambda: made.append(1), timeout_s=5)
    fifth.cancel()
    go_on.set()
    await asyncio.gather(*hanging)
    await workers.idle()
    assert made == []


async def test_time_counts_from_when_a_call_begins(workers: Workers, overdue: list[str]) -> None:
    calls = [
        workers.submit(Call(str(n)), lambda: time.sleep(0.05), timeout_s=0.15) for n in range(20)
    ]
    await asyncio.gather(*calls)
    assert overdue == []


async def test_a_call_that_hangs_is_reported_and_all_others_fail(
    workers: Workers, overdue: list[str]
) -> None:
    go_on = threading.Event()
    hangs = workers.submit(Call("hangs"), go_on.wait, timeout_s=0.05)
    await asyncio.sleep(0.15)
    assert overdue == ["hangs"]
    workers.fail(lambda call: Late(call.what))
    with pytest.raises(Late, match="hangs"):
        await hangs
    with pytest.raises(Late, match="later"):
        await workers.submit(Call("later"), lambda: None, timeout_s=1)
    assert not workers.is_idle
    go_on.set()
    await workers.idle()


async def test_a_call_given_up_before_it_changes_anything_changes_nothing(
    workers: Workers,
) -> None:
    """Given up means reported as not begun: its thread must not begin it afterwards."""
    reached, go_on, changed = threading.Event(), threading.Event(), []

    def work(call: Call) -> None:
        reached.set()
        go_on.wait()
        call.about_to_change()
        changed.append(1)

    call = Call("a change")
    future = workers.submit(call, lambda: work(call), timeout_s=5)
    await asyncio.to_thread(reached.wait)
    assert call.abandon() is False
    go_on.set()
    with pytest.raises(Abandoned):
        await future
    assert changed == []


async def test_a_held_place_counts(workers: Workers) -> None:
    give_back = [await workers.hold() for _ in range(4)]
    waits = workers.submit(Call("waits"), lambda: "done", timeout_s=1)
    await asyncio.sleep(0.02)
    assert not waits.done()
    for give in give_back:
        give()
    assert await waits == "done"


# --- never on the loop's thread -----------------------------------------------------------


@dataclass
class Watched:
    """The functions of libvirt's that were called on the loop's thread, and on others."""

    on_the_loop: set[str] = field(default_factory=set)
    elsewhere: set[str] = field(default_factory=set)


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Watched:
    module: Any = importlib.import_module("libvirtmod")
    here, seen = threading.get_ident(), Watched()

    def watching(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def watch(*args: Any) -> Any:
            (seen.on_the_loop if threading.get_ident() == here else seen.elsewhere).add(name)
            return function(*args)

        return watch

    for name in dir(module):
        function = getattr(module, name)
        if name.startswith("vir") and callable(function):
            monkeypatch.setattr(module, name, watching(name, function))
    return seen


async def test_libvirt_is_never_called_on_the_loop(watched: Watched, tmp_path: Path) -> None:
    """Not even to release an object: that call would wait for the loop it blocks."""
    spec, missing = make_spec(), make_spec().uuid
    driver = LibvirtDriver(DriverSettings(tmp_path))
    async with await driver.open(TEST_HOST) as session, session.events() as events:
        await session.facts()
        await session.define(spec)
        await session.start(spec.uuid)
        await asyncio.gather(*(session.guests() for _ in range(10)))
        for verb in (session.start, session.reboot, session.pause):
            with pytest.raises(GuestNotFound):
                await verb(missing)
        with pytest.raises(VagothError):
            await session.undefine(spec.uuid)
        await session.shutdown(spec.uuid, grace_s=5)
        await session.undefine(spec.uuid)
        await anext(events)
        looking = asyncio.ensure_future(session.guests())
        await asyncio.sleep(0)
        looking.cancel()
    await driver.check(TEST_HOST)
    with pytest.raises(HypervisorUnavailable):
        await driver.open(with_uri("test:///nowhere.xml"))
    gc.collect()
    assert watched.on_the_loop == set()
    assert {"virConnectClose", "virDomainFree", "virDomainCreate"} <= watched.elsewhere


def with_uri(uri: str) -> Any:
    return type(TEST_HOST)("h2", "there", {"driver": "libvirt", "uri": uri})


# --- what libvirt says ------------------------------------------------------------------


def said(code: int, domain: int, message: str = "words") -> Any:
    error = libvirt.libvirtError(message)
    error.err = (code, domain, message, 2, None, None, None, 0, 0)
    return error


def codes() -> list[int]:
    return sorted(
        value
        for name, value in vars(libvirt).items()
        if name.startswith("VIR_ERR_") and isinstance(value, int)
    )


@pytest.mark.parametrize("was_sent", [False, True])
def test_no_error_of_libvirt_passes_as_it_is(was_sent: bool) -> None:
    for code in codes():
        for domain in (libvirt.VIR_FROM_QEMU, libvirt.VIR_FROM_RPC, libvirt.VIR_FROM_REMOTE):
            error = translate(said(code, domain), "hv1", what="it", was_sent=was_sent, uuid="u")
            assert isinstance(error, VagothError)
            assert "hv1" in error.message


@pytest.mark.parametrize(
    ("code", "domain", "was_sent", "expected"),
    [
        ("VIR_ERR_SYSTEM_ERROR", "VIR_FROM_RPC", False, HostUnreachable),
        ("VIR_ERR_SYSTEM_ERROR", "VIR_FROM_RPC", True, OutcomeUnknown),
        ("VIR_ERR_INTERNAL_ERROR", "VIR_FROM_RPC", True, OutcomeUnknown),
        ("VIR_ERR_RPC", "VIR_FROM_NONE", True, OutcomeUnknown),
        ("VIR_ERR_NO_DOMAIN", "VIR_FROM_QEMU", False, GuestNotFound),
        ("VIR_ERR_AUTH_UNAVAILABLE", "VIR_FROM_POLKIT", False, HypervisorUnavailable),
        ("VIR_ERR_ACCESS_DENIED", "VIR_FROM_ACCESS", True, HypervisorUnavailable),
        ("VIR_ERR_NO_SUPPORT", "VIR_FROM_TEST", True, NotSupported),
        ("VIR_ERR_CONFIG_UNSUPPORTED", "VIR_FROM_QEMU", True, NotSupported),
        ("VIR_ERR_XML_ERROR", "VIR_FROM_DOMAIN", True, InvalidInput),
    ],
)
def test_what_libvirt_says_is_told_in_our_words(
    code: str, domain: str, was_sent: bool, expected: type[VagothError]
) -> None:
    error = said(getattr(libvirt, code), getattr(libvirt, domain), "two\n  lines")
    told = translate(error, "hv1", what="it", was_sent=was_sent, uuid="u", xml="<domain/>")
    assert type(told) is expected
    if expected is not GuestNotFound:
        assert "two lines" in told.message


def test_an_internal_error_of_the_hypervisor_is_no_lost_connection() -> None:
    error = said(libvirt.VIR_ERR_INTERNAL_ERROR, libvirt.VIR_FROM_QEMU)
    assert meaning_of(error) is Meaning.SAID_NO


async def test_xml_that_the_host_refuses_is_the_users(tmp_path: Path) -> None:
    driver, spec = LibvirtDriver(DriverSettings(tmp_path)), make_spec()
    definition = type(spec.definition)(
        memory=64, kind=spec.definition.kind, xml="<domain><x/></domain>"
    )
    async with await driver.open(TEST_HOST) as session:
        with pytest.raises(InvalidInput) as refused:
            await session.define(type(spec)(spec.uuid, spec.name, spec.node_id, definition))
        assert await session.guest(spec.uuid) is None
    assert refused.value.field == "xml"
    assert "extra content: x" in refused.value.message


@pytest.mark.parametrize(
    ("definition", "field"),
    [
        ({"uri": "qemu+ssh://hv1/system"}, "uri"),
        ({"uri": "qemu://hv1/system"}, "uri"),
        ({"uri": "/system"}, "uri"),
        ({"uri": "qemu:///system?socket=/x"}, "uri"),
        ({"ssh": "-oProxyCommand=x"}, "ssh"),
        ({"socket": "libvirt-sock"}, "socket"),
        ({"colour": "red"}, "colour"),
    ],
)
async def test_a_malformed_definition_is_refused(
    tmp_path: Path, definition: dict[str, str], field: str
) -> None:
    host = type(TEST_HOST)("h", "hv1", {"driver": "libvirt", **definition})
    with pytest.raises(InvalidInput) as refused:
        await LibvirtDriver(DriverSettings(tmp_path)).open(host)
    assert refused.value.field == field


@pytest.mark.parametrize(
    ("definition", "words"),
    [
        ({"uri": "nonesuch:///x", "socket": "/run/nowhere"}, "nowhere"),
        ({"uri": "test:///nowhere.xml"}, "nowhere.xml"),
        ({"uri": "qemu:///system", "socket": "/run/nowhere"}, "libvirtd"),
    ],
)
async def test_a_hypervisor_that_is_not_there_is_named_with_a_cure(
    tmp_path: Path, definition: dict[str, str], words: str
) -> None:
    host = type(TEST_HOST)("h", "hv1", {"driver": "libvirt", **definition})
    driver = LibvirtDriver(DriverSettings(tmp_path))
    with pytest.raises(HypervisorUnavailable, match=words) as refused:
        await driver.open(host)
    assert refused.value.cure
    checks = await driver.check(host)
    assert [(check.name, check.ok) for check in checks] == [("hypervisor", False), ("kinds", None)]
    assert checks[0].cure == refused.value.cure


# --- its process --------------------------------------------------------------------------


def run(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-X", "dev", "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        timeout=15,
    )


def test_importing_the_driver_imports_nothing_heavy() -> None:
    done = run(
        """
        import sys, vagoth.drivers.libvirt
        print(sorted({"libvirt", "asyncssh", "lxml"} & set(sys.modules)))
        """
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_a_missing_libvirt_is_named_with_what_installs_it() -> None:
    done = run(
        """
        import asyncio, pathlib, sys
        sys.modules["libvirt"] = None
        from vagoth.drivers.base import DriverSettings, Host
        from vagoth.drivers.libvirt import LibvirtDriver
        from vagoth.errors import MissingExtra
        driver = LibvirtDriver(DriverSettings(pathlib.Path(".")))
        try:
            asyncio.run(driver.open(Host("h", "h", {"uri": "test:///default"})))
        except MissingExtra as error:
            print(error.cure)
        """
    )
    assert (done.stdout, done.stderr) == ("pip install 'vagoth[libvirt]'\n", "")


@pytest.mark.parametrize("ending", ["pass", "sys.exit(0)", "await session.close()"])
def test_a_process_ends_though_it_has_sessions(ending: str) -> None:
    """Nothing waits for libvirt's threads, nor do they speak as the interpreter goes."""
    done = run(
        f"""
        import asyncio, pathlib, sys
        from vagoth.drivers.base import DriverSettings, Host
        from vagoth.drivers.libvirt import LibvirtDriver
        async def main():
            driver = LibvirtDriver(DriverSettings(pathlib.Path(".")))
            session = await driver.open(Host("h", "h", {{"uri": "test:///default"}}))
            async with session.events():
                await session.guests()
            print("seen", flush=True)
            {ending}
        asyncio.run(main())
        """
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "seen\n", "")
