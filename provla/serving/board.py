"""What the page shows: who is there, what each sees and was sent, how long answers took."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from provla.core.cameras import apart
from provla.serving.engine import Answer
from provla.serving.observed import Observed

KEPT = 1000  # the latest answers, of which latencies are told
GONE = 8  # clients that have left and are still shown
RECENT = 10.0  # seconds over which a rate is told


@dataclass
class Client:
    """One connection. took: seconds from a message's arrival to its answer's."""

    number: int
    address: str
    begun: float = field(default_factory=time.monotonic)
    left: bool = False
    answers: int = 0
    errors: int = 0
    last_error: str = ""
    seen: Observed | None = None
    chunk: NDArray[np.float32] | None = None
    last: float | None = None
    took: deque[float] = field(default_factory=lambda: deque(maxlen=KEPT))

    def picture(self) -> bytes:
        """What its cameras showed last, side by side, as PNG; empty before the first look."""
        if self.seen is None:
            return b""
        import cv2

        last = [one[-1] for one in apart(self.seen.images, 1)]
        tall = max(len(one) for one in last)
        row = np.concatenate([np.pad(one, ((0, tall - len(one)), (0, 0), (0, 0))) for one in last], axis=1)  # (h, …, 3)
        return bytes(cv2.imencode(".png", np.ascontiguousarray(row[:, :, ::-1]))[1])

    def told(self) -> dict[str, Any]:
        return {
            "number": self.number,
            "address": self.address,
            "left": self.left,
            "prompt": self.seen.instruction if self.seen else "",
            "answers": self.answers,
            "errors": self.errors,
            "last_error": self.last_error,
            "seconds_since": None if self.last is None else time.monotonic() - self.last,
            "latency_ms": percentiles(self.took),
            "chunk": None if self.chunk is None else np.round(self.chunk.astype(float), 5).tolist(),
        }


class Board:
    """All clients of a server. facts: what it says of itself (a name, cameras, sizes)."""

    def __init__(self, facts: dict[str, Any]) -> None:
        self.facts, self.begun = facts, time.monotonic()
        self.clients: dict[int, Client] = {}
        self.joined = self.answers = self.errors = 0
        self.took: deque[float] = deque(maxlen=KEPT)
        self.passes: deque[float] = deque(maxlen=KEPT)
        self.together: deque[int] = deque(maxlen=KEPT)
        self.times: deque[float] = deque(maxlen=100 * KEPT)

    @property
    def present(self) -> int:
        return sum(not client.left for client in self.clients.values())

    def join(self, address: str) -> Client:
        self.joined += 1
        client = self.clients[self.joined] = Client(self.joined, address)
        return client

    def leave(self, client: Client) -> None:
        client.left = True
        gone = [number for number, one in self.clients.items() if one.left]
        for number in gone[:-GONE]:
            del self.clients[number]

    def answered(self, client: Client, seen: Observed, answer: Answer, took: float) -> None:
        client.seen, client.chunk, client.last = seen, answer.chunk, time.monotonic()
        client.answers += 1
        self.answers += 1
        client.took.append(took)
        self.took.append(took)
        self.passes.append(answer.took)
        self.together.append(answer.together)
        self.times.append(client.last)

    def refused(self, client: Client, reason: str) -> None:
        client.errors, client.last_error = client.errors + 1, reason
        self.errors += 1

    def told(self) -> dict[str, Any]:
        """As state.json says it."""
        now = time.monotonic()
        while self.times and now - self.times[0] > RECENT:
            self.times.popleft()
        return {
            **self.facts,
            "seconds": now - self.begun,
            "present": self.present,
            "joined": self.joined,
            "answers": self.answers,
            "errors": self.errors,
            "answers_per_second": len(self.times) / max(1e-3, min(RECENT, now - self.begun)),
            "latency_ms": percentiles(self.took),
            "pass_ms": percentiles(self.passes),
            "together": sum(self.together) / len(self.together) if self.together else None,
            "clients": [client.told() for client in self.clients.values()],
        }


def percentiles(seconds: deque[float]) -> dict[str, float] | None:
    """p50 and p99 in milliseconds; None where nothing was measured."""
    if not seconds:
        return None
    p50, p99 = np.percentile(np.array(seconds), [50, 99])
    return {"p50": 1000 * float(p50), "p99": 1000 * float(p99)}
