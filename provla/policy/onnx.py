"""`policy.onnx`: a policy as one graph that ONNX Runtime runs, from pixels to actions in the robot's units."""

from __future__ import annotations

import contextlib
import logging
import math
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from provla.core.files import atomic, write_json
from provla.core.progress import console
from provla.core.types import Observation, Spec, Tokens, fake_observation
from provla.policy.folder import load_policy
from provla.policy.provla import ProVLA
from provla.quant import merge

GRAPH, ABOUT = "policy.onnx", "policy.json"
TOLERANCE = 1e-4  # in the robot's units, of actions up to 1; of larger ones, times the largest
PROBES = 16
OPSET = 18
STEPS = 32  # of a sampler: each is a copy of the head's operations in the graph, and a hundred take torch minutes
DRAWS = torch.randn, torch.randn_like, torch.rand, torch.rand_like, torch.randint, Tensor.normal_, torch.normal


class Compared(NamedTuple):
    """ONNX Runtime's actions beside `policy.act`'s: by how much they differ at most, how large the largest is (robot's
    units), and the median time of a chunk.
    """

    difference: float
    largest: float
    milliseconds: float


class _OtherDraw(Exception):
    """A sampler that draws what a graph cannot be given."""


def _pairs(*lines: Tensor) -> Tensor:
    return torch.stack([line.flatten() for line in torch.meshgrid(*lines, indexing="ij")], -1)


def _moved(x: Tensor, source: int, to: int) -> Tensor:
    order = list(range(x.dim()))
    order.insert(to % x.dim(), order.pop(source % x.dim()))
    return x.permute(order)


# What torch's exporter does not know (of a pair of lines, every pair), or gets wrong (of axes counted from the end).
OTHERWISE: dict[Any, Callable[..., Tensor]] = {
    torch.cartesian_prod: _pairs,
    Tensor.movedim: _moved,
    torch.movedim: _moved,
}

PAST = ("past_actions", "past_is_pad")  # inputs of a policy that reads what was executed


class _Noise(TorchFunctionMode):
    """What a sampler draws with `torch.randn`: written down, or, where `given` (B,K,H,A), taken from there in turn.
    Draws of another kind, which a graph cannot be given, are refused.
    """

    def __init__(self, given: Tensor | None = None) -> None:
        super().__init__()
        self.drawn: list[Tensor] = []
        self._given = given

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in DRAWS and function is not torch.randn:
            raise _OtherDraw(
                f"this policy draws by {function.__name__} while it acts, and the graph is given standard normal noise "
                "alone"
            )
        if self._given is not None and function in OTHERWISE:
            return OTHERWISE[function](*args)
        if function is not torch.randn:
            return function(*args, **(kwargs or {}))
        if self._given is None:
            self.drawn.append(function(*args, **(kwargs or {})))
        else:
            self.drawn.append(self._given[:, len(self.drawn)])
        return self.drawn[-1]


class _Graph(nn.Module):
    """What is exported: `act`, with the sentences' tokens of `words` for a sentence, and noise for a generator."""

    features: Tensor
    mask: Tensor

    def __init__(self, policy: ProVLA, words: Tokens, inputs: Sequence[str]) -> None:
        super().__init__()
        self.policy, self.inputs = policy, inputs
        self.register_buffer("features", words.features)  # (K,N,D)
        self.register_buffer("mask", words.mask)

    def forward(self, *given: Tensor) -> Tensor:
        policy, asked = self.policy, dict(zip(self.inputs, given, strict=True))
        shape = (1, policy.spec.horizon, policy.spec.action_size)
        with _Noise(asked.get("noise", given[0][:, :0])):
            at = asked.get("instruction", torch.zeros(1, dtype=torch.int64))  # else there are no tokens
            told = Tokens(self.features.index_select(0, at), self.mask.index_select(0, at))
            past, early = map(asked.get, PAST)
            seen = Observation(asked["images"], asked["state"], [""], past, early)
            context: Tokens = policy.fusion(policy.vision(seen.images), told, policy.felt(seen))
            if policy.project is not None:
                context = Tokens(policy.project(context.features), context.mask)
            chunk: Tensor = policy.scheduler.sample(policy.head, context, shape, None)
            return policy.outside(chunk, seen)


