"""The verdict: its words and numbers on studies whose truth is known."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from studies import Command, make_study, outcomes, words, write_run

from provla.core.files import write_json
from provla.jobs.sweep import Job, Sweep, save_sweep
from provla.study.findings import BETTER, EQUIVALENT, UNRESOLVED, WORSE
from provla.study.study import load_study
from provla.study.verdict import judge


def test_words_and_numbers_of_a_study_whose_truth_is_known(tmp_path: Path) -> None:
    rates = {"concat_mlp": 0.5, "film": 0.8, "perceiver": 0.52, "qformer": 0.2}
    verdict = judge(load_study(make_study(tmp_path / "s", rates, range(5))), 0.02)
    assert words(verdict) == {"film": BETTER, "qformer": WORSE, "perceiver": UNRESOLVED}
    found = {arm.name: (arm, comparison) for arm, comparison in verdict.compared}
    film, comparison = found["film"]
    ours, theirs = ([np.mean(list(outcomes(r, s, n).values())) for s in range(5)] for r, n in ((0.8, 1), (0.5, 0)))
    assert film.mean == pytest.approx(np.mean(ours))
    assert comparison.difference == pytest.approx(np.mean(ours) - np.mean(theirs))
    assert comparison.low < 0.3 < comparison.high
    assert comparison.high - comparison.low < 0.3
    # What stands beside the rule, counted anew from the outcomes.
    pairs = [(outcomes(0.8, s, 1)[e], won) for s in range(5) for e, won in outcomes(0.5, s, 0).items()]
    wins, losses = sum(a and not b for a, b in pairs), sum(b and not a for a, b in pairs)
    assert (comparison.wins, comparison.losses) == (wins, losses)
    assert comparison.mcnemar == pytest.approx(stats.binomtest(wins, wins + losses).pvalue)
    assert comparison.permutation == pytest.approx(2 / math.comb(10, 5))
    assert verdict.baseline is not None
    assert verdict.baseline.costs["train_seconds"] == 102


def test_a_word_needs_three_trainings(tmp_path: Path, command: Command) -> None:
    for seeds, said in ((1, "one training says too little"), (2, "two trainings say too little")):
        folder = make_study(tmp_path / str(seeds), {"a": 0.1, "b": 0.9}, seeds=range(seeds))
        verdict = judge(load_study(folder), 0.1)
        assert verdict.compared[0][1].mcnemar < 0.001
        assert words(verdict) == {"b": UNRESOLVED}
        code, out, err = command("report", f"folder={folder}")
        assert code == 0, err
        assert said in out
    assert words(judge(load_study(make_study(tmp_path / "3", {"a": 0.1, "b": 0.9})), 0.1)) == {"b": BETTER}


def test_equivalent_is_a_claim_of_its_own(tmp_path: Path) -> None:
    few = judge(load_study(make_study(tmp_path / "few", {"a": 0.5, "b": 0.5}, episodes=10)), 0.1)
    assert words(few) == {"b": UNRESOLVED}
    many = judge(load_study(make_study(tmp_path / "many", {"a": 0.5, "b": 0.5}, seeds=range(8), episodes=250)), 0.1)
    assert words(many) == {"b": EQUIVALENT}
    found = many.compared[0][1]
    assert abs(found.difference) + found.reach < 0.1
    assert found.reach < found.high - found.difference  # one-sided tests, so a narrower interval
    # The same study under a sharper question.
    assert words(judge(load_study(tmp_path / "many"), 0.005)) == {"b": UNRESOLVED}
    with pytest.raises(ValueError, match="margin=0: expected a difference between 0 and 1"):
        judge(load_study(tmp_path / "many"), 0)


def test_what_a_design_sees_is_less_with_less_data(tmp_path: Path) -> None:
    """An arm that lacks trainings is never said to be seen more sharply."""
    folder = make_study(tmp_path / "s", {"a": 0.5, "b": 0.5, "c": 0.5}, seeds=range(6))
    for seed in (3, 4, 5):
        shutil.rmtree(folder / f"fusion=c,seed={seed}")
    found = {arm.name: one for arm, one in judge(load_study(folder), 0.1).compared}
    assert found["c"].resolvable > found["b"].resolvable
    assert found["c"].high - found["c"].low > 0
    assert found["c"].error > found["b"].error


def test_an_offline_study_is_judged_by_its_runs(tmp_path: Path) -> None:
    folder = make_study(tmp_path / "s", {"a": 0.5, "b": 0.5}, objective="trajectory_mse")
    values = {"a": [0.10, 0.12, 0.11], "b": [0.05, 0.08, 0.06]}
    for arm, own in values.items():
        for seed, value in enumerate(own):
            write_run(folder / f"fusion={arm},seed={seed}", f"{arm}{seed}", seed, {}, value)
    verdict = judge(load_study(folder), 0.1)
    _, found = verdict.compared[0]
    welch = stats.ttest_ind(values["b"], values["a"], equal_var=False)  # two arms: their own are all there are
    assert found.p == pytest.approx(welch.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(welch.confidence_interval()), rel=1e-2)
    assert found.word == BETTER  # an error: lower is better
    assert found.wins is None


def test_arms_that_share_weights_are_paired_by_them(tmp_path: Path) -> None:
    folder = make_study(tmp_path / "s", {"a": 0.5, "b": 0.5, "c": 0.5}, seeds=range(4))
    for seed, rate in enumerate((0.2, 0.4, 0.6, 0.8)):  # trainings that differ much, which execution does not
        write_run(folder / f"fusion=a,seed={seed}", f"a{seed}", seed, outcomes(rate, seed, 0))
        own = outcomes(rate, seed, 0)
        lost = [episode for episode, won in own.items() if not won]
        better = own | dict.fromkeys(lost[: 9 + seed], True)  # execution wins about ten more of each
        write_run(folder / f"fusion=b,seed={seed}", f"b{seed}", seed, better, trained_by=f"fusion=a,seed={seed}")
    verdict = judge(load_study(folder), 0.1)
    found = {arm.name: one for arm, one in verdict.compared}
    assert (found["b"].shared, found["c"].shared) == ("weights", "")
    assert found["b"].error < 0.3 * found["c"].error
    assert [family.alpha for family in verdict.families] == [0.025, 0.025]
    assert found["b"].word == BETTER
    assert all(math.isfinite(arm.low) for arm in verdict.arms)  # its own interval, where the family has none for it
    said = " ".join(verdict.notes)
    assert "paired by the weights that they share" in said
    assert "4 of 12 runs took their weights from another run's training" in said


def test_demonstrations_that_each_training_draws_anew_are_blocks(tmp_path: Path) -> None:
    folder = make_study(tmp_path / "s", {"a": 0.5, "b": 0.6}, seeds=range(4))
    for arm, file in ((a, folder / f"fusion={a},seed={s}" / "config.json") for a in "ab" for s in range(4)):
        write_json(file, {"dataset": {"seed": int(file.parent.name[-1]), "data_dir": f"/{arm}"}})
    verdict = judge(load_study(folder), 0.1)
    assert verdict.compared[0][1].shared == "demonstrations"
    assert "demonstrations were drawn anew for each training" in " ".join(verdict.notes)


def test_every_report_tries_its_own_rule(tmp_path: Path) -> None:
    verdict = judge(load_study(make_study(tmp_path / "s", {"a": 0.5, "b": 0.6, "c": 0.55}, range(4))), 0.1)
    (family,) = verdict.families
    trial = family.trial
    assert trial is not None
    assert trial.studies == 2000
    assert 0.01 < trial.false < 0.07
    assert 0.93 < trial.covered < 0.99
    assert trial.equivalent < 0.07
    assert not any("made-up studies" in problem for problem in verdict.problems)
    assert "The rule, tried on 2,000 made-up studies" in " ".join(verdict.notes)


def test_one_arm_alone_is_reported_and_compared_with_nothing(tmp_path: Path, command: Command) -> None:
    folder = make_study(tmp_path / "s", {"a": 0.5})
    code, out, err = command("report", f"folder={folder}")
    assert code == 0, err
    rate = np.mean([sum(outcomes(0.5, seed, 0).values()) for seed in range(3)])
    said = f"One arm alone, nothing to compare it with: success rate {rate:.0f} %, mean over 3 trainings."
    assert said in " ".join(out.split())


def test_spreads_that_differ_are_said_and_taken_apart(tmp_path: Path) -> None:
    folder = make_study(tmp_path / "s", {"a": 0.5, "b": 0.5, "c": 0.5}, seeds=range(5))
    for seed, rate in enumerate((0.1, 0.3, 0.5, 0.7, 0.9)):
        write_run(folder / f"fusion=c,seed={seed}", f"c{seed}", seed, outcomes(rate, seed, 2))
    verdict = judge(load_study(folder), 0.1)
    assert any("do not vary alike between trainings" in problem for problem in verdict.problems)
    found = {arm.name: one for arm, one in verdict.compared}
    assert found["c"].own
    assert found["c"].error > 2 * found["b"].error


def test_an_objective_of_one_task_counts_its_episodes_alone(tmp_path: Path) -> None:
    folder = make_study(tmp_path / "s", {"a": 0.5, "b": 0.7}, objective="success_rate/drawer-open")
    for file in folder.glob("*/result.json"):
        result = json.loads(file.read_text())
        result["objective"] = {"name": "success_rate/drawer-open", "value": 0.5}
        write_json(file, result)
    _, found = judge(load_study(folder), 0.1).compared[0]
    ours, theirs = (
        [outcomes(rate, s, n)["drawer-open", 100_000 + i] for s in range(3) for i in range(50)]
        for rate, n in ((0.7, 1), (0.5, 0))
    )
    assert found.difference == pytest.approx(np.mean(ours) - np.mean(theirs))


def test_a_grid_of_two_axes_has_effects(tmp_path: Path) -> None:
    jobs, folder = [], tmp_path / "grid"
    for f, fusion in enumerate(("film", "add")):
        for n, steps in enumerate(("4", "8")):
            for seed in range(3):
                name = f"fusion={fusion},n={steps},seed={seed}"
                axes = {"fusion": fusion, "n_action_steps": steps}
                jobs.append(
                    Job(name, axes | {"seed": str(seed)}, axes, seed, name, f"fusion={fusion}, n_action_steps={steps}")
                )
                write_run(folder / name, name, seed, outcomes(0.3 + 0.4 * f, seed, 2 * f + n))
    save_sweep(folder, Sweep("grid", None, "grid", jobs[0].arm, "success_rate", "x", jobs))
    effects = {row["effect"]: row for row in judge(load_study(folder), 0.1).effects}
    assert set(effects) == {"fusion", "n_action_steps", "fusion × n_action_steps"}
    assert effects["fusion"]["p"] < 0.001
    assert effects["n_action_steps"]["F"] < effects["fusion"]["F"] / 10
    shutil.rmtree(folder / "fusion=add,n=8,seed=0")
    assert judge(load_study(folder), 0.1).effects  # a cell that other seeds fill
    for seed in (1, 2):
        shutil.rmtree(folder / f"fusion=add,n=8,seed={seed}")
    verdict = judge(load_study(folder), 0.1)
    assert not verdict.effects
    assert any("1 of 4 have no completed run" in note for note in verdict.notes)
