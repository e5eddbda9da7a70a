"""Several data sets as one: shares, order, validation, and what does not go together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import FAKE, LIGHT, compose, write_lerobot

from provla.core.build import build
from provla.core.identity import identity
from provla.dataset.demonstrations import Demonstrations
from provla.dataset.features import feature_cache, frames_digest
from provla.dataset.sampler import MixSampler, Sampler, sampler_of
from provla.run.setting import load_setting, make_parts

FAKES = {
    name: {
        "_target_": "provla.dataset.FakeSource",
        "episodes": episodes,
        "length": 24,
        "image_size": 32,
        "cameras": ["front"],
        "state_size": 3,
        "action_size": 3,
        "seed": seed,
    }
    for name, episodes, seed in (("a", 4, 0), ("b", 10, 1))
}


def mix(sources: dict[str, Any] | None = None, **given: Any) -> Any:
    shared = {"data_dir": "data", "val_fraction": 0.34, "split_seed": 0}
    node = {"_target_": "provla.dataset.MixSource", "sources": sources or FAKES, **shared, **given}
    return build(node, "dataset")


def sampler(data: Demonstrations, rows: np.ndarray) -> Sampler:
    return sampler_of(data)(data, rows, list(data.frames), 8, 1)


def share_of(rows: np.ndarray, data: Demonstrations) -> float:
    """Of a's rows."""
    return float((rows < data.starts[4]).mean())


@pytest.mark.parametrize(("weights", "share"), [({"a": 2, "b": 1}, 2 / 3), ({"a": 1, "b": 9}, 0.1), (None, None)])
def test_the_weights_are_the_shares_of_the_samples(weights: dict[str, float] | None, share: float | None) -> None:
    data = mix(weights=weights).load()
    data.check()
    train, _ = data.split(0, 0)
    learn = sampler(data, train)
    size = 8
    per_epoch = len(learn) // size
    rows = np.concatenate([learn.rows_at(3, step, size) for step in range(4 * per_epoch)])
    wanted = float((learn.rows < data.starts[4]).mean()) if share is None else share
    assert share_of(rows, data) == pytest.approx(wanted, abs=0.02)
    drawn = learn.shuffled(3, 0)
    assert share_of(drawn, data) == pytest.approx(wanted, abs=1 / len(learn))
    if share is None:  # by size an epoch is a permutation
        assert sorted(drawn) == sorted(learn.rows)
    assert set(drawn) <= set(learn.rows)  # nothing that is held out


def test_a_source_is_gone_through_before_any_of_it_comes_again() -> None:
    data = mix(weights={"a": 5, "b": 1}).load()
    learn = sampler(data, data.split(0, 0)[0])
    rows = np.concatenate([learn.shuffled(0, epoch) for epoch in range(3)])
    for mine in (rows < data.starts[4], rows >= data.starts[4]):
        own = learn.rows[(learn.rows < data.starts[4]) == (rows[mine][0] < data.starts[4])]
        _, counts = np.unique(rows[mine], return_counts=True)
        assert len(counts) == min(len(own), mine.sum())
        assert counts.max() - counts.min() <= 1
    assert not np.array_equal(learn.shuffled(0, 0), learn.shuffled(0, 1))


def test_a_step_is_a_function_of_seed_and_step_and_ranks_share_it() -> None:
    data = mix(weights={"a": 2, "b": 1}).load()
    train = data.split(0, 0)[0]
    one, other = sampler(data, train), sampler(data, train)
    for step in range(40):
        one.step(0, step, 8)
    again, first = one.step(0, 37, 8), other.step(0, 37, 8)  # as a resumed run asks
    assert again.actions.equal(first.actions)
    assert again.observation.images.equal(first.observation.images)
    halves = [other.step(0, 37, 8, rank, 2) for rank in range(2)]
    for rank, half in enumerate(halves):
        assert half.actions.equal(first.actions[rank::2])
        assert half.noise is not None
        assert first.noise is not None
        assert half.noise.equal(first.noise[rank::2])


def test_pictures_rows_and_held_out_episodes_are_the_sources_own() -> None:
    data = mix().load()
    alone = {name: build({**node, "val_fraction": 0.34, "split_seed": 0}, "x").load() for name, node in FAKES.items()}
    wanted = np.concatenate([one.frames["front"] for one in alone.values()])
    rows = np.array([[0, 100, 95], [96, 300, 4]])
    np.testing.assert_array_equal(data.frames["front"][rows], wanted[rows])
    np.testing.assert_array_equal(data.frames["front"][90:110], wanted[90:110])
    np.testing.assert_array_equal(data.actions, np.concatenate([one.actions for one in alone.values()]))
    held = data.split(0, 0)[1]
    np.testing.assert_array_equal(
        held, np.concatenate([alone["a"].split(0.34, 0)[1], 4 + alone["b"].split(0.34, 0)[1]])
    )


