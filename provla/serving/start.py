"""From a command's options to a server that answers until a signal ends it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt, Le

from provla.core.build import build
from provla.core.checks import Depth, Name, NonNegative, Seed, value_in
from provla.core.identity import PLAIN
from provla.core.machine import find_device, reproducible
from provla.core.precision import describe_precision
from provla.core.progress import console
from provla.core.trust import check_stored
from provla.core.types import Spec
from provla.policy.folder import find_policy, load_policy, run_beside
from provla.policy.parts import takes_anchors
from provla.serving.engine import Engine
from provla.serving.server import Door, Service, bound, is_local

Port = Annotated[int, Ge(0), Le(65535)]
TOKEN = "PROVLA_TOKEN"


@dataclass(frozen=True, kw_only=True)
class Serving:
    """conf/serve.yaml says what they do."""

    checkpoint: Name | None
    host: Name
    port: Port
    seed: Seed
    threads: Depth | None
    max_batch: Depth
    gather_ms: NonNegative
    max_clients: Depth
    max_message_mb: Annotated[float, Gt(0), Le(2000)]
    lerobot_async: bool
    source: Name | None
    scheduler: Mapping[str, Any]
    bases: Mapping[str, Name]
    trust: list[Name]
    device: Name
    data_dir: Name


Started = Callable[[int, Callable[[], None]], None]


def serve(asked: Serving, started: Started | None = None) -> None:
    """Serves a checkpoint's policy until a signal. started: told the port, once clients can come, and what ends it.

    `ValueError` for whatever can be known to be wrong before the first client comes.
    """
    if not asked.checkpoint:
        raise ValueError("checkpoint has no value; give checkpoint=<the folder of a run, its policy/, or an export>")
    token = os.environ.get(TOKEN, "")
    with closing(bound(asked.host, asked.port, token)) as place:  # before a policy is loaded for nothing
        device = find_device(asked.device)
        policy_folder = find_policy(Path(asked.checkpoint).expanduser())
        run = run_beside(policy_folder)
        check_stored(run, policy_folder.parent / "config.json", asked.trust)
        changes = {f"scheduler.{key}": value for key, value in asked.scheduler.items() if value is not None}
        policy, spec = load_policy(policy_folder, device, changes, asked.bases, asked.trust, asked.source)
        spec.check_driving()
        threads = asked.threads or run.get("threads") or torch.get_num_threads()
        with reproducible(threads, device, bool(value_in(run.get("trainer"), "deterministic"))):
            _serve(asked, policy, spec, device, place, token, run, started)


def _serve(
    asked: Serving,
    policy: Any,
    spec: Spec,
    device: torch.device,
    place: Any,
    token: str,
    run: Mapping[str, Any],
    started: Started | None,
) -> None:
    engine, anchors = Engine(policy, spec, device, asked.max_batch, asked.gather_ms / 1000), takes_anchors(policy)
    engine.warm()
    door = Door(token, asked.max_clients, round(asked.max_message_mb * 1e6))
    facts = told(asked, policy, spec, device, anchors, run) | {"max_message_bytes": door.bytes}
    service = Service(engine, spec, door, asked.seed, anchors, facts)
    address, port = place.getsockname()[:2]
    shown = f"[{address}]" if ":" in address else address
    with service.listening(place):
        console.print(
            f"serving {asked.checkpoint} at ws://{shown}:{port} (page: http://{shown}:{port}/); "
            + ("who asks shows the token" if token else "whoever is on this machine may ask")
            + "; Ctrl-C ends it",
            soft_wrap=True,
        )
        if not is_local(str(address)):
            console.print(
                f"{asked.host} is reached from other machines, and nothing is encrypted: pictures and the token can be "
                "read on the way; over a network that is not your own go through ssh -L or a proxy with TLS",
                soft_wrap=True,
            )
        if started:
            started(port, engine.stop)
        engine.run()


def told(
    asked: Serving, policy: Any, spec: Spec, device: torch.device, anchors: bool, run: Mapping[str, Any]
) -> dict[str, Any]:
    """What a client is told when it comes: what the policy wants to see, and what it answers."""
    steps = spec.n_obs_steps
    history = [steps] if steps > 1 else []
    return {
        "provla": version("provla"),
        "checkpoint": "/".join(Path(str(asked.checkpoint)).parts[-2:]),  # no client needs to know more of this machine
        "cameras": list(spec.cameras),
        **_pictures(spec, history),
        "state_shape": [*history, spec.state_size],
        "n_obs_steps": steps,
        "n_past_actions": spec.n_past_actions,
        "horizon": spec.horizon,
        "n_action_steps": run.get("n_action_steps", spec.n_action_steps),
        "action_size": spec.action_size,
        "joint_groups": spec.joint_groups,
        **({"source": spec.source} if spec.source else {}),
        "fps": spec.fps,
        "instructions": list(spec.instructions),
        "continues_chunks": anchors,
        "execution": type(build(run.get("execution", PLAIN), "execution")).__name__,
        "seed": asked.seed,
        "max_batch": asked.max_batch,
        "device": str(device),
        "precision": describe_precision(policy),
    }


def _pictures(spec: Spec, history: list[int]) -> dict[str, Any]:
    """What a client's pictures are; by camera where they differ."""
    sizes = {camera: list(size) for camera, size in spec.sizes.items()}
    shapes = {camera: [*history, *size, 3] for camera, size in sizes.items()}
    if isinstance(spec.image_size, Mapping):
        return {"image_size": sizes, "image_shape": shapes}
    return {"image_size": next(iter(sizes.values())), "image_shape": next(iter(shapes.values()))}