def export_onnx(
    source: Path,
    target: Path,
    instructions: Sequence[str] = (),
    bases: Mapping[str, str] | None = None,
    trust: Sequence[str] = (),
    steps: int | None = None,
    driving: str | None = None,
) -> Compared:
    """The policy of `source` as `policy.onnx` and `policy.json` in `target`; how its actions compare.

    policy.json names inputs, shapes, units and sentences. Sentences are encoded now, those of the training and
    `instructions` besides, and the graph holds their features: no text encoder is needed, and no other sentence can be
    said. steps: of the sampler, if not its own number. driving: whose robot, see `Spec.source`. Adapters
    of the vision encoder are merged. Before anything is written, ONNX Runtime's actions are compared with
    `policy.act`'s. Errors: `ValueError`, with the reason, for what cannot be exported or acts otherwise.
    """
    _library()
    changes = {} if steps is None else {"scheduler.num_inference_steps": steps}
    policy, spec = load_policy(source, torch.device("cpu"), changes, bases, trust, driving)
    spec.check_driving()
    _check(policy)
    known = list(dict.fromkeys([*spec.instructions, *instructions]))
    probes = [_asked(policy, known, number) for number in range(PROBES)]
    with torch.no_grad():
        merge(getattr(policy.vision, "adaptable", policy.vision))
        graph = _Graph(policy, policy.phrases(known), list(probes[0][0]))
    with atomic(target, sum(value.nbytes for value in graph.state_dict().values())) as partial:
        partial.mkdir()
        _export(graph, probes[0][0], partial / GRAPH)
        found = _compare(partial / GRAPH, probes)
        if not found.difference <= TOLERANCE * max(1.0, found.largest):
            raise ValueError(
                f"onnx=true: ONNX Runtime's actions differ from policy.act's by {found.difference:.2g} on {PROBES} "
                f"random observations, where {TOLERANCE:g} is allowed of actions that are up to {found.largest:.2g} "
                "large; nothing was written"
            )
        write_json(partial / ABOUT, _about(spec, known, probes[0][0], found))
        size = sum(file.stat().st_size for file in partial.iterdir())
    console.print(
        f"ONNX Runtime's actions differ from policy.act's by {found.difference:.2g} at most on {PROBES} random "
        f"observations (they are up to {found.largest:.2g} large); {found.milliseconds:.1f} ms per chunk here, "
        f"{size / 1e6:.1f} MB"
    )
    return found


def _library() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise ValueError(f"onnx=true needs {error.name}, which is not installed; pip install 'provla[onnx]'") from error


def _check(policy: Any) -> None:
    """`ValueError` for what cannot become a graph, as far as it is known without trying."""
    if not isinstance(policy, ProVLA):
        raise ValueError(
            f"onnx=true exports policies that are composed of provla's parts (policy=provla); this one is a "
            f"{type(policy).__name__}. python -m provla.export without it writes one that provla loads"
        )
    if (steps := getattr(policy.scheduler, "num_inference_steps", 1)) > STEPS:
        raise ValueError(
            f"onnx=true: its sampler takes {steps} steps, and a graph holds each of them: at most {STEPS}. Take fewer "
            "by sampler_steps=<n>, after provla.evaluate scheduler.num_inference_steps=<n> has said what that costs"
        )
    quantised = [layer for layer in policy.vision.modules() if type(layer).__name__ in ("Linear4bit", "Linear8bitLt")]
    if quantised:
        raise ValueError(
            f"onnx=true: {len(quantised)} layers of vision are quantised by bitsandbytes, whose arithmetic no ONNX "
            "operation has. Merge them first (python -m provla.export checkpoint=<run>, which says by how much that "
            "changes the actions) and export the folder that it writes: checkpoint=<run>/policy-full onnx=true"
        )


