"""Simulated hosts keep the promises of drivers, and those of their own."""

from __future__ import annotations

import asyncio
import itertools
import uuid as uuidlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.drivers.conformance import Act, ActOn, DriverConformance, Outside, SpecFactory
from vagoth.definition import VMDefinition
from vagoth.drivers.base import Driver, DriverSettings, GuestSpec, Host, Session
from vagoth.drivers.sim import SimDriver, SimHost


def make_spec(
    *, name: str | None = None, memory: int | str | None = None, uuid: str | None = None
) -> GuestSpec:
    uuid = uuid or str(uuidlib.uuid4())
    name = name or f"guest-{next(_numbers)}"
    return GuestSpec(uuid, name, f"node-{name}", VMDefinition(memory=memory or "64MiB"))


_numbers = itertools.count()


@pytest.fixture
async def driver(tmp_path: Path) -> AsyncIterator[SimDriver]:
    driver = SimDriver(DriverSettings(tmp_path, connect_timeout_s=1.0, call_timeout_s=1.0))
    yield driver
    await driver.close()


@pytest.fixture
def host() -> Host:
    return Host("h1", "hv1", {"driver": "sim"})


@pytest.fixture
async def session(driver: Driver, host: Host) -> AsyncIterator[Session]:
    async with await driver.open(host) as session:
        yield session


@pytest.fixture
def world(driver: SimDriver) -> SimHost:
    return driver.world("h1")


class TestSim(DriverConformance):
    """The promises of all drivers."""

    @pytest.fixture
    async def other(self, driver: Driver) -> AsyncIterator[Session]:
        async with await driver.open(Host("h2", "hv2")) as session:
            yield session

    @pytest.fixture
    def spec(self) -> SpecFactory:
        return make_spec

    @pytest.fixture
    def outside(self, world: SimHost) -> Outside:
        class Somebody:
            async def destroy(self, uuid: str) -> None:
                await asyncio.to_thread(world.destroy, uuid)

        return Somebody()

    @pytest.fixture
    def dropped(self, world: SimHost) -> Act:
        async def drop() -> None:
            await asyncio.to_thread(world.drop)

        return drop

    @pytest.fixture
    def deafened(self, world: SimHost) -> ActOn:
        async def deafen(uuid: str) -> None:
            await asyncio.to_thread(world.deafen)

        return deafen
