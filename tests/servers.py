"""Small servers that stand in W&B's place: one that answers as W&B does, as far as an upload asks, one that is silent,
one with errors.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Wandb(BaseHTTPRequestHandler):
    """Keeps what it is told: the server's `asked` GraphQL operations with their variables, and the `lines` of its file
    streams by file.
    """

    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: Any) -> None: ...

    def do_GET(self) -> None:
        self._say({})

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self._say({})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"{}")
        server: Any = self.server
        if self.path.endswith("/graphql"):
            text, name = body.get("query", ""), body.get("operationName") or ""
            server.asked.append((name, body.get("variables") or {}))
            self._say({"data": self._answer(text, name, body.get("variables") or {})})
        else:
            for file, chunk in (body.get("files") or {}).items():
                kept = server.lines.setdefault(file, [])
                kept[chunk["offset"] :] = chunk["content"]
            server.complete = server.complete or bool(body.get("complete"))
            self._say({"limits": {}})

    def _answer(self, text: str, name: str, asked: dict[str, Any]) -> dict[str, Any]:
        project = {"name": "provla", "entity": {"name": "me"}}
        if "upsertBucket" in text:
            bucket = {
                "id": "1",
                "name": asked.get("name"),
                "displayName": asked.get("displayName") or "x",
                "project": project,
                "historyLineCount": 0,
            }
            return {"upsertBucket": {"bucket": bucket | {"sweepName": None, "config": "{}"}, "inserted": True}}
        if "viewer" in text:
            return {
                "viewer": {"id": "1", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}},
                "serverInfo": {},
            }
        if "createRunFiles" in text:
            names = asked.get("files") or []
            url = f"http://{self.headers['Host']}/storage/"
            return {
                "createRunFiles": {
                    "runID": "1",
                    "uploadHeaders": [],
                    "files": [{"name": n, "uploadUrl": url + n} for n in names],
                }
            }
        if "createArtifact(" in text:
            return {
                "createArtifact": {
                    "artifact": {
                        "id": "1",
                        "state": "COMMITTED",
                        "artifactSequence": {"id": "1", "latestArtifact": None},
                    }
                }
            }
        return {}

    def _say(self, found: dict[str, Any]) -> None:
        data = json.dumps(found).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


class Broken(Wandb):
    """500, whatever is asked."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_error(500)

    do_GET = do_POST  # type: ignore[assignment]


@contextmanager
def serving(kind: type[Wandb]) -> Iterator[Any]:
    """The server; `url` is its address."""
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    server.handle_error = lambda *_: None  # who asked has left
    server.daemon_threads = True
    server.asked, server.lines, server.complete = [], {}, False
    server.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def silent() -> Iterator[str]:
    """The address of a server that takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@contextmanager
def closed() -> Iterator[str]:
    """An address where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    yield f"http://127.0.0.1:{port}"
