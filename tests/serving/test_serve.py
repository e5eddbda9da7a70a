"""A policy over the network: what a client gets, and what it cannot break."""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import cv2
import msgpack
import numpy as np
import pytest
import torch
from conftest import FAKE, ROOT, browsing, compose
from torch import nn
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect
from worlds import ToySuite

import provla
from provla.core.build import build
from provla.core.files import write_json
from provla.core.machine import reproducible
from provla.core.types import Anchor, Observation, Spec
from provla.dataset.cache import small
from provla.env.rollout import rollout
from provla.execution import RealTime, continued
from provla.policy.folder import save_policy
from provla.policy.parts import takes_anchors
from provla.serving import lerobot_async, start, wire
from provla.serving.client import Client
from provla.serving.engine import Answer, Engine
from provla.serving.observed import observed
from provla.serving.server import bound
from provla.serving.start import Serving
from provla.serving.wire import Refused, pack, unpack

Command = Callable[..., tuple[int, str, str]]
CPU, TOKEN = torch.device("cpu"), "a-token-of-enough-characters"
SENTENCE = "Open the drawer"
# Noise, anchors and sentences that a policy may not know, without transformers and diffusers.
PARTS = ["text=task_embedding", "scheduler=flow"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with an untrained policy."""
    folder, config = tmp_path_factory.mktemp("served") / "run", compose(*FAKE, *PARTS)
    spec = Spec(("front", "wrist"), (32, 32), 3, 4, 8, 1, 4, (SENTENCE, "Close it"), {}, 10.0)
    torch.manual_seed(0)
    policy = build(config["policy"], "policy", nn.Module, spec=spec, device=CPU)
    policy.fit_normalization(torch.randn(64, 3), torch.randn(64, 4))
    save_policy(folder / "policy", policy, config["policy"], spec)
    write_json(folder / "config.json", config)
    return folder


@contextmanager
def serving(run: Path, **options: Any) -> Iterator[int]:
    """The port of a server in a thread of this process."""
    given = compose(name="serve") | {"checkpoint": str(run), "port": 0, "device": "cpu"} | options
    found: Future[tuple[int, Callable[[], None]]] = Future()

    def work() -> None:
        try:
            start.serve(Serving(**given), lambda port, stop: found.set_result((port, stop)))
        except BaseException as error:
            if found.done():
                raise
            found.set_exception(error)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        port, stop = found.result(60)
        try:
            yield port
        finally:
            stop()
    finally:
        thread.join(60)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def port(run: Path) -> Iterator[int]:
    with serving(run) as port:
        yield port


def look(seed: int = 0, size: int = 32, **more: Any) -> dict[str, Any]:
    """A client's message."""
    rng = np.random.default_rng(seed)
    pictures = {name: rng.integers(0, 256, (size, size, 3), np.uint8) for name in ("front", "wrist")}
    return {"images": pictures, "state": rng.normal(size=3).astype(np.float32), "prompt": SENTENCE, **more}


def alone(policy: Any, message: dict[str, Any], generator: torch.Generator, anchor: Anchor | None = None) -> Any:
    """The chunk (H,A) of the policy here, without provla.serving."""
    pictures = np.ascontiguousarray([message["images"][name].transpose(2, 0, 1) for name in policy.spec.cameras])
    images, state = torch.from_numpy(pictures)[None, None], torch.from_numpy(message["state"])[None, None]
    held = {} if anchor is None else {"anchor": anchor}
    with reproducible(1, CPU, False):  # as an evaluation acts
        return policy.act(Observation(images, state, [message["prompt"]]), [generator], **held)[0].numpy()


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def get(port: int, path: str, **headers: str) -> tuple[bytes, dict[str, str]]:
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers=headers)
    with urllib.request.urlopen(request, timeout=10) as answer:
        return answer.read(), dict(answer.headers)


# What a client gets


