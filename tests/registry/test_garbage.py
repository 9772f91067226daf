"""Many records are not searched for garbage while their store is open; all else is, afterwards."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.registry.conformance import node
from vagoth.model import Put
from vagoth.registry import garbage
from vagoth.registry.tinydb import TinyDBRegistry


@pytest.fixture(autouse=True)
def _few(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(garbage, "FEW", 10)
    assert not gc.get_freeze_count()
    yield
    assert not gc.get_freeze_count()


async def filled(path: Path, count: int) -> Path:
    async with TinyDBRegistry(path) as registry:
        nodes = [node(f"n{number}", metadata={"x": [number]}) for number in range(count)]
        expect = {each.id: None for each in nodes}
        await registry.commit([Put(each) for each in nodes], expect=expect)
    return path


async def test_many_records_rest_until_the_last_store_is_closed(tmp_path: Path) -> None:
    path = await filled(tmp_path / "store.json", 20)
    async with TinyDBRegistry(path):
        assert gc.get_freeze_count()
        async with TinyDBRegistry(path):
            pass
        assert gc.get_freeze_count()
    assert not gc.get_freeze_count()


async def test_a_few_records_are_no_reason_to(tmp_path: Path) -> None:
    async with TinyDBRegistry(await filled(tmp_path / "store.json", 5)):
        assert not gc.get_freeze_count()


async def test_who_has_frozen_objects_of_his_own_keeps_them_so(tmp_path: Path) -> None:
    path = await filled(tmp_path / "store.json", 20)
    gc.freeze()
    try:
        async with TinyDBRegistry(path):
            pass
        assert gc.get_freeze_count()
    finally:
        gc.unfreeze()


def test_the_search_is_held_off_and_goes_on(tmp_path: Path) -> None:
    with garbage.no_garbage():
        assert not gc.isenabled()
        with garbage.no_garbage():
            pass
        assert not gc.isenabled()
    assert gc.isenabled()
