"""Checkpoints: whatever happens to them, the last good one is found, and what is bad is said and never used."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from provla.core.files import write_text
from provla.core.manifest import Damaged, check_manifest, write_manifest
from provla.trainer.checkpoint import Checkpoints

CALLS = [(os, name) for name in ("replace", "rename", "symlink", "unlink", "remove", "rmdir", "mkdir")] + [
    (shutil, "rmtree")
]


class Death(BaseException):
    """Of the process: nothing of it runs any more."""


def tensors(step: int) -> dict[str, dict[str, Tensor]]:
    return {"weights": {"w": torch.full((5,), float(step))}, "optimizer": {"w:exp_avg": torch.arange(float(step))}}


def save(place: Checkpoints, step: int, best: bool = False) -> None:
    place.save(step, tensors(step), {"fit": {"step": step, "loss": float("inf")}}, best)


def step_of(place: Checkpoints, which: str = "latest") -> int | None:
    stored = place.load(which)
    if stored is None:
        return None
    step = int(stored[1]["fit"]["step"])
    assert all(
        torch.equal(stored[0][group][name], value)
        for group, part in tensors(step).items()
        for name, value in part.items()
    )
    return step


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.fixture
def dying(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], None]]:
    """`dying(n)`: the n-th change of the file system from now on is not done, nor is any after it. `dying(0)`: alive
    again.
    """
    left = [0, False]

    def watch(module: Any, name: str) -> None:
        real = getattr(module, name)

        def call(*args: Any, **options: Any) -> Any:
            if left[1]:
                raise Death
            if left[0]:
                left[0] -= 1
                if not left[0]:
                    left[1] = True
                    raise Death
            return real(*args, **options)

        monkeypatch.setattr(module, name, call)

    for module, name in CALLS:
        watch(module, name)

    def arm(number: int) -> None:
        left[:] = [number, False]

    yield arm
    arm(0)


def test_the_last_two_and_what_was_the_best_at_each_are_kept(tmp_path: Path) -> None:
    place = Checkpoints(tmp_path / "c", "me")
    assert step_of(place) is None
    for step in range(1, 7):
        save(place, step, best=step in (1, 3))
    assert names(tmp_path / "c") == {"step_0000003", "step_0000005", "step_0000006", "latest", "best"}
    assert (step_of(place), step_of(place, "best")) == (6, 3)
    save(place, 7, best=True)  # 3 was the best at step 6
    assert names(tmp_path / "c") == {"step_0000003", "step_0000006", "step_0000007", "latest", "best"}
    save(place, 8)
    assert names(tmp_path / "c") == {"step_0000007", "step_0000008", "latest", "best"}
    assert os.readlink(tmp_path / "c" / "best") == "step_0000007"


def test_links_are_for_people(tmp_path: Path) -> None:
    """Missing, dangling, pointing elsewhere, or a copied folder: the checkpoint is that of the highest step."""
    place = Checkpoints(tmp_path, "me")
    for step in (1, 2, 3):
        save(place, step, best=step == 2)
    for damage in ("step_0000009", "step_0000002", None, "folder"):
        for link in (tmp_path / "latest", tmp_path / "best"):
            link.unlink()
            if damage == "folder":
                shutil.copytree(tmp_path / "step_0000002", link)
            elif damage:
                link.symlink_to(damage)
        assert (step_of(Checkpoints(tmp_path, "me")), step_of(Checkpoints(tmp_path, "me"), "best")) == (3, 2)
        assert {name: os.readlink(tmp_path / name) for name in ("latest", "best")} == {
            "latest": "step_0000003",
            "best": "step_0000002",
        }


@pytest.mark.parametrize("step", [3, 2], ids=["another step", "the same step again"])
def test_a_death_at_any_change_of_the_file_system_loses_nothing(
    tmp_path: Path, dying: Callable[[int], None], step: int
) -> None:
    for number in range(1, 99):
        folder = tmp_path / str(number)
        place = Checkpoints(folder, "me")
        save(place, 1, best=True)
        save(place, 2)
        dying(number)
        try:
            save(place, step)
            break
        except Death:
            dying(0)
        assert step_of(Checkpoints(folder, "me")) in (2, step)
        assert names(folder) <= {f"step_000000{n}" for n in (1, 2, 3)} | {"latest", "best"}
        assert (folder / "latest").is_dir()
        save(Checkpoints(folder, "me"), 4)
        assert step_of(Checkpoints(folder, "me"), "best") == 1
    dying(0)
    assert number > 12


def test_a_death_while_the_first_one_is_written_is_a_start_from_zero(
    tmp_path: Path, dying: Callable[[int], None]
) -> None:
    place = Checkpoints(tmp_path / "c", "me")
    dying(5)
    with pytest.raises(Death):
        save(place, 1)
    dying(0)
    assert names(tmp_path / "c")
    assert step_of(place) is None
    assert not names(tmp_path / "c")


def flip(file: Path, rng: random.Random) -> None:
    data = bytearray(file.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    file.write_bytes(data)


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "truncated": lambda folder: os.truncate(folder / "weights.safetensors", 20),
    "missing": lambda folder: (folder / "optimizer.safetensors").unlink(),
    "no manifest": lambda folder: (folder / "manifest.json").unlink(),
    "no state": lambda folder: (folder / "state.json").unlink(),
    "empty": lambda folder: [path.unlink() for path in folder.iterdir()],
    "earlier": lambda folder: (folder / "manifest.json").write_text(json.dumps({"weights.safetensors": 100})),
    "another run": lambda folder: reseal(folder, identity="you"),
    "another step": lambda folder: reseal(folder, step=99),
    "names outside": lambda folder: rename(folder, "../../x"),
    "absolute name": lambda folder: rename(folder, "/etc/passwd"),
}
REASONS = {
    "truncated": "weights.safetensors has 20 bytes instead of",
    "missing": "optimizer.safetensors is missing",
    "no manifest": "manifest.json is missing",
    "earlier": "was it written by an earlier provla?",
    "another run": "manifest.json is of another run (you, this is me)",
    "another step": "is of step 99",
    "names outside": "names '../../x', which lies outside the folder",
    "absolute name": "names '/etc/passwd', which lies outside the folder",
}


def reseal(folder: Path, **facts: Any) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    write_manifest(folder, **{key: manifest[key] for key in ("step", "identity", "best")} | facts)


def rename(folder: Path, name: str) -> None:
    """As if somebody had made the manifest."""
    from provla.core.files import fingerprint

    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["sha256"]
    manifest["files"][name] = manifest["files"].pop("weights.safetensors")
    (folder / "manifest.json").write_text(json.dumps(manifest | {"sha256": fingerprint(manifest, 64)}))


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_bad_one_is_set_aside_and_the_one_before_is_used(
    tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    place = Checkpoints(tmp_path, "me")
    for step in (1, 2):
        save(place, step, best=step == 1)
    DAMAGES[damage](tmp_path / "step_0000002")
    assert step_of(Checkpoints(tmp_path, "me")) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "checkpoint step_0000002 is damaged: " in said
    assert "it is set aside as step_0000002.damaged" in said
    assert REASONS.get(damage, "") in said
    assert names(tmp_path) == {"step_0000001", "step_0000002.damaged", "latest", "best"}
    save(place, 2)
    DAMAGES[damage](tmp_path / "step_0000002")
    DAMAGES[damage](tmp_path / "step_0000001")
    for _ in range(2):  # nor at the next start
        with pytest.raises(
            ValueError,
            match=r"holds no valid checkpoint, only [\s\S]*step_0000002.damaged1[\s\S]*to start the run anew",
        ):
            Checkpoints(tmp_path, "me").load()


def test_a_flipped_bit_is_noticed_wherever_it_is(tmp_path: Path) -> None:
    rng = random.Random(0)
    place = Checkpoints(tmp_path, "me")
    save(place, 1, best=True)
    folder = tmp_path / "step_0000001"
    for file in [path for path in sorted(folder.iterdir()) for _ in range(12)]:
        kept = file.read_bytes()
        flip(file, rng)
        with pytest.raises(Damaged, match=file.name):
            place._read(folder)
        file.write_bytes(kept)
    assert step_of(place) == 1


def test_a_best_one_that_is_damaged_is_no_other_one(tmp_path: Path) -> None:
    place = Checkpoints(tmp_path, "me")
    for step in (1, 2, 3):
        save(place, step, best=step < 3)
    flip(tmp_path / "step_0000002" / "weights.safetensors", random.Random(0))
    with pytest.raises(
        ValueError, match="the best checkpoint was damaged: weights.safetensors has the right size, but not the content"
    ):
        place.load("best")


def test_deleted_checkpoints_are_no_start_from_zero(tmp_path: Path) -> None:
    place = Checkpoints(tmp_path, "me")
    save(place, 1)
    shutil.rmtree(tmp_path / "step_0000001")
    with pytest.raises(ValueError, match="holds no valid checkpoint, only latest"):
        place.load()


def test_links_out_of_the_run_are_refused_and_what_they_lead_to_is_left_alone(tmp_path: Path) -> None:
    """One run's resume took another's weights, and deleted its checkpoint, through a link."""
    theirs, mine = (Checkpoints(tmp_path / run / "checkpoints", "same") for run in ("theirs", "mine"))
    save(theirs, 7)
    before = {path: path.stat().st_mtime_ns for path in theirs.folder.rglob("*")}
    other = theirs.folder / "step_0000007"

    def refused(*calls: Callable[[], Any]) -> None:
        for call in calls:
            with pytest.raises(ValueError, match="is a link that leads out of"):
                call()
        assert {path: path.stat().st_mtime_ns for path in theirs.folder.rglob("*")} == before

    every = (mine.load, lambda: mine.load("best"), lambda: save(mine, 9), lambda: mine.adopt(other))
    (tmp_path / "mine").mkdir()
    mine.folder.symlink_to(theirs.folder)
    refused(*every)
    mine.folder.unlink()
    save(mine, 1)
    for name, target in (
        ("step_0000007", other),
        ("latest", other),
        ("step_0000001/weights.safetensors", other / "weights.safetensors"),
    ):
        (mine.folder / name).unlink(missing_ok=True)
        (mine.folder / name).symlink_to(target)
        refused(*every)
        (mine.folder / name).unlink()
    refused(lambda: Checkpoints(tmp_path / "new" / "checkpoints", "same").adopt(_with_link(tmp_path / "given", other)))


def _with_link(folder: Path, target: Path) -> Path:
    shutil.copytree(target, folder)
    (folder / "weights.safetensors").unlink()
    (folder / "weights.safetensors").symlink_to(target / "weights.safetensors")
    return folder


def test_a_run_reached_through_a_link_is_fine(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "disk")
    place = Checkpoints(tmp_path / "run" / "checkpoints", "me")
    save(place, 1)
    assert step_of(place) == 1


def test_what_is_adopted_is_checked(tmp_path: Path, dying: Callable[[int], None]) -> None:
    theirs = Checkpoints(tmp_path / "theirs", "me")
    save(theirs, 7, best=True)
    source = tmp_path / "theirs" / "latest"
    for number in range(1, 99):
        mine = Checkpoints(tmp_path / str(number), "me")
        dying(number)
        try:
            mine.adopt(source)
            break
        except Death:
            dying(0)
        assert not mine.begun or step_of(mine) == 7  # so a second start fetches again, or goes on
    dying(0)
    assert (step_of(mine), step_of(mine, "best")) == (7, 7)
    with pytest.raises(ValueError, match=r"is of another configuration \(me, this is you\)"):
        Checkpoints(tmp_path / "you", "you").adopt(source)
    flip(source / "weights.safetensors", random.Random(0))
    with pytest.raises(ValueError, match=r"latest is damaged: weights.safetensors has the right size"):
        Checkpoints(tmp_path / "new", "me").adopt(source)
    assert not Checkpoints(tmp_path / "new", "me").begun
    rename(source.resolve(), "../../x")
    with pytest.raises(ValueError, match="which lies outside the folder"):
        Checkpoints(tmp_path / "new", "me").adopt(source)


def test_a_manifest_names_what_is_read(tmp_path: Path) -> None:
    (tmp_path / "p" / "text").mkdir(parents=True)
    write_text(tmp_path / "p" / "text" / "tokenizer.json", "{}")
    write_manifest(tmp_path / "p", step=3)
    (tmp_path / "p" / "README.md").touch()  # nobody reads it
    assert check_manifest(tmp_path / "p")["step"] == 3
    (tmp_path / "p" / "text" / "added_tokens.json").touch()  # a tokenizer would
    with pytest.raises(Damaged, match="text/added_tokens.json is not named in manifest.json"):
        check_manifest(tmp_path / "p")