def test_openpis_own_client_gets_what_the_policy_does(port: int, run: Path) -> None:
    packing = pytest.importorskip("openpi_client.msgpack_numpy", reason="pip install --no-deps openpi-client")
    from openpi_client.websocket_client_policy import WebsocketClientPolicy

    assert pack(look()) == packing.packb(look())  # the same bytes
    policy, noise = provla.load(run, device="cpu"), seeded(0)
    client = WebsocketClientPolicy("127.0.0.1", port)
    assert client.get_server_metadata()["cameras"] == ["front", "wrist"]
    for number in range(3):  # the noise goes on from chunk to chunk
        found = client.infer(look(number))
        assert np.array_equal(found["actions"], alone(policy, look(number), noise))
        assert found["actions"].dtype == np.float32
        timing = found["server_timing"]
        assert 0 < timing["infer_ms"] < 10_000
        assert ("prev_total_ms" in timing) == (number > 0)
    with pytest.raises(RuntimeError, match="camera 'wrist'"):
        client.infer({**look(), "images": {"front": look()["images"]["front"]}})
    assert client.infer(look(3))["actions"].shape == (8, 4)
    client._ws.close()


def test_a_client_gets_what_the_policy_does_however_it_says_it(port: int, run: Path) -> None:
    policy, message = provla.load(run, device="cpu"), look()
    wanted = alone(policy, message, seeded(7))
    channels_first = {name: picture.transpose(2, 0, 1) for name, picture in message["images"].items()}
    with Client("127.0.0.1", port) as client:
        assert client.facts["image_shape"] == [32, 32, 3]
        assert client.facts["instructions"] == [SENTENCE, "Close it"]
        for way in (
            message,
            {**message, "images": channels_first},
            {**message, "state": message["state"].tolist()},
            {**message, "state": message["state"].astype(np.float64)},
            {f"observation/{key}": value for key, value in (message["images"] | {"state": message["state"]}).items()}
            | {"prompt": SENTENCE},
        ):
            assert np.array_equal(client.infer({**way, "seed": 7})["actions"], wanted)
        assert not np.array_equal(client.infer(message)["actions"], wanted)  # the noise has gone on
        large = look(size=96)
        reduced = {name: small(picture, (32, 32)).transpose(1, 2, 0) for name, picture in large["images"].items()}
        found = client.infer({**large, "seed": 7})["actions"]
        assert np.array_equal(found, alone(policy, {**large, "images": reduced}, seeded(7)))


def test_several_looks_are_stacked_the_oldest_first(spec: Spec) -> None:
    rng = np.random.default_rng(0)
    pictures = {name: rng.integers(0, 256, (2, 32, 32, 3), np.uint8) for name in ("right", "left")}
    state = rng.normal(size=(2, 3))
    found = observed({"images": pictures, "state": state, "prompt": "x"}, spec, True)
    assert np.array_equal(found.images[:, 0], pictures["left"])  # the policy's order, not the client's
    assert np.array_equal(found.images[:, 1], pictures["right"])
    assert np.allclose(found.state, state)
    for bad in ({"images": {name: one[-1] for name, one in pictures.items()}, "state": state}, {"state": state[-1]}):
        with pytest.raises(Refused, match=r"2 of them stacked, the oldest first \(n_obs_steps=2\)"):
            observed({"images": pictures, "prompt": "x", **bad}, spec, True)


class Kept:
    """A policy that is asked row by row, as `max_batch=1` asks it; its chunks are kept."""

    def __init__(self, ask: Callable[[Observation, torch.Generator], Any]) -> None:
        self.ask, self.chunks = ask, list[np.ndarray]()

    def eval(self) -> None: ...

    def act(self, observation: Observation, generators: list[torch.Generator]) -> torch.Tensor:
        rows = [self.ask(observation.rows(slice(n, n + 1)), g) for n, g in enumerate(generators)]
        self.chunks += rows
        return torch.from_numpy(np.stack(rows))