def test_features_of_joined_pictures_are_those_of_each(tmp_path: Path) -> None:
    frames = mix().load().frames["front"]
    digest = frames_digest(frames)
    found = feature_cache(tmp_path / "x.npy", "front", frames, lambda pictures: pictures.float().mean((2, 3)))
    rows = np.array([5, 95, 96, 335])
    torch.testing.assert_close(found[rows], torch.from_numpy(frames[rows]).float().mean((2, 3)))
    assert frames_digest(mix().load().frames["front"]) == digest
    assert frames_digest(mix(dict(reversed(FAKES.items()))).load().frames["front"]) != digest


def test_joints_and_cameras_go_by_name(tmp_path: Path) -> None:
    """Two data sets by LeRobot's own writer, the second with other names in another order."""
    one, two = write_lerobot(tmp_path / "one"), write_lerobot(tmp_path / "two", cameras={"eye": {}, "front": {}})
    info = json.loads((two / "meta" / "info.json").read_text())
    info["features"]["action"]["names"] = ["grip", "shoulder", "elbow"]
    (two / "meta" / "info.json").write_text(json.dumps(info))
    sources = {"one": {"root": str(one)}, "two": {"root": str(two)}}
    with pytest.raises(ValueError, match=r"two does not go with one: its cameras are \['eye', 'front'\].*rename\.two"):
        mix(sources, data_dir=str(tmp_path)).load()
    with pytest.raises(ValueError, match=r"its actions \(3\) are grip, shoulder, elbow.*rename\.two"):
        mix(sources, data_dir=str(tmp_path), rename={"two": {"eye": "wrist"}}).load()
    rename = {"two": {"eye": "wrist", "grip": "gripper"}}
    data = mix(sources, data_dir=str(tmp_path), rename=rename).load()
    plain = {
        name: build({"_target_": "provla.dataset.LeRobotSource", "data_dir": str(tmp_path), "root": str(root),
                     "val_fraction": 0.1, "split_seed": 0}, "x").load()
        for name, root in (("one", one), ("two", two))
    }  # fmt: skip
    assert list(data.frames) == ["front", "wrist"]
    assert data.joint_names == ["shoulder", "elbow", "gripper"]
    np.testing.assert_array_equal(data.actions[60:], plain["two"].actions[:, [1, 2, 0]])
    np.testing.assert_array_equal(data.state[60:], plain["two"].state)
    np.testing.assert_array_equal(data.frames["wrist"][60:61], plain["two"].frames["eye"][:1])
    assert data.instructions == ["Point", "Wave"]  # one of each, though both data sets have them


@pytest.mark.parametrize(
    ("change", "given", "message"),
    [
        ({"b": {"state_size": 4}}, {}, r"b does not go with a: its state \(4\) are.*that of a \(3\)"),
        ({"b": {"action_size": 2}}, {}, r"its actions \(2\) are joint0, joint1, that of a \(3\)"),
        ({"b": {"image_size": 16}}, {}, r"pictures are \(16, 16\).*dataset.sources.b.image_size"),
        ({"b": {"cameras": ["top"]}}, {}, r"cameras are \['top'\].*dataset.rename.b="),
        ({"b": {"joint_groups": "each"}}, {}, "sources.b.joint_groups='each': .*say dataset.joint_groups"),
        ({"b": {"lenght": 3}}, {}, "nothing reads dataset.sources.b.lenght"),
        ({}, {"weights": {"a": 1}}, "dataset.weights leaves out 'b'"),
        ({}, {"weights": {"a": 1, "b": 1, "c": 1}}, "dataset.weights names 'c', which is no source; there are: a, b"),
        ({}, {"weights": {"a": 0, "b": 1}}, r"dataset.weights=\{'a': 0.*numbers above 0"),
        ({}, {"rename": {"c": {"front": "top"}}}, "dataset.rename names 'c'"),
        ({}, {"rename": {"b": {"frnt": "top"}}}, "dataset.rename.b names 'frnt'.*cameras: front"),
        ({}, {"rename": {"b": {"state0": "state1"}}}, "gives two of its state one name"),
        ({}, {"joint_groups": {"a": ["joint0"]}}, "dataset.joint_groups and dataset.sources both name 'a'"),
        ({"a": None}, {}, "a mix has two sources at least"),
    ],
)
def test_what_does_not_go_together_is_refused(change: dict[str, Any], given: dict[str, Any], message: str) -> None:
    sources = {name: {**node, **(change.get(name) or {})} for name, node in FAKES.items() if change.get(name, 1)}
    with pytest.raises(ValueError, match=message):
        mix(sources, **given).load()


