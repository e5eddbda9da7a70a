"""A data set on the Hub, by a server that answers as the Hub does: what is asked of it, and what is not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import ROOT, write_lerobot

from provla.dataset.lerobot import LeRobotSource

COMMIT = "5ca1ab1e00000000000000000000000000000000"


class _Hub(BaseHTTPRequestHandler):
    """The data set acme/waves, of the server's `root`; keeps the names of files whose content it gave, in `given`."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: Any) -> None: ...

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        server: Any = self.server
        path = self.path.partition("?")[0]
        files = sorted(p.relative_to(server.root).as_posix() for p in server.root.rglob("*") if p.is_file())
        if path.startswith("/api/datasets/acme/waves/tree/"):
            return self._say([{"type": "file", "path": f, "size": 1, "oid": f"{i:040x}"} for i, f in enumerate(files)])
        if path.startswith("/api/datasets/acme/waves"):
            return self._say({"id": "acme/waves", "sha": COMMIT, "siblings": [{"rfilename": f} for f in files]})
        name = path.partition("/resolve/")[2].partition("/")[2]
        if not path.startswith("/datasets/acme/waves/resolve/") or name not in files:
            return self._say({"error": "nothing"}, 404)
        body = (server.root / name).read_bytes()
        if self.command == "GET":
            server.given.append(name)
        return self._answer(200, body, {"X-Repo-Commit": COMMIT, "ETag": f'"{name.replace("/", "-")}"'})

    def _say(self, value: Any, status: int = 200) -> None:
        self._answer(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


@pytest.fixture(scope="module")
def waves(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six episodes, each with files of its own, four and two of them in a file under meta/episodes; one of the two
    cameras says that it is a depth map."""
    root = write_lerobot(tmp_path_factory.mktemp("hub") / "waves", episodes=6, length=6, megabytes=1e-6)
    about = root / "meta" / "episodes" / "chunk-000" / "file-000.parquet"
    table = pq.read_table(about)
    pq.write_table(table.slice(0, 4), about)
    pq.write_table(table.slice(4), about.with_name("file-001.parquet"))
    info = json.loads((root / "meta" / "info.json").read_text())
    info["features"]["observation.images.wrist"]["info"]["is_depth_map"] = True
    (root / "meta" / "info.json").write_text(json.dumps(info))
    return root


@pytest.fixture
def hub(waves: Path) -> Iterator[Any]:
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), _Hub)
    server.root, server.given = waves, []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


PROGRAM = """
import json, sys
from provla.dataset.lerobot import LeRobotSource
for episodes in json.loads(sys.argv[2]):
    data = LeRobotSource(sys.argv[1], 0.4, 0, repo_id="acme/waves", num_episodes=episodes).load()
    print("FOUND", json.dumps([data.revision, data.starts.tolist(), data.actions.tolist(), list(data.frames)]))
"""


def load(hub: Any, place: Path, *episodes: int | None, endpoint: str = "") -> tuple[list[Any], str]:
    """What a process of its own loads, one after the other, and all that it says."""
    environment = {
        **os.environ,
        "HF_ENDPOINT": endpoint or f"http://127.0.0.1:{hub.server_port}",
        "HF_HOME": str(place / "hf"),
        "NO_PROXY": "127.0.0.1",
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(place / "data"), json.dumps(episodes)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment,
        check=False,
    )
    lines = [line.removeprefix("FOUND ") for line in done.stdout.splitlines() if line.startswith("FOUND ")]
    return [json.loads(line) for line in lines], " ".join((done.stdout + done.stderr).split())


def test_the_first_episodes_fetch_their_files_and_no_others(hub: Any, waves: Path, tmp_path: Path) -> None:
    found, said = load(hub, tmp_path, 2, 5, 2)
    assert len(found) == 3, said
    about = {"meta/info.json", "meta/stats.json", "meta/tasks.parquet"}
    rows, videos = "data/chunk-000/file-00{}.parquet", "videos/observation.images.front/chunk-000/file-00{}.mp4"
    expected = about | {f"meta/episodes/chunk-000/file-00{i}.parquet" for i in (0, 1)}  # of five: both
    expected |= {name.format(i) for name in (rows, videos) for i in range(5)}
    assert sorted(hub.given) == sorted(expected)  # each once, the sixth episode's never, of the depth camera nothing
    assert hub.given.index(rows.format(4)) > hub.given.index(videos.format(0))  # the first two alone at first
    assert "meta/episodes/chunk-000/file-001.parquet" in hub.given[hub.given.index(videos.format(1)) :]
    local = LeRobotSource(str(tmp_path / "local"), 0.4, 0, root=str(waves), num_episodes=5).load()
    for count, (revision, starts, actions, cameras) in zip((2, 5, 2), found, strict=True):
        assert revision == COMMIT
        assert cameras == ["front"]
        assert starts == list(range(0, 6 * count + 1, 6))
        assert np.array_equal(np.float32(actions), local.actions[: 6 * count])
    assert "the camera 'wrist' is left out: it is a depth map" in said
    assert "of acme/waves, 2 of 6 episodes were fetched: 4 files" in said


def test_a_whole_data_set_comes_without_the_cameras_that_nobody_reads(hub: Any, tmp_path: Path) -> None:
    found, said = load(hub, tmp_path, None)
    assert found, said
    assert len(found[0][1]) == 7
    assert sum(name.startswith("videos/observation.images.front/") for name in hub.given) == 6
    assert not any("wrist" in name for name in hub.given)


def test_more_episodes_than_there_are_fetch_nothing_but_what_says_so(hub: Any, tmp_path: Path) -> None:
    found, said = load(hub, tmp_path, 7)
    assert not found
    assert "dataset.num_episodes=7" in said
    assert "holds 6" in said
    assert all(name.startswith("meta/") for name in hub.given)
