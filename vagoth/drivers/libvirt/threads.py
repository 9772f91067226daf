"""Threads for calls that may hang: made as needed, reused, and never waited for at exit.

An executor of the standard library is joined as the interpreter ends, so that one call that
hangs would keep the process from ending.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

IDLE_S = 5.0

Job = Callable[[], None]


class Threads:
    """As many threads as there are jobs under way; whoever gives the jobs bounds their number."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: list[_Thread] = []

    def run(self, job: Job) -> None:
        """Run ``job`` in a thread, at once. It must not raise."""
        with self._lock:
            thread = self._idle.pop() if self._idle else None
        if thread is None:
            thread = _Thread(self)
            thread.start()
        thread.jobs.put(job)

    def rest(self, thread: _Thread) -> None:
        """Take back a thread that has nothing to do."""
        with self._lock:
            self._idle.append(thread)

    def dismiss(self, thread: _Thread) -> bool:
        """Let go of an idle thread; false if it was just given a job."""
        with self._lock:
            if thread not in self._idle:
                return False
            self._idle.remove(thread)
            return True


class _Thread(threading.Thread):
    def __init__(self, owner: Threads) -> None:
        super().__init__(name="vagoth-libvirt", daemon=True)
        self.jobs: queue.SimpleQueue[Job] = queue.SimpleQueue()
        self._owner = owner

    def run(self) -> None:
        while True:
            try:
                job = self.jobs.get(timeout=IDLE_S)
            except queue.Empty:
                if self._owner.dismiss(self):
                    return
                continue
            job()
            # The job holds libvirt's objects: they go here, and not when the next one comes.
            del job
            self._owner.rest(self)


threads = Threads()
