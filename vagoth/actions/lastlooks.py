"""When each host was last looked at: kept beside the registry, so that tables can tell."""

from __future__ import annotations

import logging
import os
import tempfile
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import msgspec

from vagoth.actions.observe import Look

log = logging.getLogger(__name__)

#: The file is written at most this often.
SAVE_EVERY_S = 60.0


class LastLooks:
    """The times of the last looks at hosts that were answered.

    It is no part of registry or history. What a crash loses of it is at most a minute.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._times: dict[str, float] = {}
        self._loaded = False
        self._unsaved = False
        self._saved_at = 0.0

    def of(self, host_id: str) -> float:
        """When the host (by id) last answered in full, in epoch seconds; 0 if it never did."""
        self._load()
        return self._times.get(host_id, 0.0)

    def note(self, looks: Iterable[Look]) -> None:
        """Remember those that were answered."""
        self._load()
        for look in looks:
            if look.error is None:
                self._times[look.host_id] = look.time
                self._unsaved = True
        if self._unsaved and time.monotonic() - self._saved_at > SAVE_EVERY_S:
            self.save()

    def save(self) -> None:
        """Write the file, if anything is new. A file that cannot be written is only logged."""
        if not self._unsaved:
            return
        self._unsaved, self._saved_at = False, time.monotonic()
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            handle, beside = tempfile.mkstemp(dir=self._path.parent, prefix=self._path.name)
            with os.fdopen(handle, "wb") as file:
                file.write(msgspec.json.encode(self._times))
            os.replace(beside, self._path)
        except OSError as error:
            log.info("the times of last looks are not kept: %s", error)

    def _load(self) -> None:
        if self._loaded:
            return
        self._loaded = True
        with suppress(OSError, msgspec.DecodeError):
            self._times = msgspec.json.decode(self._path.read_bytes(), type=dict[str, float])