def test_episodes_over_the_network_are_those_beside_the_policy(tmp_path: Path) -> None:
    config, suite = compose(*FAKE, *PARTS), ToySuite({}, each=2, workers=1)
    spec = Spec(("eye",), (16, 16), 3, 2, 8, 1, 4, ("go left", "go right"), {}, 10.0)
    policy = build(config["policy"], "policy", nn.Module, spec=spec, device=CPU)
    policy.fit_normalization(torch.randn(64, 3), torch.randn(64, 2) + 1)
    save_policy(tmp_path / "run" / "policy", policy, config["policy"], spec)
    clients: dict[int, Client] = {}  # one for each episode, which its noise tells apart

    def ask(seen: Observation, generator: torch.Generator) -> Any:
        number, begins = generator.initial_seed(), {}
        if number not in clients:
            clients[number], begins = Client("127.0.0.1", port), {"seed": number}
        picture, state = seen.images[0, 0, 0].permute(1, 2, 0).numpy(), seen.state[0, 0].numpy()
        message = {"images": {"eye": picture}, "state": state, "prompt": seen.instruction[0], **begins}
        return clients[number].infer(message)["actions"]

    beside = Kept(lambda seen, generator: policy.act(seen, [generator])[0].numpy())
    with reproducible(1, CPU, False):
        played = rollout(beside, suite, spec, 0, CPU)
    over = Kept(ask)
    with serving(tmp_path / "run", max_batch=1, threads=1) as port:
        found = rollout(over, suite, spec, 0, CPU)
    assert [(o.episode, o.ending, o.steps) for o in found] == [(o.episode, o.ending, o.steps) for o in played]
    assert len(over.chunks) > len(found)
    assert all(np.array_equal(a, b) for a, b in zip(over.chunks, beside.chunks, strict=True))


def test_a_chunk_continues_what_is_executed(port: int, run: Path) -> None:
    policy = provla.load(run, device="cpu")
    rest = alone(policy, look(1), seeded(1))[4:]
    actions, weight = continued(rest, 2, 8)
    track = RealTime(delay=2).begin(policy.spec)
    track.take(np.concatenate([np.zeros((4, 4), np.float32), rest]))
    told = track.anchor()
    assert told is not None
    assert np.array_equal(told[0], actions)  # as an evaluation with execution=rtc has it
    assert np.array_equal(told[1], weight)
    with Client("127.0.0.1", port) as client:
        assert client.facts["continues_chunks"]
        found = client.infer(look(seed=5, prev_chunk=rest, inference_delay=2) | {"seed": 3})["actions"]
    anchor = Anchor(torch.from_numpy(actions)[None], torch.from_numpy(weight)[None])
    assert np.array_equal(found, alone(policy, look(5), seeded(3), anchor))
    assert np.allclose(found[:2], rest[:2], atol=1e-5)
    assert not np.allclose(found[:2], alone(policy, look(5), seeded(3))[:2], atol=1e-2)


# Several clients


def engine_with(run: Path, messages: list[dict[str, Any]], most: int) -> list[Future[Answer]]:
    """Answers to those who had all asked before the first pass; each has its own noise."""
    policy = provla.load(run, device="cpu")
    engine = Engine(policy, policy.spec, CPU, most)
    asked = [engine.ask(observed(m, policy.spec, True), seeded(n)) for n, m in enumerate(messages)]

    def work() -> None:
        with reproducible(1, CPU, False):
            engine.run()

    thread = threading.Thread(target=work)
    thread.start()
    wait(asked, 60)
    engine.stop()
    thread.join(60)
    return asked


def test_an_answer_does_not_depend_on_who_else_asks(run: Path) -> None:
    policy, messages = provla.load(run, device="cpu"), [look(n) for n in range(6)]
    wanted = [alone(policy, message, seeded(n)) for n, message in enumerate(messages)]
    together = [future.result() for future in engine_with(run, messages, 4)]
    assert [answer.together for answer in together] == [4, 4, 4, 4, 2, 2]
    for answer, chunk in zip(together, wanted, strict=True):
        assert np.abs(answer.chunk - chunk).max() < 1e-5  # rounding alone
    for future, chunk in zip(engine_with(run, messages, 1), wanted, strict=True):
        assert np.array_equal(future.result().chunk, chunk)  # with max_batch=1 not even that


