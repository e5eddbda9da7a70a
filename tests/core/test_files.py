"""Files that are whole or not there; full disks in words."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import FAKE
from safetensors import SafetensorError
from safetensors.torch import save_file

from provla.core.errors import NoSpace, exit_code
from provla.core.files import atomic, check_space, refuse_links_out, tidy, write_json, write_text, writing
from provla.trainer.checkpoint import Checkpoints

Command = Callable[..., tuple[int, str, str]]


def test_what_stood_there_stays_until_the_new_is_whole(tmp_path: Path) -> None:
    write_text(tmp_path / "a" / "f.txt", "old")

    def dies() -> None:
        with atomic(tmp_path / "a" / "f.txt") as partial:
            partial.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        dies()
    assert (tmp_path / "a" / "f.txt").read_text() == "old"
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["f.txt"]
    with atomic(tmp_path / "a") as partial:
        partial.mkdir()
        write_text(partial / "g.txt", "new")
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["g.txt"]
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_link_is_replaced_in_one_step_and_not_what_it_leads_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "two"):
        write_text(tmp_path / name / "f", name)
    link, real, renames = tmp_path / "latest", os.replace, []
    monkeypatch.setattr(os, "replace", lambda a, b: (renames.append(b), real(a, b)))
    for name in ("one", "two"):
        with atomic(link) as partial:
            partial.symlink_to(name)
    assert renames == [link, link]
    assert (link / "f").read_text() == "two"
    with atomic(link) as partial:  # a folder takes the link's place
        partial.mkdir()
        write_text(partial / "f", "three")
    assert (tmp_path / "two" / "f").read_text() == "two"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "one", "two"]


def test_tidy_brings_back_what_a_death_left_aside(tmp_path: Path) -> None:
    write_text(tmp_path / ".policy-0a1b2c3d.old" / "f", "good")
    write_text(tmp_path / ".policy-0a1b2c3d.partial" / "f", "half")
    (tmp_path / ".latest-0a1b2c3d.old").symlink_to("gone")
    (tmp_path / "latest").symlink_to("policy")
    (tmp_path / ".hidden").touch()
    tidy(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".hidden", "latest", "policy"]
    assert (tmp_path / "policy" / "f").read_text() == "good"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "no space left on disk"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "the quota of this disk is used up"),
        (OSError(errno.EROFS, "Read-only file system"), "the disk is read-only"),
        (PermissionError(errno.EACCES, "Permission denied"), "writing there is not permitted"),
        (
            SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
            "no space left on disk",
        ),
        (RuntimeError("[Errno 28] No space left on device: avcodec_send_frame"), "no space left on disk"),
    ],
)
def test_whatever_library_meets_a_full_disk_the_words_are_the_same(
    tmp_path: Path, error: Exception, words: str
) -> None:

    def writer() -> None:
        with writing(tmp_path / "new" / "big.bin", 5_000_000), writing(tmp_path / "inner"):
            raise RuntimeError("the writer failed") from error

    with pytest.raises(
        NoSpace, match=rf"big.bin cannot be written: {words}; it takes 5.0 MB, and \S+ .B are free in \S+; free some"
    ) as caught:
        writer()
    assert exit_code(caught.value) == 1


def test_what_others_write_is_said_in_the_same_words(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hydra keeps its records before anything of provla runs."""
    real = os.mkdir

    def mkdir(path: Any, *args: Any, **options: Any) -> None:
        if "run" in str(path):
            raise OSError(errno.EROFS, "Read-only file system", str(path))
        real(path, *args, **options)

    monkeypatch.setattr(os, "mkdir", mkdir)
    code, _, err = command("train", *FAKE, f"hydra.run.dir={tmp_path / 'run'}")
    assert code == 1
    assert re.search(r"error: .*run\S* cannot be written: the disk is read-only; \S+ .B are free in", err)
    assert "Traceback" not in err


def test_other_errors_pass(tmp_path: Path) -> None:
    for error in (
        ValueError("no"),
        FileNotFoundError(errno.ENOENT, "gone"),
        PermissionError(errno.EACCES, "denied", "/etc/shadow"),
    ):
        with pytest.raises(type(error)) as caught, writing(tmp_path / "f"):
            raise error
        assert not isinstance(caught.value, NoSpace)


