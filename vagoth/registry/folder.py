"""Folding: bringing ``store.json`` up to where the journal is, in the background."""

from __future__ import annotations

import asyncio
import logging
import time

from vagoth.errors import RegistryError
from vagoth.registry.head import Head
from vagoth.registry.threads import settled

log = logging.getLogger(__name__)

#: How long after the last commit the journal is folded, and how long at most after the first.
FOLD_AFTER_S = 0.5
FOLD_WITHIN_S = 30.0
_AGAIN_S = 0.05
_PATIENCE_S = 10.0


class Folder:
    """Folds the commits of a process. One that commits nothing folds nothing."""

    def __init__(self, head: Head) -> None:
        self._head = head
        self._task: asyncio.Task[None] | None = None
        self._is_closing = False
        self._own_seq = 0  # our last commit
        self._folded_seq = 0
        self._last_commit = 0.0

    def committed(self) -> None:
        """We have committed: fold that soon."""
        self._last_commit = time.monotonic()
        self._own_seq = self._head.mark.seq
        if not self._is_closing and (self._task is None or self._task.done()):
            self._task = asyncio.create_task(self._fold_when_quiet(), name="vagoth-registry-fold")

    async def stop(self) -> asyncio.CancelledError | None:
        """Leave folding to :meth:`close`; return a cancellation, to be raised later."""
        self._is_closing = True
        if self._task is None:
            return None
        self._task.cancel()
        return await settled(self._task)

    async def close(self) -> None:
        """Fold all that the view shows, if any of it is ours."""
        if self._head.failure is not None or not self._own_seq:
            return
        try:
            await self.fold()
        except RegistryError as error:
            # The commits are safe in the journal; only the readable file is behind.
            log.warning("not folded: %s", error)

    async def fold(self) -> None:
        """Fold all that the view shows, whoever committed it.

        :raises RegistryError: it cannot be written, or others do not let us
        """
        deadline = time.monotonic() + _PATIENCE_S
        while not await self._fold():
            if time.monotonic() > deadline:
                raise RegistryError(
                    f"another process keeps writing {self._head.store.path}", cure="try again"
                )
            await asyncio.sleep(_AGAIN_S)

    async def _fold_when_quiet(self) -> None:
        latest = time.monotonic() + FOLD_WITHIN_S
        while self._folded_seq < self._own_seq:
            rest = min(self._last_commit + FOLD_AFTER_S, latest) - time.monotonic()
            if rest > 0:
                await asyncio.sleep(rest)
                continue
            try:
                if not await self._fold():
                    await asyncio.sleep(_AGAIN_S)
            except RegistryError as error:
                log.warning("not folded: %s", error)
                return
            latest = time.monotonic() + FOLD_WITHIN_S

    async def _fold(self) -> bool:
        """Write ``store.json``; whether it now holds all that the view shows."""
        head = self._head
        mark = head.mark
        if not await head.threads.run(head.store.is_folded, mark.seq):
            # Taken at once, in one step of the loop: the records of exactly this mark.
            mark, records = head.mark, tuple(head.view)
            if not await head.threads.run_slowly(head.store.stage, records, mark):
                return False
            try:
                async with head.exclusively():
                    await head.threads.run(head.store.fold, mark)
            finally:
                head.store.unstage()
        self._folded_seq = mark.seq
        return True