def test_a_pass_waits_a_moment_for_those_who_are_there(run: Path) -> None:
    policy = provla.load(run, device="cpu")
    seen = observed(look(), policy.spec, True)
    for present, together in ((2, 2), (1, 1)):  # who is alone waits for nobody
        engine = Engine(policy, policy.spec, CPU, 8, 5.0, lambda present=present: present)
        thread = threading.Thread(target=engine.run)
        thread.start()
        first = engine.ask(seen, seeded(0))
        if present == 1:
            first.result(4)
        second = engine.ask(seen, seeded(1))
        assert [future.result(60).together for future in (first, second)] == [together] * 2
        engine.stop()
        thread.join(60)
        with pytest.raises(Refused, match="the server ends"):
            engine.ask(seen, seeded(0)).result(1)


def test_chunks_that_continue_others_are_sampled_by_themselves(run: Path) -> None:
    held = {"prev_chunk": np.zeros((4, 4), np.float32), "inference_delay": 1}
    found = engine_with(run, [look(0), look(1, **held), look(2), look(3, **held)], 8)
    assert [future.result().together for future in found] == [2, 2, 2, 2]


def test_one_observation_that_fails_fails_no_other(run: Path) -> None:
    policy, messages = provla.load(run, device="cpu"), [look(n) for n in range(3)]
    messages[1]["prompt"] = "Sing"
    found = engine_with(run, messages, 8)
    with pytest.raises(Refused, match=r"the policy cannot answer this: .*Sing"):
        found[1].result()
    for n in (0, 2):
        assert np.array_equal(found[n].result().chunk, alone(policy, messages[n], seeded(n)))


def test_actions_that_are_not_finite_are_not_sent(run: Path) -> None:
    policy = provla.load(run, device="cpu")
    act = policy.act

    def broken(observation: Observation, generator: Any = None, anchor: Any = None) -> torch.Tensor:
        chunk = act(observation, generator)
        chunk[0, 3, 1] = float("nan")
        return chunk

    policy.act = broken
    engine = Engine(policy, policy.spec, CPU, 2)
    bad, good = (engine.ask(observed(look(n), policy.spec, True), seeded(n)) for n in range(2))
    thread = threading.Thread(target=engine.run)
    thread.start()
    with pytest.raises(Refused, match="not finite"):
        bad.result(60)
    assert good.result(60).chunk.shape == (8, 4)
    engine.stop()
    thread.join(60)


def test_many_clients_lose_nothing(port: int, run: Path) -> None:
    policy = provla.load(run, device="cpu")

    def robot(number: int) -> list[np.ndarray]:
        with Client("127.0.0.1", port) as client:
            return [client.infer(look(100 * number + n))["actions"] for n in range(5)]

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(robot, range(8)))
    for number, chunks in enumerate(found):
        noise = seeded(0)  # each client's own, whoever came before
        for n, chunk in enumerate(chunks):
            assert np.abs(chunk - alone(policy, look(100 * number + n), noise)).max() < 1e-5


def test_a_sampler_that_continues_nothing_says_so(run: Path, spec: Spec) -> None:
    policy = provla.load(run, device="cpu")
    assert takes_anchors(policy)
    policy.scheduler.sample = lambda head, context, shape, generator=None: torch.zeros(shape)
    assert not takes_anchors(policy)
    with pytest.raises(Refused, match="cannot continue a chunk"):
        observed(look(prev_chunk=np.zeros((2, 4)), inference_delay=1), policy.spec, False)


# Bad input: a clear word, and the server lives on


def without(message: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in message.items() if key not in keys}


def array_of(dtype: str, data: bytes, shape: list[int]) -> dict[bytes, Any]:
    return {b"__ndarray__": True, b"data": data, b"dtype": dtype, b"shape": shape}


