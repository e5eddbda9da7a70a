"""The websocket server, in a thread beside the policy's, and its page on the same port."""

from __future__ import annotations

import asyncio
import base64
import hmac
import ipaddress
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import torch
from websockets.asyncio.server import ServerConnection, serve
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from provla.core.build import first_line
from provla.core.progress import console
from provla.core.secrets import hide
from provla.core.types import Spec
from provla.serving import page
from provla.serving.board import Board, Client
from provla.serving.engine import Engine
from provla.serving.observed import observed
from provla.serving.wire import Refused, pack, unpack

ITSELF = ("127.0.0.1", "localhost", "[::1]")  # what this machine calls itself
SHORTEST = 16  # characters of a token


@dataclass(frozen=True)
class Door:
    """Who may come in: token, of whoever asks for more than /healthz; at most `clients` at a time, and messages of at
    most `bytes`.
    """

    token: str
    clients: int
    bytes: int

    def admits(self, given: str) -> bool:
        """By a request's Authorization: `Api-Key` (openpi's client), `Bearer`, or a browser's `Basic`, where the token
        is the password. Takes as long for any wrong one.
        """
        kind, _, key = given.partition(" ")
        if kind.lower() == "basic":
            with suppress(ValueError):
                key = base64.b64decode(key, validate=True).decode().partition(":")[2]
        return hmac.compare_digest(key.strip().encode(), self.token.encode()) or not self.token


def bound(host: str, port: int, token: str) -> socket.socket:
    """A socket that listens. `ValueError` for an address that is none or is taken, and for one that other machines
    reach where no token says who may ask.
    """
    if token and len(token) < SHORTEST:
        raise ValueError(
            f"PROVLA_TOKEN has {len(token)} characters, and whoever guesses it is let in; expected {SHORTEST} or more "
            "(python -c 'import secrets; print(secrets.token_urlsafe())')"
        )
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except (OSError, UnicodeError) as error:
        raise ValueError(
            f"host={host!r}: {getattr(error, 'strerror', None) or error}; valid: an address of this "
            "machine, such as 127.0.0.1, or 0.0.0.0 for all of them"
        ) from error
    if not token and not is_local(str(address[0])):
        raise ValueError(
            f"host={host} is reached from other machines, and PROVLA_TOKEN is not in the environment: anybody could "
            "see the cameras and ask the policy. Set it (python -c 'import secrets; print(secrets.token_urlsafe())'), "
            "or leave host=127.0.0.1 and reach it by ssh -L"
        )
    try:
        return socket.create_server((str(address[0]), port), family=family)
    except OSError as error:
        raise ValueError(
            f"host={host} port={port}: {os.strerror(error.errno or 0)}; choose another port, or 0 for any that is free"
        ) from error


def is_local(address: str) -> bool:
    """Whether no other machine reaches it."""
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


