"""Results that were not made here, judged by the same rule; and what is wrong with some of them."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from studies import TASKS, Command, make_study, outcomes

from provla.study.elsewhere import load_results
from provla.study.study import load_study
from provla.study.verdict import judge

RATES = {"act": 0.5, "smolvla": 0.8, "pi0": 0.52}


def write_csv(path: Path, unpaired: bool = False) -> Path:
    """Three arms, three seeds, single results."""
    rows = [
        (arm, seed, task, episode + 1000 * seed * unpaired, int(won))
        for n, (arm, rate) in enumerate(RATES.items())
        for seed in range(3)
        for (task, episode), won in outcomes(rate, seed, n).items()
    ]
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("arm", "seed", "task", "episode", "success"), *rows])
    return path


def test_a_file_is_judged_as_if_it_were_made_here(tmp_path: Path, command: Command) -> None:
    """Arm by arm the numbers of a study with the same outcomes."""
    there = judge(load_results(write_csv(tmp_path / "results.csv"), "act"), 0.1)
    here = judge(load_study(make_study(tmp_path / "s", RATES)), 0.1)
    for (arm, ours), (name, theirs) in zip(there.compared, here.compared, strict=True):
        assert arm.name == name.name
        assert vars(ours) == vars(theirs)
    code, out, err = command("report", f"from={tmp_path / 'results.csv'}")
    assert code == 0, err
    assert "smolvla is better than act" in out
    assert "How the arms were trained and chosen is not known here." in out
    assert "A word is a claim about other trainings and other episodes of the same tasks; what else was held" in out
    assert (tmp_path / "results" / "report" / "report.html").is_file()
    code, out, err = command("report", f"from={tmp_path / 'results.csv'}", "baseline=smolvla")
    assert code == 0, err
    assert "act is worse than smolvla" in out


def test_the_example_of_the_docs_reads(command: Command, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "statistics.md").read_text()
    assert "from=docs/example_results.csv" in page
    shutil.copy(ROOT / "docs" / "example_results.csv", tmp_path)
    code, out, err = command("report", f"from={tmp_path / 'example_results.csv'}")
    assert code == 0, err
    assert "| smolvla " in out


def test_other_episodes_for_each_training_leave_its_value(tmp_path: Path) -> None:
    verdict = judge(load_results(write_csv(tmp_path / "results.csv", unpaired=True), None), 0.1)
    assert "met different episodes, so single episodes cannot be compared" in " ".join(verdict.notes)
    found = {arm.name: one for arm, one in verdict.compared}["smolvla"]
    assert found.wins is None
    values = {
        arm: [np.mean(list(outcomes(RATES[arm], s, n).values())) for s in range(3)] for n, arm in enumerate(RATES)
    }
    assert found.difference == pytest.approx(np.mean(values["smolvla"]) - np.mean(values["act"]))


def test_counts_are_enough_for_the_runs_values(tmp_path: Path) -> None:
    file = tmp_path / "counts.csv"
    lines = [f"{arm},{seed},{round(100 * rate) + seed},100" for arm, rate in RATES.items() for seed in range(3)]
    file.write_text("\n".join(["arm,seed,successes,episodes", *lines]) + "\n")
    verdict = judge(load_results(file, None), 0.1)
    found = {arm.name: one for arm, one in verdict.compared}
    assert found["smolvla"].difference == pytest.approx(0.3)
    assert found["smolvla"].word == "better"
    assert "Only counts of successes are known." in " ".join(verdict.notes)


def test_a_published_study_is_judged_again_from_its_files(tmp_path: Path, command: Command) -> None:
    """By its episodes to the last digit; by its runs' values where those are all there is."""
    folder = make_study(tmp_path / "s", RATES)
    code, _, err = command("report", f"folder={folder}", "publish=true")
    assert code == 0, err
    here = judge(load_study(folder), 0.1, trial=False)
    again = judge(load_results(Path("experiments/probe_episodes.csv"), "act"), 0.1, trial=False)
    assert [vars(one) for _, one in again.compared] == [vars(one) for _, one in here.compared]
    runs = judge(load_results(Path("experiments/probe_runs.csv"), "act"), 0.1, trial=False)
    for (_, mine), (_, theirs) in zip(runs.compared, here.compared, strict=True):
        assert mine.difference == pytest.approx(theirs.difference)
        assert mine.wins is None
    assert "single episodes are not known" in " ".join(runs.notes)


def test_a_score_is_higher_the_better_and_no_rate(tmp_path: Path) -> None:
    file = tmp_path / "scores.csv"
    rng = np.random.default_rng(0)
    lines = [
        f"{arm},{seed},{e},{base + rng.normal():.4f}"
        for arm, base in (("a", 10.0), ("b", 14.0))
        for seed in range(4)
        for e in range(20)
    ]
    file.write_text("\n".join(["arm,seed,episode,score", *lines]) + "\n")
    verdict = judge(load_results(file, None), 0.1)
    _, found = verdict.compared[0]
    assert (verdict.study.metric, found.word) == ("score", "better")
    assert found.difference == pytest.approx(4, abs=0.7)
    assert found.wins is None
    assert not any(arm.success.episodes for arm in verdict.arms)  # of scores there is no rate