def _asked(policy: ProVLA, known: Sequence[str], number: int) -> tuple[dict[str, Tensor], Tensor]:
    """A random observation and the noise that `act` draws for it, as the graph's inputs; and what `act` answers."""
    seen = fake_observation(policy.spec, 1, number)
    at = number % len(known)
    with _Noise() as drawn:
        try:
            asking = replace(seen, instruction=[known[at]])
            actions = policy.act(asking, torch.Generator().manual_seed(number), None)
        except _OtherDraw as error:
            raise ValueError(f"onnx=true: {error}") from error
    given = {name: getattr(seen, name) for name in ("images", "state", *PAST)}
    asked = {name: value for name, value in given.items() if value is not None}
    if drawn.drawn:
        chunk = (1, policy.spec.horizon, policy.spec.action_size)
        if odd := [tuple(one.shape) for one in drawn.drawn if one.shape != chunk]:
            raise ValueError(f"onnx=true: the sampler draws noise of shape {odd[0]}, not of a chunk's {chunk}")
        asked["noise"] = torch.stack(drawn.drawn, 1)
    if policy.phrases([known[at]]).features.shape[1]:
        asked["instruction"] = torch.tensor([at])
    return asked, actions


def _export(graph: nn.Module, asked: Mapping[str, Tensor], place: Path) -> None:
    """Writes the graph to `place`; `ValueError` where a part of it is none that ONNX knows."""
    try:
        with _quiet(), torch.no_grad():
            torch.onnx.export(
                graph.eval(),
                tuple(asked.values()),
                place,
                input_names=list(asked),
                output_names=["actions"],
                opset_version=OPSET,
                dynamo=False,  # the newer one fails at diffusers' clocks, whose values it does not see
            )
    except Exception as error:  # the exporter raises whatever an operation of anybody's class makes it
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        told = " ".join(str(cause).split())
        raise ValueError(f"onnx=true: torch's exporter cannot make a graph of this policy: {told:.400}") from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """What torch's exporter says of its own workings stays unsaid."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    with warnings.catch_warnings(), contextlib.redirect_stdout(None):
        warnings.simplefilter("ignore")
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)


def _compare(place: Path, probes: Sequence[tuple[Mapping[str, Tensor], Tensor]]) -> Compared:
    import onnxruntime

    session = onnxruntime.InferenceSession(place, providers=["CPUExecutionProvider"])
    worst, largest, times = 0.0, 0.0, list[float]()
    for asked, expected in probes:
        begun = time.perf_counter()
        (found,) = session.run(["actions"], {name: value.numpy() for name, value in asked.items()})
        times.append(1000 * (time.perf_counter() - begun))
        difference = float((torch.from_numpy(found) - expected).abs().max())
        worst = max(worst, math.inf if math.isnan(difference) else difference)
        largest = max(largest, float(expected.abs().max()))
    return Compared(worst, largest, statistics.median(times))


def _about(spec: Spec, known: Sequence[str], asked: Mapping[str, Tensor], compared: Compared) -> dict[str, Any]:
    from importlib.metadata import version

    h, w = spec.image_size
    what = {
        "images": f"RGB pixels, 0 to 255: observation steps, oldest first; cameras as listed; channels; {h} rows, {w} "
        "columns. A larger picture is reduced by the mean of its pixels (OpenCV's INTER_AREA)",
        "state": "of the same steps, in the robot's units",
        "past_actions": "executed before, the oldest first, in the robot's units",
        "past_is_pad": "true before the episode's start, where the action is 0",
        "noise": "standard normal, new for each chunk; one chunk for each of the sampler's draws",
        "instruction": "position of the sentence in `instructions`, from 0",
    }
    inputs = {
        name: {"shape": list(value.shape), "dtype": str(value.dtype).removeprefix("torch."), "what": what[name]}
        for name, value in asked.items()
    }
    return {
        "graph": GRAPH,
        "inputs": inputs,
        "outputs": {
            "actions": {
                "shape": [1, spec.horizon, spec.action_size],
                "dtype": "float32",
                "what": "a chunk of actions, the next one first, in the robot's units",
            }
        },
        "normalization": "inside the graph",
        "cameras": list(spec.cameras),
        "instructions": list(known),
        "n_action_steps": spec.n_action_steps,
        "fps": spec.fps,
        "compared": {"observations": PROBES, "max_difference": compared.difference, "of_up_to": compared.largest},
        "versions": {name: version(name) for name in ("provla", "torch", "onnx", "onnxruntime")},
    }
