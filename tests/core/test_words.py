"""Every mistake ends in one message: the key, what was found, what is expected. More of them:
benchmarks/faults/fault_words.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import FAKE

from provla.core.checks import Channels, Count, Fraction, check, check_values
from provla.core.files import ROOT

Command = Callable[..., tuple[int, str, str]]

# An override → what the message has to hold besides the key.
MISTAKES = {
    "trainer.lr=abc": "'abc': expected a number",
    "trainer.betas=0.9": "0.9: expected a list of 2",
    "trainer.max_steps=true": "true: expected a whole number",
    "trainer.keep=lates": "did you mean",
    "trainer.batch_size=100000": "100000",
    "dataset.val_fraction=abc": "'abc': expected a number",
    "head.channels=64": "64: expected a list",
    "fusion.width=a": "'a': expected a whole number",
    "scheduler.num_inference_steps=a": "'a': expected a whole number",
    "text.config.hidden_size=63": "look at the values of text",
    "horizon=0": "0: expected a whole number",
    "eval_episodes=-1": "-1: expected a whole number",
    "seed=1.5": "1.5: expected a whole number",
    "threads=0": "0: expected a whole number",
}


def test_every_wrong_value_gets_one_message_before_anything_slow(command: Command, tmp_path: Path) -> None:
    for number, (line, said) in enumerate(MISTAKES.items()):
        key = line.partition("=")[0]
        fake = [one for one in FAKE if one.partition("=")[0] != key]
        code, out, err = command("train", *fake, line, f"hydra.run.dir={tmp_path / str(number)}")
        assert code == 2, (line, out, err)
        assert len(re.findall(r"^error: ", err, re.MULTILINE)) == 1, (line, err)
        assert "Traceback" not in err + out, line
        assert key.removesuffix(".config.hidden_size") in err, (line, err)
        assert said in err, (line, err)
        assert "training  " not in out, line


def test_a_type_says_what_it_expects() -> None:
    for kind, wrong, said in (
        (Count, 0, "expected a whole number from 1 to 1,000,000,000"),
        (Count, True, "k=true: expected a whole number"),
        (Count, "3", "k='3': expected a whole number"),
        (Fraction, 1.0, "expected a number of at least 0 and below 1"),
        (Fraction, float("nan"), "expected a number"),
        (Channels, 12, "divisible by 8"),
    ):
        with pytest.raises(ValueError, match=re.escape(said)):
            check(kind, wrong, "k")
    check(Fraction, 0, "k")  # a whole number is a number


def test_an_objects_own_signature_is_what_is_checked() -> None:
    class Mine:
        def __init__(self, size: Count, scale: float | None = None) -> None: ...

    check_values(Mine, {"size": 3, "scale": None}, "mine")
    with pytest.raises(ValueError, match=r"mine\.scale='x': expected a number, or null"):
        check_values(Mine, {"size": 3, "scale": "x"}, "mine")


def test_several_processes_are_refused(command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    code, _, err = command("train", *FAKE, f"hydra.run.dir={tmp_path / 'run'}")
    assert code == 2
    assert "WORLD_SIZE" in err
    assert not (tmp_path / "run" / "config.json").exists()


def test_each_command_has_its_name_and_its_help(command: Command) -> None:
    for name, example in (
        ("train", "python -m provla.train fusion=perceiver"),
        ("evaluate", "python -m provla.evaluate checkpoint="),
        ("report", "python -m provla.report study="),
        ("record", "python -m provla.record"),
        ("analyze", "python -m provla.analyze"),
        ("export", "python -m provla.export checkpoint="),
    ):
        code, out, err = command(name, "--help")
        assert code == 0, err
        assert example in out, name
        assert "powered by Hydra" not in out


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "env=metaworld dataset=recorded",
            "env.tasks takes its value from itself, by a circle; choose options that fit",
        ),
        ("env=none dataset=recorded", "dataset.world takes its value from env.world, which this env does not have; "),
        ("env=gym dataset=fake", "env.id has no value; give env.id=…"),
    ],
)
def test_options_that_do_not_fit_together_are_told_so(line: str, message: str, command: Command) -> None:
    code, _, err = command("record", *line.split())
    assert code == 2
    assert err.startswith(f"error: {message}"), err


@pytest.mark.parametrize(
    ("group", "message"),
    [
        ("env", "env: str has no episodes, embodiment, max_episode_steps, make; a suite needs episodes, "),
        ("trainer", "trainer: str has no fit, total_steps, check_samples; a trainer needs fit, "),
        ("logger", "logger: str has no start, log, finish; a logger needs start, "),
        ("dataset", "dataset: str has no load, val_fraction, split_seed; a dataset needs load, "),
    ],
)
def test_what_a_group_cannot_use_is_named(group: str, message: str, command: Command, tmp_path: Path) -> None:
    (tmp_path / "conf" / group).mkdir(parents=True)
    (tmp_path / "conf" / group / "odd.yaml").write_text("_target_: os.getcwd\n")
    line = [one for one in FAKE if not one.startswith((group, "logger"))]
    line += ["env=none"] if group == "dataset" else []
    code, _, err = command("train", *line, f"{group}=odd")
    assert code == 2, err
    assert message in err


def test_what_is_no_node_and_no_name_is_told_so(command: Command, tmp_path: Path) -> None:
    code, _, err = command("train", *FAKE, "env=[1]")
    assert (code, err) == (2, "error: the option of a group is a name, such as env=none, or a list of names\n")
    (tmp_path / "conf" / "trainer").mkdir(parents=True)
    for text, shown in (("trainer: [1]", "[1]"), ("trainer: 3", "3")):
        (tmp_path / "conf" / "trainer" / "odd.yaml").write_text(f"# @package _global_\n{text}\n")
        line = [one for one in FAKE if not one.startswith("trainer")]
        code, _, err = command("train", *line, "trainer=odd")
        assert (code, err) == (2, f"error: trainer={shown}: expected a node with a _target_\n")


def test_what_does_not_merge_is_told_so_and_how_it_is_replaced(command: Command, tmp_path: Path) -> None:
    line = [*FAKE, "experiments=language", "text=none", "hydra.run.dir=run"]
    code, _, err = command("train", *line, "perturb={noise:1}")
    assert code == 2
    assert err.startswith("error: perturb={noise:1} cannot be merged with what a configuration file gives for perturb")
    assert err.endswith("; to replace it: ~perturb '+perturb={noise:1}'\n")
    _, _, err = command("train", *FAKE, "trainer={lrr:1}")
    assert err.startswith("error: unknown key 'trainer.lrr'; did you mean trainer.lr? valid here: batch_size, "), err
    _, _, err = command("train", *line, "~perturb", "+perturb={noise:1}", "objective=auto")
    assert "perturb={'noise': 1}: this run has no simulation" in err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("train --env.workers=1", "--env.workers=1 is no flag; a key has no dashes: env.workers=1"),
        ("serve --prot 80", "--prot is no flag; "),
        ("record --cfg jbo", "argument --cfg/-c: invalid choice: 'jbo'"),
        ("train --exp=job.pickle", "--experimental-rerun loads a pickle"),
        ("train trainer.lr", "trainer.lr is no override; give trainer.lr=<value>"),
        ("train seed=1,2", "seed=1,2: several values are a sweep, which -m starts; a list is seed=[1,2]"),
        ("evaluate env=metaworld", "this command chooses no option of env (--help lists those it chooses); where it "),
        ("train ~no_such", "~no_such: there is no no_such to leave out; "),
        ("train +env=metaworld", "env has an option already; give env=metaworld, without a +"),
        ("train trainer.lr=(1", "trainer.lr=(1 cannot be read (extraneous input '('); "),
        ("train +seed=1", "seed has a value already; give seed=…, without a +"),
        ("train trainer=[smoke,smke]", "unknown option trainer=smke; "),
        (
            "train -m env=none,metaworld=2",
            "an override cannot be read (mismatched input '=' expecting <EOF>); ",
        ),
        ("record env=metawrld", "unknown option env=metawrld; valid: "),
        ("export no_such=1", "unknown key 'no_such'; valid here: device, "),
        ("export bases.vision=x", "checkpoint has no value; "),
        ("train seed=0,1 -m no_such=1", "unknown key 'no_such'; valid here: device, "),
    ],
)
def test_what_is_on_no_command_line_is_named(line: str, message: str, command: Command) -> None:
    name, *arguments = line.split()
    code, _, err = command(name, *arguments)
    assert (code, err[: len(message) + 7]) == (2, f"error: {message}")


def test_a_wrong_key_is_composed_once(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    from hydra._internal import config_loader_impl

    composed: list[str] = []
    made = config_loader_impl.create_defaults_list

    def counted(**given: Any) -> Any:
        composed.append(given["config_name"])
        return made(**given)

    monkeypatch.setattr(config_loader_impl, "create_defaults_list", counted)
    for name in ("train", "evaluate"):
        assert command(name, "no_such=1")[0] == 2
    assert composed == ["train", "evaluate"]


def test_flags_stand_before_between_and_after_overrides(command: Command) -> None:
    shown = {
        command("train", *line.split())[1]
        for line in (
            "-c job -p head seed=1 head=mlp",
            "seed=1 --cfg=job head=mlp -p head",
            "head=mlp seed=1 -p head -cjob",
        )
    }
    assert len(shown) == 1
    assert "provla.head.MLP" in shown.pop()


def test_a_file_that_hydra_would_pass_over_is_named(command: Command, tmp_path: Path) -> None:
    """Hydra looks into --config-dir last: a file of a shipped one's name there would change nothing, without a word."""
    mine = tmp_path / "mine" / "fusion"
    mine.mkdir(parents=True)
    shipped = (ROOT / "conf" / "fusion" / "film.yaml").read_text()
    (mine / "film.yaml").write_text(shipped)
    code, _, err = command("train", "-cd", str(mine.parent), "fusion=film", "--cfg", "job")
    assert code == 2
    assert "provla's own fusion/film.yaml is read and not this one" in err
    (mine / "film.yaml").rename(mine / "wide.yaml").write_text(shipped.replace("width: 128", "width: 77"))
    code, out, _ = command("train", "-cd", str(mine.parent), "fusion=wide", "--cfg", "job", "-p", "fusion")
    assert (code, "width: 77" in out) == (0, True)
