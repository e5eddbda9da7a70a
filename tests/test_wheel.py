"""Installed, not only cloned: a wheel, used from a folder that has nothing to do with the repository."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT, TINY, made_once

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the commands of an environment that has the wheel, and this one's libraries without its provla."""
    return made_once(tmp_path_factory, "wheel", install) / "fresh" / "bin"


def install(place: Path) -> None:
    for part in ("provla", "hydra_plugins", "conf", "experiments"):
        shutil.copytree(ROOT / part, place / "source" / part, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, place / "source" / file)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    build = ["wheel", "./source", "--no-deps", "--no-build-isolation", "-w", "built"]
    subprocess.run([*pip, *build], cwd=place, check=True, capture_output=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", "fresh"], cwd=place, check=True)
    home = next((place / "fresh" / "lib").glob("python*/site-packages"))
    python = str(place / "fresh" / "bin" / "python")
    wheel = ["--python", python, "install", "--no-deps", "--no-index", *map(str, (place / "built").glob("*.whl"))]
    subprocess.run([*pip, *wheel], check=True, capture_output=True)
    (home / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")


@pytest.fixture
def run(installed: Path, tmp_path: Path) -> Run:
    """`run("provla-train", …)` in an empty folder, as a user who has the wheel alone."""

    def call(name: str, *arguments: str, cwd: Path = tmp_path, **more: str) -> subprocess.CompletedProcess[str]:
        env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PROVLA_ROOT", "VIRTUAL_ENV")}
        path = f"{installed}{os.pathsep}{os.environ['PATH']}"
        return subprocess.run(
            [str(installed / name) if name.startswith("provla-") else name, *arguments],
            cwd=cwd,
            env=env | {"PATH": path, "OMP_NUM_THREADS": "1"} | more,
            capture_output=True,
            text=True,
            check=False,
        )

    return call


def test_the_wheel_trains_a_world_of_the_working_folder_and_writes_there(run: Run, tmp_path: Path) -> None:
    code = "import provla; from pathlib import Path; print(Path(provla.__file__).parents[4])"
    where = run("python", "-c", code)
    assert "fresh" in where.stdout, where
    (tmp_path / "my_ideas.py").write_text("from provla.fusion import ConcatMLP\n\n\nclass Mine(ConcatMLP): ...\n")
    (tmp_path / "conf" / "fusion").mkdir(parents=True)
    (tmp_path / "conf" / "fusion" / "mine.yaml").write_text(
        "_target_: my_ideas.Mine\n_partial_: true\nwidth: 16\nhidden: 16\n"
    )
    options = [*TINY, "logger=none", "threads=1", "trainer.max_steps=2", "trainer.val_every=2"]
    done = run("provla-train", *options, "fusion=mine", "hydra.run.dir=outputs/run")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "outputs" / "run" / "result.json").is_file()
    assert "Traceback" not in done.stderr


def test_its_commands_know_the_shipped_studies_and_examples(run: Run) -> None:
    help_ = run("provla-train", "--help").stdout
    assert "Usage: provla-train [group=option …]" in help_
    assert "experiments   actions, aloha_sim, baselines, confirm, fusion" in help_
    assert "\n  provla-train fusion=perceiver quant=4bit" in help_
    planned = run("provla-report", "study=quant", "plan=true")
    assert planned.returncode == 0, planned.stderr
    assert "jobs (" in planned.stdout
    wrong = run("provla-train", "fusion=sum")
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("error: unknown option fusion=sum; valid: add, ")


def test_the_shell_completes_options(run: Run) -> None:
    script = (
        'eval "$(provla-train -sc install=bash)"; COMP_LINE="provla-train fusion=per"; COMP_POINT=${#COMP_LINE}\n'
        "COMP_WORDS=(provla-train fusion=per); COMP_CWORD=1; hydra_bash_completion; echo ${COMPREPLY[@]}"
    )
    assert run("bash", "-c", script).stdout.strip() == "fusion=perceiver"


def test_a_folder_that_cannot_be_written_is_one_clear_message(run: Run) -> None:
    done = run("provla-train", "dataset=fake", cwd=Path("/sys"))  # not even root can
    assert done.returncode == 1
    assert "outputs cannot be written: " in done.stderr
    assert "write elsewhere (hydra.run.dir=… for a run" in done.stderr
    assert "Traceback" not in done.stderr