class Service:
    """Clients' messages to the engine and its answers back. seed: of a client's noise until it sends its own. facts:
    what a client is told on its arrival.
    """

    def __init__(self, engine: Engine, spec: Spec, door: Door, seed: int, anchors: bool, facts: dict[str, Any]) -> None:
        self._engine, self._spec, self._door, self._seed, self._anchors = engine, spec, door, seed, anchors
        self._facts, self.board = facts, Board(facts)
        engine.present = lambda: self.board.present

    @contextmanager
    def listening(self, place: socket.socket) -> Iterator[None]:
        """In this block clients are served, by a thread."""
        loop = asyncio.new_event_loop()
        ended, ready = asyncio.Event(), threading.Event()
        local = is_local(str(place.getsockname()[0]))

        async def serving() -> None:
            async with serve(
                self._client,
                sock=place,
                compression=None,  # pictures do not get smaller by it, and openpi's client asks for none
                max_size=self._door.bytes,
                origins=[None],  # no page of whatever site a browser shows may ask
                process_request=lambda connection, request: self._request(request, local),
                logger=_silent(),
            ):
                ready.set()
                await ended.wait()

        thread = threading.Thread(target=loop.run_until_complete, args=(serving(),), daemon=True)
        thread.start()
        if not ready.wait(10):
            raise RuntimeError("the thread that listens has not begun")
        try:
            yield
        finally:
            loop.call_soon_threadsafe(ended.set)
            thread.join(15)

    def _request(self, request: Request, local: bool) -> Response | None:
        """An answer to a request that is no client's, or to a client's that is refused; None lets it in."""
        path = request.path.partition("?")[0]
        if path == "/healthz":
            return _page(HTTPStatus.OK, b"OK\n", "text/plain; charset=utf-8")
        # Another host's name for this address: a page of another site that wants in by the browser here.
        if local and (request.headers.get("Host") or "").rpartition(":")[0] not in ITSELF:
            return _said(HTTPStatus.FORBIDDEN, "this server answers to 127.0.0.1 and localhost alone")
        if not self._door.admits(", ".join(request.headers.get_all("Authorization"))):
            answer = _said(
                HTTPStatus.UNAUTHORIZED,
                "the token is missing or wrong: it stands in the server's PROVLA_TOKEN, and goes into Authorization: "
                "Api-Key <token> (openpi's client: api_key=…; a browser: as the password)",
            )
            answer.headers["WWW-Authenticate"] = 'Basic realm="provla"'
            return answer
        if "websocket" not in request.headers.get("Upgrade", "").lower():
            return self._show(path)
        if self.board.present >= self._door.clients:
            return _said(HTTPStatus.SERVICE_UNAVAILABLE, f"{self._door.clients} clients are here (max_clients)")
        return None

    def _show(self, path: str) -> Response:
        if path == "/":
            return _page(HTTPStatus.OK, page.PAGE, "text/html; charset=utf-8", page.POLICY)
        if path == "/state.json":
            return _page(HTTPStatus.OK, json.dumps(self.board.told()).encode(), "application/json")
        number = path.removeprefix("/seen/").removesuffix(".png")
        client = self.board.clients.get(int(number)) if number.isdecimal() and len(number) < 10 else None
        if client is not None and (picture := client.picture()):
            return _page(HTTPStatus.OK, picture, "image/png")
        return _said(HTTPStatus.NOT_FOUND, "there are /, /state.json, /seen/<client>.png and /healthz")

    async def _client(self, connection: ServerConnection) -> None:
        client = self.board.join(_address(connection))
        console.print(f"client {client.number} from {client.address} is here ({self.board.present} in all)")
        generator = torch.Generator().manual_seed(self._seed)
        before: float | None = None
        why = ""
        try:
            await connection.send(pack(self._facts))
            while True:
                data = await connection.recv()
                begun = time.perf_counter()
                answer = await self._answer(client, data, generator, before)
                await connection.send(answer)
                before = time.perf_counter() - begun if isinstance(answer, bytes) else before
        except ConnectionClosed as closed:
            frame = closed.sent or closed.rcvd
            why = "" if frame is None or frame.code in (1000, 1001) else f": {frame.code} {frame.reason}"
        finally:
            self.board.leave(client)
            console.print(f"client {client.number} has left after {client.answers} answers{why}")

    async def _answer(
        self, client: Client, data: bytes | str, generator: torch.Generator, before: float | None
    ) -> bytes | str:
        """A packed answer, or in a text frame why there is none; the connection lives on."""
        begun = time.perf_counter()
        try:
            seen = observed(unpack(data), self._spec, self._anchors)
            if seen.seed is not None:
                generator.manual_seed(seen.seed)
            found = await asyncio.wrap_future(self._engine.ask(seen, generator))
        except Refused as error:
            reason = hide(str(error))
        except Exception as error:  # a mistake of this server's: told here and there, and no reason to end
            reason = hide(f"the server failed: {type(error).__name__}: {first_line(error)}")
            console.print(reason)
        else:
            took = time.perf_counter() - begun
            self.board.answered(client, seen, found, took)
            timing = {"infer_ms": 1000 * found.took, "wait_ms": 1000 * found.waited, "batch": found.together}
            if before is not None:
                timing["prev_total_ms"] = 1000 * before
            return pack({"actions": found.chunk, "server_timing": timing})
        self.board.refused(client, reason)
        return reason


def _address(connection: ServerConnection) -> str:
    host, port = (connection.remote_address or ("?", 0))[:2]
    return f"{host}:{port}"


def _page(status: HTTPStatus, body: bytes, kind: str, policy: str = "default-src 'none'") -> Response:
    headers = Headers(
        {
            "Content-Type": kind,
            "Content-Length": str(len(body)),
            "Content-Security-Policy": policy,
            "X-Content-Type-Options": "nosniff",
            "Cache-Control": "no-store",
            "Connection": "close",
        }
    )
    return Response(status.value, status.phrase, headers, body)


def _said(status: HTTPStatus, text: str) -> Response:
    return _page(status, f"{text}\n".encode(), "text/plain; charset=utf-8")


def _silent() -> logging.Logger:
    """websockets tells of every handshake that was cut off, with a traceback."""
    logger = logging.getLogger("provla.serving")
    logger.setLevel(logging.CRITICAL + 1)
    return logger