def test_space_is_looked_for_where_the_folder_will_lie(tmp_path: Path) -> None:
    check_space(tmp_path / "not" / "yet", 1, "nothing")
    with pytest.raises(
        NoSpace, match=r"two checkpoints will not fit into .*yet: it takes 1000000.0 GB, and \S+ .B are free in"
    ):
        check_space(tmp_path / "not" / "yet", 10**15, "two checkpoints")
    assert not (tmp_path / "not").exists()


def test_links_out_of_a_folder_are_named(tmp_path: Path) -> None:
    (tmp_path / "run" / "deep").mkdir(parents=True)
    (tmp_path / "run" / "inside").symlink_to("deep")
    (tmp_path / "link").symlink_to("run")
    refuse_links_out(tmp_path / "link")
    (tmp_path / "run" / "deep" / "plots").symlink_to(tmp_path)
    with pytest.raises(ValueError, match=r"deep/plots is a link that leads out of"):
        refuse_links_out(tmp_path / "link")
    refuse_links_out(tmp_path / "link", "inside", "absent")


@pytest.fixture
def filling(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """`filling(n)`: the n-th write from now on, and all after it, meet a full disk; half of it is written."""
    left = [10**9]

    def spend() -> None:
        left[0] -= 1
        if left[0] <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")

    def writes(path: Path, data: bytes) -> int:
        with path.open("wb") as file:
            file.write(data[: len(data) // 2])
            spend()
            return file.write(data[len(data) // 2 :])

    def saves(tensors: Any, path: Path) -> None:
        save_file(tensors, path)
        try:
            spend()
        except OSError as error:
            os.truncate(path, path.stat().st_size // 2)
            raise SafetensorError(f"Error while serializing: I/O error: {error.strerror} (os error 28)") from None

    monkeypatch.setattr(Path, "write_bytes", writes)
    monkeypatch.setattr("provla.policy.weights.save_file", saves)

    def arm(number: int) -> None:
        left[0] = number

    return arm


def test_a_disk_that_fills_up_during_a_save_leaves_the_checkpoints_before(
    tmp_path: Path, filling: Callable[[int], None]
) -> None:
    place = Checkpoints(tmp_path / "c", "me")

    def save(step: int) -> None:
        place.save(step, {"weights": {"w": torch.full((99,), float(step))}}, {"fit": {"step": step}}, True)

    save(1)
    for number in range(1, 9):
        filling(number)
        with contextlib.suppress(NoSpace):
            save(2)
            break
        filling(10**9)
        stored = place.load()
        assert stored is not None
        assert stored[1]["fit"]["step"] == 1
        assert sorted(path.name for path in place.folder.iterdir()) == ["best", "latest", "step_0000001"]
    assert number > 3
    filling(1)
    with pytest.raises(
        NoSpace, match=rf"{tmp_path}/c/step_0000003 cannot be written: no space left on disk; it takes 396 bytes, and"
    ):
        save(3)


def test_a_run_on_a_full_disk_says_so_and_goes_on_later(
    command: Command, tmp_path: Path, filling: Callable[[int], None]
) -> None:
    """One message, exit code 1, and the same command ends well when there is room."""
    run = tmp_path / "run"
    filling(12)
    code, _, err = command("train", *FAKE, f"hydra.run.dir={run}")
    assert code == 1, err
    assert err.startswith("error: ")
    assert "cannot be written: no space left on disk" in err
    assert "Traceback" not in err
    filling(10**9)
    code, out, err = command("train", *FAKE, f"hydra.run.dir={run}")
    assert code == 0, err
    assert "resuming from step" in out


def test_two_checkpoints_must_fit_before_the_training_starts(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 10**6 - 50_000, 50_000))
    code, _, err = command("train", *FAKE, f"hydra.run.dir={tmp_path / 'run'}")
    assert code == 1
    assert "two checkpoints will not fit into" in err
    assert "50.0 kB are free" in err


def test_what_is_not_finite_is_still_json(tmp_path: Path) -> None:
    write_json(tmp_path / "f.json", {"best": float("inf")})
    assert "Infinity" in (tmp_path / "f.json").read_text()


def test_a_link_is_written_without_touching_what_it_leads_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint that is linked was on the disk already, and nobody opens it to write."""
    (tmp_path / "step").mkdir()
    (tmp_path / "step" / "weights").write_bytes(b"kept")
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    with atomic(tmp_path / "latest") as partial:
        partial.symlink_to("step")
    assert (tmp_path / "latest" / "weights").read_bytes() == b"kept"
    assert not synced
    write_text(tmp_path / "file", "written")
    assert len(synced) == 1
