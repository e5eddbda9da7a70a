"""python -m provla.serve checkpoint=outputs/<run>: a server that robots and simulators ask for chunks of actions."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from provla.core.errors import Interrupted
from provla.core.signals import early, starting

if starting(__name__):
    early()  # before the imports that take long

from provla.command.entry import command


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
        from provla.serving.lerobot_async import serve_lerobot

        serve_lerobot(asked.host, asked.port, asked.checkpoint, folder)
    else:
        try:
            serve(asked)
        except Interrupted as signal:  # how a server ends
            console.print(str(signal))
            sys.exit(signal.exit_code)


if __name__ == "__main__":
    main()
