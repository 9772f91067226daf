"""Taking turns, and the arithmetic: medians, spreads, ratios."""

from __future__ import annotations

import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

LEAST_ROUNDS = 3


class BenchmarkFailed(Exception):
    """What was to be timed did not work; the text says what it was and what it said."""


@dataclass(frozen=True)
class Contender:
    """What takes part in a comparison.

    :param command: what is done, as a reader could do it
    :param run: does it once and returns how long it took, in seconds
    :param is_ours: it is Vagoth's, and is compared with each peer that is not
    """

    name: str
    command: str
    run: Callable[[], Awaitable[float]]
    is_ours: bool = False


@dataclass(frozen=True)
class Spread:
    """A median, and how far the single values lie around it."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of at least one value."""
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True)
class Timing:
    """How long a contender took in each round, in seconds."""

    contender: Contender
    seconds: Sequence[float]

    @property
    def spread(self) -> Spread:
        """Of all rounds."""
        return Spread.of(self.seconds)

    def ratio_to(self, peer: Timing) -> Spread:
        """Our time over the peer's, round by round: below 1, we are faster."""
        pairs = zip(self.seconds, peer.seconds, strict=True)
        return Spread.of([ours / theirs for ours, theirs in pairs])


@dataclass(frozen=True)
class Comparison:
    """The timings of one benchmark, in the order in which turns were taken."""

    timings: Sequence[Timing]

    @property
    def ours(self) -> Sequence[Timing]:
        """Vagoth's."""
        return [timing for timing in self.timings if timing.contender.is_ours]

    @property
    def peers(self) -> Sequence[Timing]:
        """All others."""
        return [timing for timing in self.timings if not timing.contender.is_ours]

    @property
    def rounds(self) -> int:
        """How often each had its turn."""
        return len(self.timings[0].seconds)


async def compare(
    contenders: Sequence[Contender], *, rounds: int, budget_s: float = float("inf")
) -> Comparison:
    """Let contenders take turns, after one round that does not count.

    :param rounds: how many turns each has
    :param budget_s: no round is begun after this time, in seconds, once each had three turns
    :raises BenchmarkFailed: one of them did not work
    """
    if not contenders:
        raise BenchmarkFailed("there is nothing to compare")
    begun = time.monotonic()
    for contender in contenders:
        await contender.run()
    seconds: list[list[float]] = [[] for _ in contenders]
    for number in range(rounds):
        if number >= LEAST_ROUNDS and time.monotonic() - begun > budget_s:
            break
        for contender, taken in zip(contenders, seconds, strict=True):
            taken.append(await contender.run())
    return Comparison([Timing(*each) for each in zip(contenders, seconds, strict=True)])
