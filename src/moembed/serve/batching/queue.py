"""What waits, and who is next: deficit round robin between clients, by due time within one.

A request is cut into parts of like length. Clients take turns by tokens (Shreedhar & Varghese, *Efficient
Fair Queuing using Deficit Round Robin*, 1995). Of one client, the part that is due first goes first: part i
of a request is due ``(1 + i) * max_age`` after it arrived. So a small request overtakes the later parts of a
large one, and these are overtaken by nothing that arrives after they are due.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from moembed.packing import token_budget


@dataclass(eq=False, slots=True)
class Part:
    """Rows of one request that are computed together.

    Attributes:
        request: whose they are.
        places: where the rows stand in it.
        tokens: of all of them, and 1 of a row without any.
        due: when it should be computed, by the clock of whoever put it in.
        group: parts of different groups cannot share a batch.
    """

    request: Any
    places: list[int]
    tokens: int
    due: float
    group: Hashable = None


def cut(
    request: Any, lengths: Sequence[int], tokens: int, max_age: float, arrived: float, group: Hashable = None
) -> list[Part]:
    """The parts of a request: rows of like length, at most ``tokens`` tokens each or one longer row."""
    sizes = [max(1, length) for length in lengths]
    return [
        Part(request, places, sum(sizes[place] for place in places), arrived + (1 + i) * max_age, group)
        for i, places in enumerate(token_budget(sizes, tokens))
    ]


@dataclass(eq=False, slots=True)
class _Client:
    name: str
    deficit: int = 0
    tokens: int = 0
    waiting: list[tuple[float, int, Part]] = field(default_factory=list)  # a heap


class FairQueue:
    """The parts that wait; for one thread at a time.

    Args:
        quantum: tokens that a client may spend more at each of its turns.
    """

    def __init__(self, quantum: int) -> None:
        self.quantum = quantum
        self.tokens = self.rows = 0
        self._clients: dict[str, _Client] = {}
        self._turns: deque[_Client] = deque()
        self._numbers = count()  # ties go in the order of arrival

    def __bool__(self) -> bool:
        return bool(self._turns)

    def tokens_of(self, client: str) -> int:
        """How many tokens of a client wait."""
        known = self._clients.get(client)
        return known.tokens if known else 0

    def put(self, client: str, parts: Sequence[Part]) -> None:
        if not parts:
            return
        entry = self._clients.get(client)
        if entry is None:
            entry = self._clients[client] = _Client(client)
            self._turns.append(entry)
        for part in parts:
            heapq.heappush(entry.waiting, (part.due, next(self._numbers), part))
            self._count(entry, part, 1)

    def take(self, tokens: int) -> list[Part]:
        """The parts of the next batch: of one group, and of at most ``tokens`` tokens or one larger part.

        A client whose next part does not fit is passed over; the first of them begins the next batch. Others
        may fill what room is left then, on credit: it is taken off what they get at their next turns.
        """
        taken: list[Part] = []
        passed: dict[_Client, None] = {}  # in their order: what does not fit now does not fit later
        while len(passed) < len(self._turns) and (tokens > 0 or not taken):
            client = self._turns[0]
            if taken and not _fits(client.waiting[0][2], taken, tokens):
                passed[client] = None
                self._turns.rotate(-1)
                continue
            client.deficit += 0 if passed else self.quantum
            while client.waiting and (passed or client.waiting[0][2].tokens <= client.deficit):
                part = client.waiting[0][2]
                if taken and not _fits(part, taken, tokens):
                    break
                heapq.heappop(client.waiting)
                self._count(client, part, -1)
                client.deficit -= part.tokens
                tokens -= part.tokens
                taken.append(part)
            if client.waiting:
                self._turns.rotate(-1)
            else:
                self._forget(client)
        if passed:
            self._turns.rotate(-self._turns.index(next(iter(passed))))
        return taken

    def remove(self, client: str, request: Any) -> int:
        """Take what waits of a request out again; how many rows that were."""
        entry = self._clients.get(client)
        if entry is None:
            return 0
        gone = [item[2] for item in entry.waiting if item[2].request is request]
        entry.waiting = [item for item in entry.waiting if item[2].request is not request]
        heapq.heapify(entry.waiting)
        for part in gone:
            self._count(entry, part, -1)
        if not entry.waiting:
            self._turns.remove(entry)
            self._forget(entry, in_turns=False)
        return sum(len(part.places) for part in gone)

    def clear(self) -> list[Part]:
        """Everything that waits, taken out."""
        parts = [item[2] for client in self._turns for item in client.waiting]
        self._clients.clear()
        self._turns.clear()
        self.tokens = self.rows = 0
        return parts

    def _forget(self, client: _Client, in_turns: bool = True) -> None:
        del self._clients[client.name]
        if in_turns:
            assert self._turns.popleft() is client

    def _count(self, client: _Client, part: Part, sign: int) -> None:
        client.tokens += sign * part.tokens
        self.tokens += sign * part.tokens
        self.rows += sign * len(part.places)


def _fits(part: Part, taken: Sequence[Part], room: int) -> bool:
    return part.tokens <= room and part.group == taken[0].group