FRONT = look()["images"]["front"]
BAD: dict[str, tuple[Any, str]] = {
    "a camera is missing": (look() | {"images": {"front": FRONT}}, "no picture of camera 'wrist': the policy sees"),
    "no camera": (without(look(), "images"), "no picture of camera 'front', 'wrist'"),
    "an unknown camera": (look() | {"images": {**look()["images"], "top": FRONT}}, "unknown camera 'top'"),
    "a wrong shape": (look() | {"images": {"front": FRONT, "wrist": FRONT[:16]}}, r"'wrist' is \(16, 32, 3\) uint8"),
    "too small": (look(size=16), r"\(16, 16, 3\) uint8: expected \(h, w, 3\) uint8 of 32×32, or larger"),
    "other proportions": (look() | {"images": {"front": FRONT, "wrist": np.zeros((48, 64, 3), "u1")}}, "proportions"),
    "floats": (look() | {"images": {"front": FRONT, "wrist": FRONT / 255}}, r"float64: .*round\(255 x\)"),
    "no picture": (look() | {"images": {"front": FRONT, "wrist": "hello"}}, r"camera 'wrist' is a str \('hello'\)"),
    "pictures that are none": (look(images=FRONT), r"images is \(32, 32, 3\) uint8: expected a map"),
    "a state too long": (look(state=np.zeros(4)), r"state is \(4,\) float64: expected \(3,\) finite numbers"),
    "a state that is not finite": (look(state=np.array([0, np.nan, 0])), "not all finite"),
    "no state": (without(look(), "state"), "state is missing"),
    "a ragged state": (look(state=[[1], [2, 3]]), "state is a list"),
    "no sentence": (without(look(), "prompt"), f"prompt is missing: .*trained on: {SENTENCE}"),
    "a sentence too long": (look(prompt="x" * 5000), "at most 4096 characters"),
    "a sentence it cannot know": (look(prompt="Sing"), "the policy cannot answer this: .*Sing"),
    "an unknown key": (look(promt="x"), "nothing reads 'promt'; did you mean prompt"),
    "said twice": (look() | {"observation/state": np.zeros(3)}, "state came twice"),
    "a seed that is none": (look() | {"seed": -1}, "seed is a int"),
    "a chunk without a delay": (look(prev_chunk=np.zeros((2, 4))), "go together"),
    "a chunk of another robot": (look(prev_chunk=np.zeros((2, 5)), inference_delay=1), r"expected \(k, 4\)"),
    "a delay longer than it": (look(prev_chunk=np.zeros((2, 4)), inference_delay=3), "from 0 to the 2 of prev_chunk"),
    "half a message": (pack(look())[: len(pack(look())) // 2], "no whole msgpack message"),
    "more than a message": (pack(look()) + b"\0", "no whole msgpack message"),
    "noise": (np.random.default_rng(0).bytes(500), "no whole msgpack message|a message that is a"),
    "nothing": (b"", "0 bytes that are no whole msgpack message"),
    "deeper than anybody goes": (b"\x91" * 100_000 + b"\xc0", "no whole msgpack message"),
    "a list that says it is long": (b"\xdd\xff\xff\xff\xff", "no whole msgpack message"),
    "no map": (msgpack.packb([1, 2]), "a message that is a list"),
    "text": ("hello", "a text frame"),
    "an array of objects": (look(state=array_of("|O", b"\0" * 8, [1])), r"dtype '\|O': .*unpickled, which this server"),
    "an array of records": (look(state=array_of("i4,O", b"\0" * 12, [1])), "arrays hold numbers"),
    "bytes that are not there": (look(state=array_of("<f8", b"", [2**39])), "has 4398046511104 bytes, and 0 came"),
    "a negative shape": (look(state=array_of("<f8", b"", [-1])), "an array without bytes or shape"),
    "msgpack-numpy's own": (look(state={b"nd": True, b"kind": b"O", b"data": b""}), "as the package msgpack-numpy"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named_and_the_connection_lives_on(name: str, port: int) -> None:
    message, reason = BAD[name]
    with connect(f"ws://127.0.0.1:{port}", compression=None, max_size=None) as connection:
        unpack(connection.recv())
        for _ in range(2):
            connection.send(message if isinstance(message, bytes | str) else pack(message))
            answer = connection.recv()
            assert isinstance(answer, str)
            assert re.search(reason, answer), answer
            assert "Traceback" not in answer
        connection.send(pack(look()))
        assert unpack(connection.recv())["actions"].shape == (8, 4)


def test_no_array_of_objects_is_packed_and_none_unpacked() -> None:
    with pytest.raises(TypeError):
        pack({"state": np.array([object()])})
    assert "pickle" not in sys.modules[wire.__name__].__dict__
    assert unpack(pack({"a": np.float32(1.5), "b": np.arange(3, dtype="<i2")}))["b"].dtype == np.int16


def test_a_hundred_megabytes_are_sent_away(port: int) -> None:
    with connect(f"ws://127.0.0.1:{port}", compression=None, max_size=None) as connection:
        assert unpack(connection.recv())["max_message_bytes"] == 16_000_000
        with suppress(ConnectionClosed):  # it may be sent away before it has said all
            connection.send(b"\0" * 100_000_000)
        with pytest.raises(ConnectionClosed, match="1009 .*exceeds limit of 16000000 bytes"):
            connection.recv()
    with Client("127.0.0.1", port) as client:
        assert client.infer(look())["actions"].shape == (8, 4)


def test_a_client_that_goes_in_the_middle_of_a_message(port: int) -> None:
    key = base64.b64encode(bytes(16)).decode()
    for sent in (b"", b"\x82\xfe\xff\xff\0\0\0\0half", b"not a frame at all"):
        with socket.create_connection(("127.0.0.1", port)) as raw:
            raw.sendall(
                f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
            )
            assert b"101 Switching Protocols" in raw.recv(100)
            raw.sendall(sent)
    with socket.create_connection(("127.0.0.1", port)) as raw:
        raw.sendall(b"half a handsha")
    with Client("127.0.0.1", port) as client:
        assert client.infer(look())["actions"].shape == (8, 4)


# Who may come in


def test_a_wrong_token_is_refused_and_health_needs_none(
    run: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PROVLA_TOKEN", TOKEN)
    with serving(run, max_clients=1) as port:
        for wrong in ("", "a-token", TOKEN + "x", "ä" * 20):
            with pytest.raises(InvalidStatus) as refused:
                connect(f"ws://127.0.0.1:{port}", additional_headers={"Authorization": f"Api-Key {wrong}"})
            assert refused.value.response.status_code == 401
            assert b"the token is missing or wrong" in refused.value.response.body
        for path in ("/", "/state.json", "/seen/1.png"):
            with pytest.raises(urllib.error.HTTPError, match="401"):
                get(port, path)
        assert get(port, "/healthz")[0] == b"OK\n"
        password = base64.b64encode(f"me:{TOKEN}".encode()).decode()  # as a browser sends it
        assert json.loads(get(port, "/state.json", Authorization=f"Basic {password}")[0])["answers"] == 0
        with Client("127.0.0.1", port, TOKEN) as client:
            assert client.infer(look())["actions"].shape == (8, 4)
            state = get(port, "/state.json", Authorization=f"Bearer {TOKEN}")[0].decode()
            with pytest.raises(InvalidStatus, match="503"):  # one is here, and one may be
                Client("127.0.0.1", port, TOKEN)
    out = "".join(capfd.readouterr())
    assert TOKEN not in state + out
    assert "who asks shows the token" in out


@pytest.mark.parametrize(
    ("arguments", "token", "reason"),
    [
        (["host=0.0.0.0"], "", "is reached from other machines, and PROVLA_TOKEN is not in the environment"),
        (["host=0.0.0.0"], "short", "PROVLA_TOKEN has 5 characters"),
        (["host=nowhere.invalid"], "", "host='nowhere.invalid': "),
        (["host=192.0.2.1"], TOKEN, "host=192.0.2.1 port=8000: Cannot assign requested address"),
        (["port=70000"], "", "port=70000: expected a whole number from 0 to 65,535"),
        (["checkpoint=null"], "", "checkpoint has no value"),
        (["checkpoint=nothing", "port=0"], "", "holds no policy"),
        (["max_batch=0"], "", "max_batch=0: expected"),
        (["scheduler.nothing=1", "port=0"], "", "the stored policy has no scheduler.nothing"),
        (["+nothing=1"], "", "nothing reads nothing=1"),
    ],
)  # fmt: skip
def test_a_server_that_cannot_start_says_why(
    arguments: list[str], token: str, reason: str, run: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROVLA_TOKEN", token)
    code, _, err = command("serve", f"checkpoint={run}", *arguments)
    assert code == 2
    assert reason in " ".join(err.split())


def test_a_port_in_use_is_named(run: Path, port: int, command: Command) -> None:
    code, _, err = command("serve", f"checkpoint={run}", f"port={port}")
    assert code == 2
    assert f"port={port}: Address already in use; choose another port, or 0 for any that is free" in " ".join(
        err.split()
    )


def test_a_token_opens_other_addresses() -> None:
    with bound("0.0.0.0", 0, TOKEN) as place:
        assert place.getsockname()[0] == "0.0.0.0"


# The page


def test_the_page_shows_what_a_client_sees_and_was_sent(run: Path) -> None:
    with serving(run) as port, Client("127.0.0.1", port) as client:
        sent = look(4)
        chunk = client.infer(sent)["actions"]
        with pytest.raises(RuntimeError):
            client.infer(without(sent, "state"))
        page, headers = get(port, "/")
        assert "connect-src 'self'; img-src 'self'" in headers["Content-Security-Policy"]
        assert b"http://" not in page.replace(b"http://www.w3.org/2000/svg", b"")
        state = json.loads(get(port, "/state.json")[0])
        assert (state["present"], state["answers"], state["errors"]) == (1, 1, 1)
        assert 0 < state["latency_ms"]["p50"] <= state["latency_ms"]["p99"] < 10_000
        (row,) = state["clients"]
        assert row["prompt"] == SENTENCE
        assert np.allclose(row["chunk"], chunk, atol=1e-4)
        assert "state is missing" in row["last_error"]
        picture = cv2.imdecode(np.frombuffer(get(port, "/seen/1.png")[0], np.uint8), cv2.IMREAD_COLOR)
        assert picture is not None
        assert np.array_equal(picture[:, :, ::-1], np.concatenate([sent["images"][n] for n in ("front", "wrist")], 1))
        for path, headers, status in (
            ("/seen/9.png", {}, 404),
            ("/../../etc/passwd", {}, 404),
            ("/", {"Host": "evil.example:80"}, 403),
        ):
            with pytest.raises(urllib.error.HTTPError, match=str(status)):
                get(port, path, **headers)
        with pytest.raises(InvalidStatus, match="403"):  # a page of another site, in a browser of this machine
            connect(f"ws://127.0.0.1:{port}", origin="http://evil.example")  # type: ignore[arg-type]


def test_the_page_draws_in_a_browser(run: Path) -> None:
    with browsing() as page, serving(run) as port, Client("127.0.0.1", port) as client:
        client.infer(look())
        page.goto(f"http://127.0.0.1:{port}/")
        page.wait_for_selector("article img")
        assert page.locator("article polyline").count() == 4
        assert page.evaluate("document.querySelector('article img').naturalWidth") == 64


# As a process


def test_the_command_serves_until_a_signal(run: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "provla.serve", f"checkpoint={run}", "port=0", "device=cpu"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if "serving" in line:
            break
    port = int("".join(lines).rpartition("page: http://127.0.0.1:")[2].partition("/")[0])
    with Client("127.0.0.1", port) as client:
        found = client.infer(look() | {"seed": 2})["actions"]
        assert np.abs(found - alone(provla.load(run, device="cpu"), look(), seeded(2))).max() < 1e-5
        process.send_signal(signal.SIGTERM)
        with pytest.raises(ConnectionClosed, match="1001|1006"):
            client._connection.recv(timeout=30)
    assert process.wait(30) == 128 + signal.SIGTERM
    assert "Traceback" not in process.stdout.read()


# LeRobot's own server


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["host=0.0.0.0"], "host=0.0.0.0 with lerobot_async=true: LeRobot's server unpickles what it is sent"),
        (["port=0"], "takes a port from 1 to 65535"),
        (["checkpoint=here"], "is no export for LeRobot"),
        (["max_batch=4"], "max_batch with lerobot_async=true: LeRobot's server reads nothing but"),
    ],
)
def test_lerobots_server_is_refused_where_it_cannot_be(arguments: list[str], reason: str, command: Command) -> None:
    code, _, err = command("serve", "lerobot_async=true", *arguments)
    assert code == 2
    assert reason in " ".join(err.split())


def test_lerobots_server_needs_the_plugin(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lerobot_async, "PLUGIN", "lerobot_policy_that_nobody_installed")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code, _, err = command("serve", "lerobot_async=true", f"port={port}")
    assert code == 2
    assert "needs the package lerobot_policy_that_nobody_installed" in err
    assert "pip install 'provla[lerobot]'" in " ".join(err.split())


@pytest.mark.slow
def test_lerobots_server_acts_as_the_policy_does(run: Path, tmp_path: Path) -> None:
    """Its own server in a process, asked as `RobotClient` asks."""
    folder = pytest.importorskip("provla.plugin.folder", reason="needs plugins/lerobot_policy_provla")
    pytest.importorskip("lerobot_policy_provla")
    import pickle

    import grpc
    from lerobot.async_inference.helpers import RemotePolicyConfig, TimedObservation
    from lerobot.transport import services_pb2, services_pb2_grpc
    from lerobot.transport.utils import send_bytes_in_chunks

    folder.export_lerobot(run / "policy", tmp_path / "export", CPU, {}, [])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    asked = ["lerobot_async=true", f"checkpoint={tmp_path / 'export'}", f"port={port}"]
    server = subprocess.Popen(
        [sys.executable, "-m", "provla.serve", *asked],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        channel = grpc.insecure_channel(f"127.0.0.1:{port}")
        grpc.channel_ready_future(channel).result(60)
        stub = services_pb2_grpc.AsyncInferenceStub(channel)
        stub.Ready(services_pb2.Empty())
        joints = ["a", "b", "c"]
        features = {
            "observation.state": {"dtype": "float32", "shape": (3,), "names": joints},
            **{
                f"observation.images.{name}": {"dtype": "image", "shape": (32, 32, 3), "names": ["h", "w", "c"]}
                for name in ("front", "wrist")
            },
        }
        wanted = RemotePolicyConfig("provla", str(tmp_path / "export"), features, 8, "cpu")
        stub.SendPolicyInstructions(services_pb2.PolicySetup(data=pickle.dumps(wanted)))
        message = look()
        seen = dict(zip(joints, message["state"], strict=True)) | message["images"] | {"task": SENTENCE}
        timed = pickle.dumps(TimedObservation(timestamp=0.0, timestep=0, observation=seen, must_go=True))
        stub.SendObservations(send_bytes_in_chunks(timed, services_pb2.Observation, log_prefix="", silent=True))
        found = pickle.loads(stub.GetActions(services_pb2.Empty()).data)
    finally:
        server.terminate()
        out = server.communicate(timeout=60)[0]
    assert [action.timestep for action in found] == list(range(8)), out
    chunk = torch.stack([action.action for action in found]).numpy()
    assert np.isfinite(chunk).all()
    assert chunk.shape == (8, 4)
    assert server.returncode == 128 + signal.SIGTERM
    assert "unpickles what it is sent" in " ".join(out.split())
    assert f"--pretrained_name_or_path={tmp_path / 'export'}" in "".join(out.split())
