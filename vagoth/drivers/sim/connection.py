"""A connection to a simulated host: requests, the faults they meet, and its end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import NamedTuple, NoReturn, TypeVar

from vagoth.drivers.base import DriverSettings, Host, Session
from vagoth.drivers.sim.definition import Down, SimHostDefinition
from vagoth.drivers.sim.files import Files, StateFile
from vagoth.drivers.sim.watch import Listener, Watcher
from vagoth.drivers.sim.world import World
from vagoth.errors import HostUnreachable, InvalidInput, JobFailed, OutcomeUnknown

T = TypeVar("T")


class Fate(NamedTuple):
    """What becomes of one request: the seeded choice of the host's faults."""

    request_lost: bool = False
    answer_lost: bool = False
    drops: bool = False


class Connection(Session):
    """An open connection to a simulated host: how requests go over it, and what breaks it.

    It is lost when the host drops its connections or refuses them, and when a request found
    no answer on a host that was cut off. A host that is cut off and comes back in time goes on
    as if nothing had been: requests and events arrive late.
    """

    def __init__(
        self,
        host: Host,
        definition: SimHostDefinition,
        file: StateFile,
        world: World,
        *,
        settings: DriverSettings,
        files: Files,
        watcher: Watcher,
    ) -> None:
        super().__init__(host)
        self.definition = definition
        self._file = file
        self._world = world
        self._limit_s = settings.call_timeout_s
        self._files = files
        self._watcher = watcher
        self._problem: str | None = None
        self._gone = asyncio.Event()
        self._reachable = asyncio.Event()
        self._scopes: set[asyncio.Timeout] = set()
        self._listeners: set[Listener] = set()
        self._keepalive: asyncio.TimerHandle | None = None
        self.see(world)

    # --- the connection ---------------------------------------------------------------

    @property
    def file(self) -> StateFile:
        """Where the host is kept."""
        return self._file

    @property
    def is_open(self) -> bool:
        return self._problem is None

    async def closed(self) -> None:
        with self._watcher.watching(self):
            await self._gone.wait()

    async def close(self) -> None:
        self.lose("the connection is closed")

    def see(self, world: World) -> None:
        """Take note of how the host is now."""
        if self._problem is not None:
            return
        if world.link != self._world.link:
            self.lose("the connection was lost")
            return
        if world.revision < self._world.revision:
            return  # read earlier than what we know already
        self._world = world
        down = world.down(self.definition)
        if down is Down.REFUSE:
            self.lose("the connection was reset")
        elif down is Down.HANG:
            self._reachable.clear()
            if self._keepalive is None:
                loop = asyncio.get_running_loop()
                self._keepalive = loop.call_later(self._limit_s, self._not_alive)
        else:
            self._reachable.set()
            self._stop_keepalive()
            for listener in self._listeners:
                listener.feed(world)

    def lose(self, problem: str) -> None:
        """Be of no use any more: fails all who wait. The first reason stays."""
        if self._problem is not None:
            return
        self._problem = problem
        self._gone.set()
        self._stop_keepalive()
        for listener in self._listeners:
            listener.fail(problem)
        for scope in self._scopes:
            if not scope.expired():
                scope.reschedule(asyncio.get_running_loop().time())

    def _not_alive(self) -> None:
        self.lose(f"no answer within {self._limit_s:g} s")

    def _stop_keepalive(self) -> None:
        if self._keepalive is not None:
            self._keepalive.cancel()
            self._keepalive = None

    # --- requests ---------------------------------------------------------------------

    @asynccontextmanager
    async def _request(self, *, mutates: bool, takes_s: float = 0.0) -> AsyncIterator[None]:
        """Around what the host does for one request, which may take it ``takes_s``."""
        if self._problem is not None:
            raise HostUnreachable(self.host.name, self._problem)
        is_sent = False
        try:
            async with asyncio.timeout(self._limit_s + takes_s) as scope:
                with self._under_way(scope):
                    await asyncio.sleep(self.definition.latency_s)
                    self.see(await self._files.read(self._file))
                    if self._problem is not None:
                        raise TimeoutError
                    is_sent = True
                    await self._reachable.wait()
                    fate = await self._draw_fate()
                    if fate.request_lost:
                        await self._fall_silent(fate)
                    try:
                        yield
                        await self._reachable.wait()
                    except (JobFailed, InvalidInput):
                        if not fate.answer_lost:
                            raise
                    if fate.answer_lost:
                        await self._fall_silent(fate)
        except TimeoutError:
            self._fail_unanswered(is_sent and mutates)

    @contextmanager
    def _under_way(self, scope: asyncio.Timeout) -> Iterator[None]:
        self._scopes.add(scope)
        try:
            with self._watcher.watching(self):
                yield
        finally:
            self._scopes.discard(scope)

    def _fail_unanswered(self, in_doubt: bool) -> NoReturn:
        problem = self._problem or f"no answer within {self._limit_s:g} s"
        if not self._reachable.is_set():
            self.lose(problem)
        if in_doubt:
            raise OutcomeUnknown(
                f"{self.host.name}: {problem}: it may have been done, or not",
                cure="poll the host once it answers again",
            ) from None
        raise HostUnreachable(self.host.name, problem) from None

    async def _draw_fate(self) -> Fate:
        faults = self._world.faults(self.definition)
        if not (faults.hang or faults.drop):
            return Fate()
        seed = self.definition.seed
        chance, side = await self._files.change(
            self._file, lambda world: (world.draw(seed), world.draw(seed))
        )
        if chance >= faults.hang + faults.drop:
            return Fate()
        return Fate(side < 0.5, side >= 0.5, drops=chance >= faults.hang)

    async def _fall_silent(self, fate: Fate) -> NoReturn:
        if fate.drops:
            self.lose("the connection was lost")
        await asyncio.sleep(self._limit_s)
        raise TimeoutError

    async def _apply(self, work: Callable[[World], T]) -> T:
        """Let the host do something, within a request."""

        def apply(world: World) -> T:
            self._check_link(world)
            return work(world)

        return await self._files.change(self._file, apply)

    def _check_link(self, world: World) -> None:
        # Who looks under the lock knows what nobody knew when the request set out.
        if world.link != self._world.link:
            raise HostUnreachable(self.host.name, "the connection was lost")

    async def _change(self, work: Callable[[World], T]) -> T:
        async with self._request(mutates=True):
            return await self._apply(work)

    async def _look(self) -> World:
        async with self._request(mutates=False):
            return await self._files.read(self._file)

    # --- changes ----------------------------------------------------------------------

    @asynccontextmanager
    async def _listening(self, look: Callable[[], Awaitable[World]]) -> AsyncIterator[Listener]:
        with self._watcher.watching(self):
            listener = Listener(self.host.name, await look())
            self._listeners.add(listener)
            try:
                # The watcher may have seen something later while we waited for our look; and
                # who was not on the list when the connection went must hear of it here.
                listener.feed(self._world)
                if self._problem is not None:
                    listener.fail(self._problem)
                yield listener
            finally:
                self._listeners.discard(listener)
