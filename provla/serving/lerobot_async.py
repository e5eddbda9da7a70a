"""LeRobot's own asynchronous policy server (`lerobot.async_inference`), taught the type `provla`."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from provla.core.progress import console
from provla.serving.server import is_local

PLUGIN, TYPE = "lerobot_policy_provla", "provla"
WARNING = (
    "LeRobot's server unpickles what it is sent: whoever reaches this port runs whatever they like on this machine, "
    "and it knows no token. provla.serve without lerobot_async=true never unpickles"
)


def serve_lerobot(host: str, port: int, checkpoint: str | None, folder: Path) -> None:
    """Starts it, and serves until a signal. checkpoint: an export that its clients will name; None: theirs alone to
    know. folder: for LeRobot's log file.

    `ValueError` where the plugin or gRPC is missing, other machines would reach the port, or it is taken.
    """
    _check_place(host, port)
    fps = None if checkpoint is None else _export(Path(checkpoint).expanduser())
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.chdir(folder):  # its log file goes where it is first imported
        policy_server, config = _taught()
    console.print(WARNING, soft_wrap=True)
    if checkpoint is not None:
        console.print(
            f"the robot: python -m lerobot.async_inference.robot_client --server_address={host}:{port} "
            f"--policy_type={TYPE} --pretrained_name_or_path={Path(checkpoint).expanduser().resolve()} "
            f"--fps={fps or 30} --actions_per_chunk=… --robot.type=… --task=…",
            soft_wrap=True,
        )
    policy_server.serve(config(host=host, port=port, **({"fps": fps} if fps else {})))


def _check_place(host: str, port: int) -> None:
    try:
        address = str(socket.gethostbyname(host))
    except OSError as error:
        raise ValueError(f"host={host!r}: {error.strerror or error}") from error
    if not is_local(address):
        raise ValueError(
            f"host={host} with lerobot_async=true: {WARNING}. So it stays on 127.0.0.1; reach it from the robot by "
            f"ssh -L {port}:127.0.0.1:{port} <this machine>"
        )
    if not port:
        raise ValueError("port=0 with lerobot_async=true: LeRobot's server takes a port from 1 to 65535")
    try:
        socket.create_server((address, port)).close()  # gRPC would share a port that is taken, without a word
    except OSError as error:
        raise ValueError(f"host={host} port={port}: {os.strerror(error.errno or 0)}; choose another port") from error


def _export(folder: Path) -> int:
    """The control steps per second of a LeRobot export; `ValueError` where it is none."""
    try:
        if json.loads((folder / "config.json").read_text())["type"] != TYPE:
            raise ValueError(f"its type is not {TYPE}")
        return round(float(json.loads((folder / "policy" / "config.json").read_text())["spec"]["fps"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"checkpoint={str(folder)!r} is no export for LeRobot ({error!r}); make one by python -m provla.export "
            "checkpoint=<run> lerobot=true"
        ) from error


def _taught() -> tuple[Any, Any]:
    """LeRobot's module and its configuration class, where `provla` is one of the types that it takes."""
    try:
        version(PLUGIN)
    except PackageNotFoundError as error:
        raise ValueError(
            f"lerobot_async=true needs the package {PLUGIN}, by which LeRobot finds provla's policies; "
            "pip install 'provla[lerobot]' (in this repository: pip install -e plugins/lerobot_policy_provla)"
        ) from error
    try:
        from lerobot.async_inference import policy_server
        from lerobot.async_inference.configs import PolicyServerConfig
        from lerobot.async_inference.constants import SUPPORTED_POLICIES
    except ImportError as error:
        raise ValueError(f"lerobot_async=true: {error}; pip install 'provla[serve]'") from error
    from lerobot.configs.policies import PreTrainedConfig
    from lerobot.utils.import_utils import register_third_party_plugins

    register_third_party_plugins()
    if TYPE not in PreTrainedConfig.get_known_choices():
        raise ValueError(f"{PLUGIN} {version(PLUGIN)} is installed, but LeRobot has no policy type {TYPE} from it")
    if TYPE not in SUPPORTED_POLICIES:
        SUPPORTED_POLICIES.append(TYPE)  # the server's list of built-in types is all that stands in the way
    return policy_server, PolicyServerConfig
