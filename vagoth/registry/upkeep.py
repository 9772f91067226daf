"""What a person asks of a store now and then: to fold it, to prune it, to tell how it is."""

from __future__ import annotations

from pathlib import Path

import msgspec

from vagoth.errors import RegistryError
from vagoth.model import Holder
from vagoth.registry.files import trouble
from vagoth.registry.folder import Folder
from vagoth.registry.head import Head
from vagoth.registry.lines import Mark
from vagoth.registry.locks import NodeLocks
from vagoth.registry.store import Pruning

FORMAT_NAME = "TinyDB JSON, format 1, with a journal"


class StoreInfo(msgspec.Struct, frozen=True, kw_only=True):
    """How a store is. Sizes are bytes, times seconds since the epoch.

    ``commits`` are those that the journal keeps, the oldest of them from ``oldest``; ``locked``
    says who works on which node, by its id.
    """

    path: str
    format: str = FORMAT_NAME
    nodes: int
    size_bytes: int
    journal_bytes: int
    commits: int
    oldest: float | None
    position: str
    locked: dict[str, Holder]


class Upkeep:
    """Works on an open registry's files, beside everybody who uses them."""

    def __init__(self, head: Head, folder: Folder, locks: NodeLocks) -> None:
        self._head = head
        self._folder = folder
        self._locks = locks

    async def compact(self) -> None:
        """Bring ``store.json`` up to where the journal is.

        :raises RegistryError: it cannot be written; nothing is lost
        """
        await self._head.refresh()
        if self._head.store.is_attached:
            await self._folder.fold()

    async def prunable(self, older_than: float) -> Pruning:
        """What :meth:`prune` would forget."""
        await self._head.refresh()
        head = self._head
        cut = await head.threads.run_slowly(head.store.older, older_than, head.mark)
        return head.store.pruning(cut) if cut is not None else Pruning(0, 0)

    async def prune(self, older_than: float) -> Pruning:
        """Forget commits made before ``older_than``, from the oldest on up to the first newer.

        The records stay. A kill at any point leaves the journal as it was, or pruned. Other
        processes go on; a watch that needs what is gone ends in a WatchGap.

        :param older_than: seconds since the epoch
        :raises RegistryError: the journal is damaged, or cannot be written; nothing is forgotten
        """
        head = self._head
        await self.compact()
        cut = await head.threads.run_slowly(head.store.older, older_than, head.mark)
        if cut is None:
            return Pruning(0, 0)
        async with head.exclusively():
            # Others may have pruned more meanwhile, or somebody put an older store.json back.
            if head.store.pruning(cut).commits <= 0:
                return Pruning(0, 0)
            if not await head.threads.run(head.store.is_folded, cut.seq):
                raise RegistryError(f"{head.store.path} was changed meanwhile", cure="try again")
            return await head.threads.run(head.store.prune, cut, head.mark)

    async def info(self) -> StoreInfo:
        """How the store is now.

        :raises RegistryError: it cannot be read
        """
        await self._head.refresh()
        head = self._head
        return await head.threads.run(self._info, head.mark, len(head.view))

    def _info(self, mark: Mark, nodes: int) -> StoreInfo:
        store = self._head.store
        first = store.first()
        return StoreInfo(
            path=str(store.path),
            nodes=nodes,
            size_bytes=_size(store.path),
            journal_bytes=_size(store.journal_path),
            commits=store.pruning(mark).commits,
            oldest=first.time if first is not None else None,
            position=store.position(mark),
            locked=self._locks.held(),
        )


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        return 0
    except OSError as error:
        raise trouble(error, "read", path) from error
