"""Closed-loop evaluation: a policy drives simulated episodes, many at once; the simulator says what succeeded."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from provla.core.cameras import Looks, each, stacked
from provla.core.files import write_bytes
from provla.core.films import mp4
from provla.core.interfaces import Suite
from provla.core.progress import console, progress_bars
from provla.core.types import Observation, Spec, anchor_of, past_of
from provla.core.world import Ending, Episode
from provla.env.chunk import Seen
from provla.env.suite import tasks_of
from provla.env.worker import Fault
from provla.env.worlds import Worlds
from provla.execution import Array, Chunk, Execution, Track

Frame = NDArray[np.uint8]


@dataclass
class Outcome:
    """One episode. ending: None while it is played. steps: control steps until its end. frames: of a filmed episode.
    reason: of one that a fault ended. score: the best that was reached; None where the world has none. rules: what
    other rules of success say.
    """

    episode: Episode
    ending: Ending | None = None
    steps: int = 0
    frames: list[Frame] = field(default_factory=list)
    reason: str = ""
    score: float | None = None
    rules: Mapping[str, bool] = field(default_factory=dict)

    @property
    def success(self) -> bool:
        return self.ending == "success"


def check_fit(suite: Suite, spec: Spec) -> None:
    """`ValueError` where a policy's sizes or cameras are not those of the worlds it is to act in, and where it knows
    several robots and nobody says which of them is theirs.
    """
    spec.check_driving()
    body, kind = suite.embodiment, type(suite).__name__
    way_out = "choose the env that the policy's data set came from, or env=none"

    def same(what: str, has: object, needs: object) -> None:
        if has != needs:
            raise ValueError(f"the policy's {what} is {has}, that of the worlds of {kind} {needs}; {way_out}")

    same("action size", spec.action_size, len(body.action))
    same("state size", spec.state_size, len(body.state))
    for camera, size in spec.sizes.items():
        if camera not in body.cameras:
            raise ValueError(
                f"the policy looks through the camera {camera!r}, which the worlds of {kind} do not have; they have: "
                f"{', '.join(body.cameras)}; {way_out}"
            )
        same(f"image size of {camera}", size, tuple(body.cameras[camera]))


def rollout(
    policy: Any, suite: Suite, spec: Spec, seed: int, device: torch.device, how: Execution | None = None
) -> list[Outcome]:
    """Outcomes in the suite's order: every episode, in batches over the suite's worlds, which take their steps at the
    same time. how: chunks are executed; whole ones where it is None.

    The sampler's noise comes from a generator per episode, seeded by (seed, episode), so an outcome depends neither on
    the number of worlds nor on which episodes ran beside it. A world that fails, and a chunk that is not finite, cost
    the episode: a failure, with its reason.
    """
    check_fit(suite, spec)
    how = how or Chunk()
    how.check(spec)
    with Worlds(suite, spec) as worlds, progress_bars() as bars:
        player = Player(policy, suite, worlds, worlds.seats[0], spec, seed, device, how)
        bar = bars.add_task("closed loop", total=len(suite.episodes), note="")
        for _ in player.play():
            bars.update(bar, completed=len(player.finished), note=player.note)
        bars.update(bar, completed=len(player.finished), note=player.note)
    return player.outcomes()


def noise_seed(seed: int, episode: Episode) -> int:
    """Of the sampler's noise in an episode, 32 bits. seed: the run's."""
    return int(np.random.SeedSequence([seed, episode.seed, *episode.task.encode()]).generate_state(1)[0])


class _Play:
    """An episode being played in a world."""

    images: Looks
    state: Array
    past: Sequence[Array]

    def __init__(self, slot: int, episode: Episode, seed: int, track: Track) -> None:
        self.slot, self.outcome, self.track = slot, Outcome(episode), track
        self.generator = torch.Generator().manual_seed(noise_seed(seed, episode))

    @property
    def over(self) -> bool:
        return self.outcome.ending is not None

    @property
    def instruction(self) -> str:
        return self.outcome.episode.instruction

    def anchor(self) -> tuple[Array, Array] | None:
        return self.track.anchor()

    def take(self, seen: Seen | Fault) -> None:
        if isinstance(seen, Fault):
            self.outcome.reason, self.outcome.ending = f"{seen}, after {self.outcome.steps} steps", "fault"
            return
        self.images, self.state, self.past = seen.images, seen.state, seen.past
        self.outcome.ending, self.outcome.steps = seen.ending, seen.steps
        self.outcome.score, self.outcome.rules = seen.score, seen.rules
        self.outcome.frames.extend(seen.frames)


class Player:
    """A policy that plays a suite's episodes in the worlds `seat` of some: which are played, in the order of their
    worlds; which wait, by task; which are finished. Others may play in other seats meanwhile: the episodes, and the
    batches that the policy sees, are those of one that plays alone.
    """

    def __init__(
        self,
        policy: Any,
        suite: Suite,
        worlds: Worlds,
        seat: Collection[int],
        spec: Spec,
        seed: int,
        device: torch.device,
        how: Execution,
    ) -> None:
        self.policy, self.suite, self.worlds, self.seat = policy, suite, worlds, seat
        self.spec, self.seed, self.device, self.how = spec, seed, device, how
        self.waiting = {task: deque(e for e in suite.episodes if e.task == task) for task in tasks_of(suite)}
        self.finished: dict[Episode, Outcome] = {}
        self.playing: list[_Play] = []

    @property
    def note(self) -> str:
        return f"{sum(o.success for o in self.finished.values())} succeeded"

    def play(self) -> Iterator[None]:
        """All episodes. Yields whenever its worlds have been asked, so that another policy can compute while they are
        at work.
        """
        self.policy.eval()
        shown = len(self.seat) if getattr(self.policy, "compiled", False) else 0
        yield from self._begin(self.seat)
        while self.playing:
            yield from self._step(act(self.policy, self.playing, self.spec, self.device, shown))

    def outcomes(self, name: str = "") -> list[Outcome]:
        """In the suite's order; says how many were faults. name: whose."""
        outcomes = [self.finished[episode] for episode in self.suite.episodes]
        if faults := [o for o in outcomes if o.reason]:
            console.print(
                f"{name}{': ' if name else ''}{len(faults)} of {len(outcomes)} episodes ended by a fault and count as "
                "failures; the first: "
                f"{faults[0].reason}"
            )
        return outcomes

    def _begin(self, free: Iterable[int]) -> Iterator[None]:
        """The next episodes, in the worlds that are free. One that ends at its beginning leaves its world to
        the next.
        """
        while plays := [
            _Play(slot, queue.popleft(), self.seed, self.how.begin(self.spec))
            for slot in free
            if (queue := self.waiting[self.worlds.tasks[slot]])
        ]:
            yield from self._move(plays, {play.slot: play.outcome.episode for play in plays})
            self.playing = sorted(
                [*self.playing, *(play for play in plays if not play.over)], key=lambda play: play.slot
            )
            free = [play.slot for play in plays if play.over]

    def _step(self, chunks: NDArray[np.float32]) -> Iterator[None]:
        """A chunk for every episode that is being played."""
        moves: dict[int, Episode | NDArray[np.float32]] = {}
        for play, chunk in zip(self.playing, chunks, strict=True):
            if np.isfinite(chunk).all():
                moves[play.slot] = play.track.take(chunk)
            else:
                play.take(Fault("the policy's actions are not finite"))
        yield from self._move(self.playing, moves)
        free = [play.slot for play in self.playing if play.over]
        self.playing = [play for play in self.playing if not play.over]
        yield from self._begin(free)

    def _move(self, plays: list[_Play], moves: Mapping[int, Episode | NDArray[np.float32]]) -> Iterator[None]:
        self.worlds.ask(moves)
        yield
        seen = self.worlds.hear(moves.keys())
        for play in plays:
            if play.slot in seen:
                play.take(seen[play.slot])
            if play.over:
                self.finished[play.outcome.episode] = play.outcome