def eval_info(outcomes: dict[tuple[str, int], bool], several: bool) -> dict[str, object]:
    """As lerobot-eval 0.6 writes it: of several tasks, or of one environment."""
    if several:
        tasks = [
            {
                "task_group": task,
                "task_id": 0,
                "metrics": {"successes": [w for (t, _), w in outcomes.items() if t == task]},
            }
            for task in TASKS
        ]
        return {"per_task": tasks, "overall": {}}
    return {
        "per_episode": [
            {"episode_ix": n, "sum_reward": 1.0, "max_reward": 1.0, "success": won, "seed": 1000 + n}
            for n, won in enumerate(outcomes.values())
        ],
        "aggregated": {},
    }


@pytest.mark.parametrize("several", [True, False])
def test_lerobots_own_files(several: bool, tmp_path: Path, command: Command) -> None:
    for n, (arm, rate) in enumerate(RATES.items()):
        for seed in range(3):
            file = tmp_path / "evals" / arm / f"seed_{seed}" / "eval_info.json"
            file.parent.mkdir(parents=True)
            file.write_text(json.dumps(eval_info(outcomes(rate, seed, n), several)))
    study = load_results(tmp_path / "evals", None)
    assert {task for task, _ in study.runs[0].episodes} == ({f"{t}/0" for t in TASKS} if several else {"all"})
    assert study.paired
    code, out, err = command("report", f"from={tmp_path / 'evals'}", "baseline=act")
    assert code == 0, err
    assert "smolvla is better than act" in out
    (file.parent / "eval_info.json").write_text('{"per_task": 3}')
    code, _, err = command("report", f"from={tmp_path / 'evals'}")
    assert code == 2
    assert "is no eval_info.json of LeRobot" in err


HEAD = "arm,seed,task,episode,success\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("arm,task,success\na,x,1\n", "has no column 'seed': without them nothing is known of other trainings"),
        ("method,seed,success\na,1,1\n", "has no column 'arm'; it has method, seed, success"),
        (
            HEAD + "a,1,x,1,0.7\n",
            "line 2: success='0.7'; expected 0 or 1 (a number between them is a score: column score)",
        ),
        (HEAD + "a,1,x,1,1\na,one,x,2,1\n", "line 3: seed='one'; expected a whole number"),
        (HEAD + "a,1,x,1,1\na,1,x,1,0\n", "line 3: episode 1 of x stands there twice for this arm and seed"),
        (HEAD + "a,1,x,1,1\na,2,x,1,0\n", "holds one arm only, 'a': a verdict compares at least two"),
        (HEAD + "a,1,x,1,1\nb,1,y,1,0\n", "met different tasks (only one of them x, y)"),
        (HEAD, "has no rows under its head"),
        ("arm,seed,success,score\na,1,1,2\n", "expected one of: success (0 or 1), score, or successes with episodes"),
        ("arm,seed,successes\na,1,1\n", "expected one of: success (0 or 1), score, or successes with episodes"),
        ("arm,seed,successes,episodes\na,1,7,5\n", "line 2: 7 successes in 5 episodes"),
        ("arm,seed,success,reward\na,1,1,2\n", "nothing reads its column 'reward'"),
        ("arm,seed,episode,score\na,1,1,nan\n", "score='nan'; expected a finite number"),
    ],
)
def test_a_file_that_cannot_be_judged_is_told_why(text: str, said: str, tmp_path: Path, command: Command) -> None:
    (tmp_path / "r.csv").write_text(text)
    code, _, err = command("report", f"from={tmp_path / 'r.csv'}")
    assert code == 2
    assert said in " ".join(err.split())
    assert not (tmp_path / "r").exists()


def test_what_from_does_not_go_with(tmp_path: Path, command: Command) -> None:
    file = write_csv(tmp_path / "r.csv")
    for asked, said in (
        ([f"from={file}", "study=fusion"], "from= and study=: results that were not made here have no study"),
        ([f"from={file}", "live=true"], "from= and live=: results that were not made here have no live"),
        ([f"from={file}", "baseline=moe"], "baseline='moe' is not among the arms of"),
        (["study=fusion", "baseline=film"], "baseline= goes with from="),
        ([f"from={tmp_path / 'nix.csv'}"], "no such file or folder"),
        ([f"from={tmp_path / 'empty'}"], "holds no eval_info.json"),
        (["folder=x", "margin=wide"], "margin='wide': expected a number"),
        (["folder=x", "port=99999"], "port=99999: expected a whole number from 0 to 65,535"),
    ):
        (tmp_path / "empty").mkdir(exist_ok=True)
        code, _, err = command("report", *asked)
        assert (code, said in " ".join(err.split())) == (2, True), err
