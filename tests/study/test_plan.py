"""The plan: what a study will do, how long it takes, what it can see; and its lock."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from studies import Command, make_study, outcomes, write_run

from provla.core.files import write_json
from provla.statistics.power import Components
from provla.study.plan import episodes_of, seen_at


def test_the_plan_says_what_a_design_sees(command: Command) -> None:
    code, out, err = command("report", "study=fusion", "plan=true")
    assert code == 0, err
    assert "Which fusion of image, instruction and state" in out
    assert "21 jobs (7 arms, 3 seeds) in outputs/fusion: 21 missing" in out
    said = " ".join(out.split())
    assert "3 trainings × 100 episodes among 7 arms see 27 points in four of five studies" in said
    assert "if trainings differ by 5 points (pilot=<a finished study> says it)" in said
    assert not Path("outputs").exists()
    code, out, err = command("report", "study=fusion", "plan=true", 'overrides=["fusion=film,add","eval_episodes=80"]')
    assert code == 2
    assert "baseline='concat_mlp' is not among the arms; the arms are: film; add" in err
    write_json(Path("outputs/fusion/earlier/result.json"), {"status": "completed", "wall_seconds": 170.0})
    asked = 'overrides=["fusion=concat_mlp,add","eval_episodes=80"]'
    code, out, err = command("report", "study=fusion", "plan=true", asked)
    assert code == 0, err
    assert "hydra.sweeper.timeout=9 (minutes), three times what the longest finished run took" in " ".join(out.split())
    assert "3 trainings × 400 episodes among 2 arms see" in " ".join(out.split())
    code, out, err = command("report", "study=fusion", "plan=true", 'overrides=["fusion=concat_mlp,add","seed=0,1"]')
    assert code == 0, err
    assert "2 trainings × 100 episodes among 2 arms give no word" in " ".join(out.split())


def test_a_pilot_sharpens_the_plan(tmp_path: Path, command: Command) -> None:
    folder = make_study(tmp_path / "pilot", {"a": 0.97}, seeds=[0])
    run = folder / "fusion=a,seed=0"
    few = 'overrides=["fusion=concat_mlp,add"]'
    code, out, err = command("report", "study=fusion", "plan=true", few, f"pilot={run}")
    assert code == 0, err
    rate = 100 * sum(outcomes(0.97, 0, 0).values()) / 100
    assert f"success {rate:.0f} %, which differs by 5.0 points between trainings (assumed)" in " ".join(out.split())
    assert "at this ceiling no arm can be better" in out.replace("\n", " ")
    code, _, err = command("report", "study=fusion", "plan=true", f"pilot={tmp_path / 'none'}")
    assert code == 2
    assert "is missing; expected the folder of a completed run that was evaluated in simulation" in err
    # A study's folder knows how much trainings differ, and what a training and an episode take.
    study = make_study(tmp_path / "known", {"a": 0.5, "b": 0.6}, seeds=range(4))
    for seed, rate in enumerate((0.35, 0.45, 0.55, 0.65)):
        write_run(study / f"fusion=a,seed={seed}", f"a{seed}", seed, outcomes(rate, seed, 0))
    code, out, err = command("report", "study=fusion", "plan=true", few, f"pilot={study}")
    assert code == 0, err
    said = " ".join(out.split())
    assert "4 of the baseline's runs: success " in said
    assert "(assumed)" not in said
    assert "a budget sees most with about" in said
    assert "a training took 102 s, an episode 0.79 s" in said
    assert " h)" in said


def test_what_is_seen_grows_with_data_and_falls_with_arms() -> None:
    some = Components.of_rate(0.5, 0.05)
    by_trainings = [seen_at(0.5, some, 3, count, 100) for count in (3, 4, 5, 8, 12)]
    assert by_trainings == sorted(by_trainings, reverse=True)
    by_episodes = [seen_at(0.5, some, 3, 5, count) for count in (20, 50, 100, 500)]
    assert by_episodes == sorted(by_episodes, reverse=True)
    assert seen_at(0.5, some, 7, 5, 100) > seen_at(0.5, some, 3, 5, 100)
    assert math.isnan(seen_at(0.5, some, 3, 2, 100))


def test_a_world_of_ones_own_has_a_plan_too() -> None:
    assert episodes_of({"env": {"_target_": "worlds.ToySuite", "faults": {}, "each": 7}}) == 14


def test_a_lock_holds_a_study_to_its_plan(tmp_path: Path, command: Command) -> None:
    asked = ["study=fusion", 'overrides=["fusion=concat_mlp,add","seed=0,1,2"]']
    code, out, err = command("report", *asked, "lock=true")
    assert code == 0, err
    file = Path("experiments/fusion_lock.json")
    plan = json.loads(file.read_text())
    assert {arm: sorted(seeds) for arm, seeds in plan["arms"].items()} == {
        "concat_mlp": ["0", "1", "2"],
        "add": ["0", "1", "2"],
    }
    assert (plan["margin"], plan["alpha"], plan["episodes"], plan["completed_before"]) == (0.1, 0.05, 100, 0)
    code, _, err = command("report", *asked, "lock=true")
    assert code == 2
    assert "fusion is locked already, at 20" in err
    assert "delete it to plan anew" in err
    # The study is done otherwise: an arm more, a seed less, another configuration, other episodes, another margin.
    folder = make_study(tmp_path / "s", {"concat_mlp": 0.5, "add": 0.6, "film": 0.6}, seeds=(0, 1), study="fusion")
    code, out, err = command("report", f"folder={folder}", "margin=0.05")
    assert code == 0, err
    said = " ".join(out.split())
    for deviation in (
        "says margin 0.1, this report 0.05",
        "the arm film is not in the plan locked at",
        "has seeds 2, which this study has not",
        "another configuration than the plan locked at",
    ):
        assert deviation in said, deviation
    file.write_text('{"study": "fusion"}')
    code, _, err = command("report", f"folder={folder}")
    assert code == 2
    assert "fusion_lock.json is no lock: something is missing; restore it, or delete it" in err
    file.write_text(json.dumps(plan | {"study": "quant"}))
    code, _, err = command("report", f"folder={folder}")
    assert code == 2
    assert "is the lock of 'quant', not of 'fusion'" in err


@pytest.mark.parametrize(
    ("study", "arms", "seeds"), [("scheduler", 4, 3), ("quant", 3, 3), ("baselines", 3, 3), ("confirm", 3, 5)]
)
def test_studies_ready_to_run_compose(study: str, arms: int, seeds: int, command: Command) -> None:
    code, out, err = command("report", f"study={study}", "plan=true")
    assert code == 0, err
    assert f"{arms * seeds} jobs ({arms} arms, {seeds} seeds)" in out


def test_a_search_ready_to_run_composes(command: Command) -> None:
    code, out, err = command("report", "study=hpo", "plan=true")
    assert code == 0, err
    assert "0 of 16 trials" in out
    assert "trainer.lr=tag(log, interval(1e-4, 3e-3))" in out