class Looking(Protocol):
    """Who wants a chunk: what is seen, images (T,C,h,w,3) uint8, or of each camera (T,h,w,3) where they differ in size,
    and state (T,S); past, the actions (n,A) before; words; noise.
    """

    @property
    def images(self) -> Looks: ...

    @property
    def state(self) -> Array: ...

    @property
    def past(self) -> Sequence[Array]: ...

    @property
    def instruction(self) -> str: ...

    @property
    def generator(self) -> torch.Generator: ...

    def anchor(self) -> tuple[Array, Array] | None:
        """What the chunk is to continue, as a `Track` says it."""
        ...


def act(
    policy: Any, asking: Sequence[Looking], spec: Spec, device: torch.device, shown: int = 0
) -> NDArray[np.float32]:
    """A chunk (B,H,A) for each. shown: rows that the policy sees at least, the last of them again and again: a compiled
    one would be compiled anew for every number of episodes that are left.
    """
    more = max(0, shown - len(asking))
    seen = [*asking, *[asking[-1]] * more]
    generators = [one.generator for one in asking] + [torch.Generator() for _ in range(more)]
    told = [one.anchor() for one in seen]
    held = {"anchor": anchor_of(told, spec, device)} if any(told) else {}  # a policy of one's own may know of none
    chunks: NDArray[np.float32] = policy.act(_observe(seen, spec, device), generators, **held).cpu().numpy()
    return chunks[: len(asking)]


def _observe(asking: Sequence[Looking], spec: Spec, device: torch.device) -> Observation:
    looks = stacked([one.images for one in asking], np.stack)  # (B, T, C, h, w, 3)
    images = each(looks, lambda one: torch.from_numpy(one).movedim(-1, -3).contiguous())
    state = torch.from_numpy(np.stack([one.state for one in asking]))
    told = [one.instruction for one in asking]
    past = past_of([one.past for one in asking], spec)
    return Observation(images, state, told, *past).to(device)


def write_videos(outcomes: list[Outcome], folder: Path, fps: float) -> list[Path]:
    """One mp4 per task with its filmed episodes side by side, framed green where they succeeded and red where not."""
    written = []
    for task in dict.fromkeys(o.episode.task for o in outcomes):
        filmed = [o for o in outcomes if o.episode.task == task and o.frames]
        if not filmed:
            continue
        length = max(len(o.frames) for o in filmed)
        rows = [np.concatenate([_framed(o, t, length) for o in filmed], 1) for t in range(length + round(fps))]
        written.append(folder / f"{task}.mp4")
        write_bytes(written[-1], mp4(np.stack(rows), round(fps)))
    return written


def _framed(outcome: Outcome, time: int, length: int) -> Frame:
    """The frame at `time` (the last one is held); the border takes its colour once the episode is over."""
    frame = outcome.frames[min(time, len(outcome.frames) - 1)].copy()
    if time >= len(outcome.frames) - 1:
        colour = (40, 160, 70) if outcome.success else (200, 50, 50)
        for edge in (frame[:4], frame[-4:], frame[:, :4], frame[:, -4:]):
            edge[...] = colour
    return frame
