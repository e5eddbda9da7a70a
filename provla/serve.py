"""python -m provla.serve checkpoint=outputs/<run>: a server that robots and simulators ask for chunks of actions."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from provla.core.errors import Interrupted
from provla.core.signals import early, starting

if starting(__name__):
    early()  # before the imports that take long

from hydra.core.hydra_config import HydraConfig

from provla.command.entry import command

LEROBOTS = ("lerobot_async", "checkpoint", "host", "port")


@command("serve", free=("scheduler", "bases"), paths=("checkpoint",))
def main(config: dict[str, Any], folder: Path, choices: dict[str, str]) -> None:
    """See conf/serve.yaml."""
    try:
        from provla.serving.start import Serving, serve
    except ModuleNotFoundError as error:
        if error.name not in ("msgpack", "websockets"):
            raise
        raise ValueError(f"provla.serve needs the package {error.name}: pip install 'provla[serve]'") from error
    from provla.core.checks import check_values
    from provla.core.progress import console

    valid = list(Serving.__annotations__)
    if unknown := [key for key in config if key not in valid]:
        raise ValueError(f"nothing reads {unknown[0]}={config[unknown[0]]!r}; valid: {', '.join(valid)}")
    check_values(Serving, config, "")
    asked = Serving(**config)
    if asked.lerobot_async:
        _check_read([str(one).lstrip("+").partition("=")[0] for one in HydraConfig.get().overrides.task])
        from provla.serving.lerobot_async import serve_lerobot

        serve_lerobot(asked.host, asked.port, asked.checkpoint, folder)
    else:
        try:
            serve(asked)
        except Interrupted as signal:  # how a server ends
            console.print(str(signal))
            sys.exit(signal.exit_code)


def _check_read(given: Sequence[str]) -> None:
    """`ValueError` for a key that LeRobot's server would not hear of."""
    if unread := [key for key in given if key not in LEROBOTS]:
        raise ValueError(
            f"{unread[0]} with lerobot_async=true: LeRobot's server reads nothing but {', '.join(LEROBOTS)}; its "
            "client says the rest"
        )


if __name__ == "__main__":
    main()
