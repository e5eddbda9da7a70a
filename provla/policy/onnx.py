"""`policy.onnx`: a policy as one graph that ONNX Runtime runs, from pixels to actions in the robot's units."""

from __future__ import annotations

import contextlib
import logging
import math
import statistics
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from provla.core.build import first_line
from provla.core.cameras import in_words
from provla.core.files import atomic, write_json
from provla.core.progress import console
from provla.core.types import Spec, fake_observation
from provla.policy.folder import load_policy
from provla.policy.provla import ProVLA
from provla.policy.traced import PAST, Graph, Noise, OtherDraw
from provla.quant import merge

GRAPH, WEIGHTS, ABOUT = "policy.onnx", "policy.onnx.data", "policy.json"
TOLERANCE = 1e-4  # in the robot's units, of actions up to 1; of larger ones, times the largest
PROBES = 16
OPSET = 18
STEPS = 32  # of a sampler: each is a copy of the head's operations in the graph, and a hundred take torch minutes
EXTERNAL = 1_000_000_000  # bytes; weights of a larger graph lie beside it: protobuf ends at two of these


class Compared(NamedTuple):
    """ONNX Runtime's actions beside `policy.act`'s: by how much they differ at most, how large the largest is (robot's
    units), and the median time of a chunk.
    """

    difference: float
    largest: float
    milliseconds: float


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
        graph = Graph(policy, policy.phrases(known), list(probes[0][0]))
        del policy.text, policy.phrases  # the graph reads nothing
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
        files = {"graph": GRAPH} | ({"weights": WEIGHTS} if (partial / WEIGHTS).exists() else {})
        write_json(partial / ABOUT, files | _about(spec, known, probes[0][0], found))
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
    if isinstance(policy.spec.image_size, Mapping):
        raise ValueError(
            "onnx=true: the graph has one input for all pictures, and the policy's cameras differ in size "
            f"({in_words(policy.spec.sizes)}); train with dataset.image_size=[h,w], which brings them to one"
        )
    if (steps := getattr(policy.scheduler, "num_inference_steps", 1)) > STEPS:
        raise ValueError(
            f"onnx=true: its sampler takes {steps} steps, and a graph holds each of them: at most {STEPS}. Take fewer "
            "by sampler_steps=<n>, after provla.evaluate scheduler.num_inference_steps=<n> has said what that costs"
        )
    if any(weight.dtype == torch.bfloat16 for weight in policy.vision.parameters()):
        raise ValueError(
            "onnx=true: vision computes in bfloat16 (vision.dtype), in which neither torch's exporter nor ONNX Runtime "
            "on a CPU knows every operation; train with vision.dtype=float32"
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
    with Noise() as drawn:
        try:
            asking = replace(seen, instruction=[known[at]])
            actions = policy.act(asking, torch.Generator().manual_seed(number), None)
        except OtherDraw as error:
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
    """Writes the graph to `place`, and large weights beside it; `ValueError` where a part of it is none that ONNX
    knows.
    """
    import onnx

    with tempfile.TemporaryDirectory(dir=place.parent) as scratch:  # beyond 2 GB torch writes a file per weight
        traced = Path(scratch) / GRAPH
        try:
            with _quiet(), torch.no_grad():
                torch.onnx.export(
                    graph.eval(),
                    tuple(asked.values()),
                    str(traced),
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
        if sum(file.stat().st_size for file in traced.parent.iterdir()) <= EXTERNAL:
            traced.replace(place)
        else:
            onnx.save_model(onnx.load(traced), place, save_as_external_data=True, location=WEIGHTS)


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

    try:
        session = onnxruntime.InferenceSession(place, providers=["CPUExecutionProvider"])
    except Exception as error:  # of its own many kinds
        raise ValueError(f"onnx=true: ONNX Runtime cannot run this policy's graph: {first_line(error)}") from error
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

    h, w = next(iter(spec.sizes.values()))
    what = {
        "images": f"RGB pixels, 0 to 255: observation steps, oldest first; cameras as listed; channels; {h} rows, {w} "
        "columns. A larger picture is reduced by the mean of its pixels (OpenCV's INTER_AREA)",
        "state": "of the same steps, in the robot's units",
        "past_actions": "executed before, the oldest first, in the robot's units: clipped to action_bounds, if any",
        "past_is_pad": "true before the episode's start, where the action is 0",
        "noise": "standard normal, new for each chunk; one chunk for each of the sampler's draws",
        "instruction": "position of the sentence in `instructions`, from 0",
    }
    inputs = {
        name: {"shape": list(value.shape), "dtype": str(value.dtype).removeprefix("torch."), "what": what[name]}
        for name, value in asked.items()
    }
    return {
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
        "action_bounds": spec.action_bounds,
        "fps": spec.fps,
        "compared": {"observations": PROBES, "max_difference": compared.difference, "of_up_to": compared.largest},
        "versions": {name: version(name) for name in ("provla", "torch", "onnx", "onnxruntime")},
    }
