"""A client, as openpi's is (`openpi_client.websocket_client_policy.WebsocketClientPolicy` serves as well, but wants
numpy 1): what a robot's loop needs, without torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from websockets.sync.client import connect

from provla.serving.wire import pack, unpack


class Client:
    """`Client("127.0.0.1", 8000).infer({"images": {camera: picture}, "state": state, "prompt": sentence})`.

    facts: what the server said of its policy on arrival. `RuntimeError` with the server's reason where it refuses.
    """

    def __init__(self, host: str, port: int, token: str = "") -> None:
        headers = {"Authorization": f"Api-Key {token}"} if token else None
        self._connection = connect(f"ws://{host}:{port}", compression=None, max_size=None, additional_headers=headers)
        self.facts: dict[str, Any] = unpack(self._connection.recv())

    def infer(self, observation: Mapping[str, Any]) -> dict[str, Any]:
        """actions (H,A) float32 in the robot's units, and server_timing in milliseconds."""
        self._connection.send(pack(observation))
        answer = self._connection.recv()
        if isinstance(answer, str):
            raise RuntimeError(answer)
        return unpack(answer)

    def close(self) -> None:
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