def test_other_fps_and_windows_are_refused(tmp_path: Path) -> None:
    root = write_lerobot(tmp_path / "set", cameras={"front": {}})
    other = {"root": str(root), "cache": "window"}
    with pytest.raises(
        ValueError, match="b has cache=window, and the mix dataset.cache=full: .*say dataset.cache=window"
    ):
        mix({"a": FAKES["a"], "b": other})
    with pytest.raises(ValueError, match="a has cache=full, and the mix dataset.cache=window"):
        mix({"a": FAKES["a"], "b": {"root": str(root)}}, cache="window")
    fast = {**FAKES["b"], "_target_": "test_mix.Fast"}
    with pytest.raises(ValueError, match="b does not go with a: its fps is 20, that of a 10"):
        mix({"a": FAKES["a"], "b": fast}).load()


def Fast(**given: Any) -> Any:
    from dataclasses import replace
    from types import SimpleNamespace

    source = build({**FAKES["b"], "val_fraction": 0.1, "split_seed": 0}, "x")
    return SimpleNamespace(load=lambda: replace(source.load(), fps=20.0))


def test_what_changes_no_result_is_no_part_of_a_run() -> None:
    """Inside a source as at the top: where files lie and how pictures are read; but for the order of a window."""

    def of(source: str, *words: str) -> str:
        return identity(compose("dataset=mix", f"dataset.sources={{a:{{root:x{source}}},b:{{root:y}}}}", *words))

    plain = of("")
    for same in (",data_dir:elsewhere", ",cache:none", ",window_gb:2", ",window_blocks:3"):
        assert of(same) == plain, same
    assert plain == of("", "dataset.cache=none") == of("", "dataset.window_blocks=3", "dataset.normalize=together")
    ahead = of("", "dataset.cache=window")
    assert ahead == of(",window_gb:2,window_workers:1", "dataset.cache=window", "dataset.window_gb=3")
    others = [
        of(",image_size:[8,8]"),
        of(",_target_:my.Own,cache:none"),
        of(",window_blocks:3", "dataset.cache=window"),
    ]
    assert len({plain, ahead, *others}) == 5


def on_the_command_line(node: Any) -> str:
    """In Hydra's words."""
    if isinstance(node, dict):
        return "{" + ",".join(f"{key}:{on_the_command_line(value)}" for key, value in node.items()) + "}"
    return str(node).replace("'", "")


def test_a_run_says_shares_and_validates_each_source(tmp_path: Path, command: Any) -> None:
    sources = on_the_command_line(FAKES)
    fake = [o for o in FAKE if not o.startswith("dataset")]
    given = ["dataset=mix", f"dataset.sources={sources}", "dataset.weights={a:2,b:1}", "dataset.val_fraction=0.34"]
    code, out, err = command("train", *fake, *LIGHT, *given, "objective=loss/b", f"hydra.run.dir={tmp_path}/run")
    assert code == 0, err
    said = out + err
    assert all(word in said for word in ("share of samples", "66.7%", "33.3%"))
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    metrics = result["metrics"]
    assert metrics["loss"] == pytest.approx(2 / 3 * metrics["loss/a"] + 1 / 3 * metrics["loss/b"])
    assert metrics["loss/a"] != metrics["loss/b"]
    assert result["objective"]["value"] == metrics["loss/b"]
    code, _, err = command("evaluate", f"checkpoint={tmp_path}/run", f"hydra.run.dir={tmp_path}/again", "device=cpu")
    assert code == 0, err
    again = json.loads((tmp_path / "again" / "result.json").read_text())["metrics"]
    assert again["loss/a"] == pytest.approx(metrics["loss/a"])


def test_nothing_held_out_is_no_error() -> None:
    fake = [o for o in FAKE if not o.startswith("dataset")]
    config = compose(
        *fake, *LIGHT, "dataset=mix", "dataset.val_fraction=0", f"dataset.sources={on_the_command_line(FAKES)}"
    )
    setting = load_setting(config, make_parts(config))
    assert isinstance(setting.learn, MixSampler)
    assert len(setting.held) == 0
