"""What the tests share: composed configurations, small real data sets, commands run in this process."""

from __future__ import annotations

import gc
import io
import multiprocessing
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from fcntl import LOCK_EX, flock
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

# Several processes share the cores: none waits in a loop. Read when torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch
from torch import nn

ROOT = Path(__file__).parents[1]
os.environ.setdefault("PROVLA_ROOT", str(ROOT))
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"
os.environ.pop("WANDB_API_KEY", None)

sys.path.append(str(ROOT / "benchmarks"))
from tiny import TINY  # noqa: E402

from provla.core.types import Batch, Spec, fake_batch  # noqa: E402
from provla.dataset import recording as recordings  # noqa: E402
from provla.dataset.metaworld import MetaworldRecording  # noqa: E402
from provla.dataset.recording import record  # noqa: E402
from provla.run import judging  # noqa: E402

# The fake data set and a policy that trains in a second; the parts under test are named after these.
FAKE = [
    *TINY,
    "logger=none",
    "trainer.max_steps=4",
    "trainer.val_every=2",
    "trainer.log_every=1",
    "threads=1",
]
# Parts that import neither transformers nor diffusers, which takes four of the nine seconds of a process that trains.
LIGHT = ["text=task_embedding", "scheduler=l1"]


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(1)
    # dm_control's logger takes whatever stderr is when it is imported for its own, and closes it where logging is set
    # up anew: that would be the file into which pytest captures.
    from absl import logging

    logging.get_absl_handler().python_handler.stream = sys.__stderr__
    # What this process records is recorded by forks of one that has imported LeRobot, which takes seven seconds of a
    # core; a process that tests start spawns its own, as everywhere else.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["lerobot.datasets.lerobot_dataset", "provla.dataset.recording"])
    recordings.multiprocessing = SimpleNamespace(get_context=lambda kind: context)  # type: ignore[attr-defined]
    # A run's pictures are drawn once, and not twice to find out how wide their margins are.
    savefig = Figure.savefig

    def once(*given: Any, **how: Any) -> None:
        savefig(*given, **(how | {"bbox_inches": None} if how.get("format") == "png" else how))

    Figure.savefig = once  # type: ignore[method-assign]
    read_files_once()
    choose_once()


def read_files_once() -> None:
    """A YAML file is parsed once, by its text, and so are references in it and Hydra's versions: a composition reads
    forty files, and the tests compose a thousand times.
    """
    import hydra.version
    import omegaconf.base
    from omegaconf import OmegaConf

    load, parsed = OmegaConf.load, dict[str, Any]()

    def once(file: Any) -> Any:
        text = file.read() if hasattr(file, "read") else Path(file).read_text(encoding="utf-8")
        if text not in parsed:
            whole = io.StringIO(text)
            whole.name = str(getattr(file, "name", file))  # which an error names
            parsed[text] = load(whole)
        return deepcopy(parsed[text])

    OmegaConf.load = staticmethod(once)  # type: ignore[method-assign, assignment]
    for place, name in ((hydra.version, "_get_version"), (omegaconf.base, "parse"), (omegaconf._utils, "parse")):
        setattr(place, name, cache(getattr(place, name)))


def choose_once() -> None:
    """What Hydra makes of the same choice of options, from files of the same content, is made once; what a command line
    sets beside them comes on top of it each time. Without it that is four fifths of a composition.
    """
    from hydra._internal import config_loader_impl, defaults_list
    from hydra.core.config_store import ConfigStore

    choose, loader_of = defaults_list._create_defaults_list, config_loader_impl.ConfigLoaderImpl
    merge = loader_of._compose_config_from_defaults_list
    kept = dict[tuple[str, str], Any]()

    def stored(nodes: Any) -> Any:
        return {k: stored(v) for k, v in nodes.items()} if isinstance(nodes, dict) else nodes.provider

    def files(repo: Any) -> str:
        if not hasattr(repo, "files"):
            places = [(s.scheme(), s.path, s.provider) for s in repo.get_sources()]
            texts = [_texts(Path(path)) for scheme, path, _ in places if scheme == "file"]
            repo.files = repr(([(one, other) for one, _, other in places], texts, stored(ConfigStore.instance().repo)))
        return str(repo.files)

    def chosen(repo: Any, config_name: str, overrides: Any, **how: Any) -> Any:
        asked = {name: value for name, value in vars(overrides).items() if name != "config_overrides"}
        key = files(repo), repr((config_name, asked, how))
        if key not in kept:
            found = choose(repo, config_name, overrides, **how)
            kept[key] = deepcopy((found, {name: getattr(overrides, name) for name in asked}))
        found, changed = deepcopy(kept[key])
        vars(overrides).update(changed)
        return found

    def merged(loader: Any, defaults: Any, repo: Any) -> Any:
        key = files(repo), repr(defaults)
        if key not in kept:
            kept[key] = merge(loader, defaults=defaults, repo=repo)
        return deepcopy(kept[key])

    defaults_list._create_defaults_list = chosen
    loader_of._compose_config_from_defaults_list = merged  # type: ignore[method-assign]


def _texts(place: Path) -> list[tuple[str, str]]:
    """The configuration files in a folder, and what stands in them."""
    return _shipped(place) if place in (ROOT, ROOT / "conf") else _read(place, "")


def _read(place: Path, part: str) -> list[tuple[str, str]]:
    return [(str(file.relative_to(place)), file.read_text()) for file in sorted((place / part).rglob("*.yaml"))]


@cache
def _shipped(place: Path) -> list[tuple[str, str]]:
    return _read(place, "experiments" if place == ROOT else "")


@pytest.fixture(scope="module", autouse=True)
def _light_garbage() -> None:
    """What libraries made when they were imported, millions of objects, is not looked through again and again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


def session_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of this session, one for all processes of pytest-xdist."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


def made_once(tmp_path_factory: pytest.TempPathFactory, name: str, make: Callable[[Path], Any]) -> Path:
    """`make(folder)` by one process, once in a session; the others wait and share it. Only to be read: a test that
    changes it takes a copy.
    """
    place = session_folder(tmp_path_factory) / "made" / name
    place.parent.mkdir(exist_ok=True)
    with place.with_suffix(".lock").open("w") as lock:
        flock(lock, LOCK_EX)
        if not place.with_suffix(".done").exists():
            make(place)
            place.with_suffix(".done").touch()
    return place


def compose(*overrides: str, name: str = "train") -> dict[str, Any]:
    """The resolved configuration of a command line."""
    from omegaconf import OmegaConf

    here = any(Path(folder).is_dir() for folder in ("conf", "experiments"))  # options of a test's own
    found = OmegaConf.to_container((_composed.__wrapped__ if here else _composed)(name, overrides), resolve=True)
    assert isinstance(found, dict)
    return {str(key): value for key, value in found.items()}


@cache
def _composed(name: str, overrides: tuple[str, ...]) -> Any:
    """Before what refers to the environment is resolved."""
    import hydra
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return hydra.compose(name, overrides=list(overrides))


@pytest.fixture
def spec() -> Spec:
    return Spec(
        cameras=("left", "right"),
        image_size=(32, 32),
        state_size=3,
        action_size=4,
        horizon=8,
        n_obs_steps=2,
        n_action_steps=4,
        instructions=("Open the drawer", "Close the window gently"),
        joint_groups={"arm": [0, 1, 2], "gripper": [3]},
        fps=10.0,
    )


def drawn_batch(spec: Spec, size: int) -> Batch:
    """A fake batch with all the draws of a training step."""
    g = torch.Generator().manual_seed(5)
    batch = fake_batch(spec, size)
    ends = torch.arange(size)[:, None] + 1  # so that parts differ in how much of them is padding
    return replace(
        batch,
        is_pad=torch.arange(spec.horizon) >= ends,
        noise=torch.randn(batch.actions.shape, generator=g),
        time=torch.rand(size, generator=g),
        crop=torch.rand(size, 2, generator=g),
        color=torch.rand(size, 2, generator=g),
        key=torch.randint(2**62, (size,), generator=g),
    )


def check_split(policy: Any, batch: Batch) -> None:
    """The gradient of a batch is that of its parts, as the trainer weighs and adds them; nothing but dropout may draw
    elsewhere.
    """
    policy.train()
    for module in policy.modules():
        module.p = 0.0 if isinstance(module, nn.Dropout) else getattr(module, "p", None)
        if isinstance(module, nn.MultiheadAttention):
            module.dropout = 0.0
    found = []
    for parts in (1, 2, 4):
        policy.zero_grad()
        whole = (~batch.is_pad).sum()
        for number, part in enumerate(batch.split(parts)):
            torch.manual_seed(100 * parts + number)
            (policy.loss(part)["loss"] * (~part.is_pad).sum() / whole).backward()
        found.append(torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None]))
    for other in found[1:]:
        assert (other - found[0]).norm() < 1e-5 * found[0].norm()


@contextmanager
def browsing() -> Iterator[Any]:
    """A page of Debian's chromium; none of its scripts may fail."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("needs Debian's chromium (apt-get install chromium)")
    from playwright.sync_api import sync_playwright

    errors: list[str] = []
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        yield page
        browser.close()
    assert not errors


@pytest.fixture(autouse=True)
def _isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No test writes outside its own folder, leaves torch in another state, or waits for a hundred chunks to say how
    long one takes.
    """
    monkeypatch.setattr(judging, "CALLS", 3)
    monkeypatch.setenv("PROVLA_DATA", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    yield
    torch.use_deterministic_algorithms(False)
    if loky := sys.modules.get("joblib.externals.loky"):  # its workers would keep this test's environment
        loky.get_reusable_executor().shutdown(wait=True)


@pytest.fixture
def command(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str, str]]:
    """`command("train", "seed=1", …)` → exit code, stdout, stderr; the command runs in this process."""

    def run(name: str, *arguments: str) -> tuple[int, str, str]:
        from importlib import import_module

        from hydra.core.global_hydra import GlobalHydra

        GlobalHydra.instance().clear()
        monkeypatch.setattr(sys, "argv", [f"provla.{name}", *arguments])
        capfd.readouterr()
        code = 0
        try:
            import_module(f"provla.{name}").main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = capfd.readouterr()
        return code, out, err

    return run


@pytest.fixture(scope="session")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real recording: two tasks, two demonstrations each, by two processes."""
    asked = MetaworldRecording(("drawer-close", "window-open"), 2, ("corner2",), 32, 0, 0.05, 0.0, 3)
    return record(
        asked, session_folder(tmp_path_factory) / "recordings", workers=2
    )  # which waits for who records it already


@pytest.fixture(scope="session")
def two_cameras(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LeRobot v3 data set by LeRobot's own writer: two cameras, named joints, two tasks, five episodes of 12
    steps.
    """
    return made_once(tmp_path_factory, "two_cameras", write_two_cameras)


def write_two_cameras(root: Path) -> Path:
    """See `two_cameras`."""
    return write_lerobot(root, ["observation.state", "observation.effort", "action"])


def write_lerobot(
    root: Path,
    vectors: Sequence[str] = ("observation.state", "action"),
    cameras: Mapping[str, dict[str, Any]] | None = None,
    episodes: int = 5,
    length: int | Callable[[int], int] = 12,
    task: Callable[[int, int], str] = lambda episode, step: "Wave" if episode % 2 else "Point",
    picture: Callable[[int, int, int], np.ndarray] | None = None,
    encoder: Mapping[str, Any] | None = None,
    vector: Callable[[str, int, int], Any] | None = None,
    megabytes: float | None = None,
    **feature: Any,
) -> Path:
    """A LeRobot v3 data set by LeRobot's own writer. cameras: what differs from a video of 48×64. length: of an
    episode, or of each. task: of (episode, step). picture: of (camera, episode, step). encoder: what differs from h264
    with a key frame at every second. vector: of (key, episode, step). megabytes: at which a file is full. feature: of
    the vectors.
    """
    from lerobot.configs.video import RGBEncoderConfig
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    cameras = {"front": {}, "wrist": {}} if cameras is None else cameras
    features: dict[str, Any] = {
        f"observation.images.{camera}": {
            "dtype": "video",
            "shape": (48, 64, 3),
            "names": ["height", "width", "channels"],
        }
        | changes
        for camera, changes in cameras.items()
    }
    for key in vectors:
        features[key] = {"dtype": "float32", "shape": (3,), "names": ["shoulder", "elbow", "gripper"]} | feature
    dataset = LeRobotDataset.create(
        "test/two_cameras",
        fps=10,
        features=features,
        root=root,
        use_videos=any(f["dtype"] == "video" for f in features.values()),
        video_files_size_in_mb=megabytes,
        data_files_size_in_mb=megabytes,
        rgb_encoder=RGBEncoderConfig(**{"vcodec": "h264", "g": 2, "crf": 8, "preset": "ultrafast", **(encoder or {})}),
    )
    rng = np.random.default_rng(0)
    for episode in range(episodes):
        for step in range(length(episode) if callable(length) else length):
            frame: dict[str, Any] = {}
            for key in vectors:
                drawn = rng.standard_normal(3) * (1 if features[key]["dtype"] == "float32" else 100)
                values = drawn if vector is None else np.asarray(vector(key, episode, step))
                frame[key] = values.astype(features[key]["dtype"])
            for k, camera in enumerate(cameras):
                # A grey level that names camera, episode and step, so that a mixed-up frame shows.
                shape, depth = features[f"observation.images.{camera}"]["shape"], "info" in cameras[camera]
                level = 20 + 100 * k + 12 * episode + 4 * (step % 3)
                frame[f"observation.images.{camera}"] = (
                    np.full(shape, level, dtype=np.uint16 if depth else np.uint8)
                    if picture is None
                    else picture(k, episode, step)
                )
            dataset.add_frame(frame | {"task": task(episode, step)})
        dataset.save_episode(parallel_encoding=False)
    dataset.finalize()
    return root


# Option of vision or text → folder of a small model of the same family.
FAMILIES = {
    "siglip_base": "siglip",
    "siglip2_base": "siglip",
    "siglip_so400m": "siglip",
    "dinov2_small": "dinov2",
    "clip_base": "clip",
    "qwen2_5_0_5b": "qwen2",
    "tinyllama_1_1b": "llama",
    "minilm": "bert",
    "clip_text": "clip",
    "t5_small": "t5",
}


def unsaid() -> dict[str, str]:
    """The environment without a word on how long threads wait, which commands have the last on then."""
    return {key: value for key, value in os.environ.items() if key not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}


def local(option: str, backbones: Path) -> list[str]:
    """Overrides that give an option of vision or text a small folder instead of its Hub id."""
    if option == "dino_siglip":
        return [
            f"vision.towers.dinov2.name={backbones}/dinov2",
            f"vision.towers.siglip.name={backbones}/siglip",
            "vision.towers.dinov2.input_size=[56,56]",
        ]
    group = "text" if option in ("qwen2_5_0_5b", "tinyllama_1_1b", "minilm", "clip_text", "t5_small") else "vision"
    return [f"{group}.name={backbones}/{FAMILIES[option]}"] if option in FAMILIES else []


@pytest.fixture(scope="session")
def backbones(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small models in the form the Hub has them, heads and second towers included, by `save_pretrained`; a folder per
    family.
    """
    return made_once(tmp_path_factory, "backbones", write_backbones)


def write_backbones(folder: Path) -> None:
    """See `backbones`."""
    import transformers as t

    torch.manual_seed(0)
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
    sight, words = {**small, "image_size": 32, "patch_size": 8}, {**small, "vocab_size": 300}
    models: dict[str, Any] = {
        "siglip": t.SiglipModel(t.SiglipConfig(text_config=dict(words), vision_config=dict(sight))),
        "clip": t.CLIPModel(t.CLIPConfig(text_config={**words, "eos_token_id": 1}, vision_config=dict(sight))),
        "dinov2": t.Dinov2ForImageClassification(
            t.Dinov2Config(hidden_size=32, num_hidden_layers=3, num_attention_heads=4, image_size=70, patch_size=14)
        ),
        "resnet": t.ResNetForImageClassification(
            t.ResNetConfig(embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1], layer_type="basic")
        ),
        "qwen2": t.Qwen2ForCausalLM(t.Qwen2Config(**words, num_key_value_heads=2)),
        "llama": t.LlamaForCausalLM(t.LlamaConfig(**words, num_key_value_heads=2)),
        "bert": t.BertForMaskedLM(t.BertConfig(**words)),
        "t5": t.T5ForConditionalGeneration(
            t.T5Config(vocab_size=300, d_model=32, d_kv=8, d_ff=64, num_layers=3, num_heads=4)
        ),
    }
    processors = {
        "siglip": t.SiglipImageProcessor(size={"height": 32, "width": 32}),
        "clip": t.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
        "dinov2": t.BitImageProcessor(
            size={"shortest_edge": 80}, crop_size={"height": 70, "width": 70}, image_mean=[0.485, 0.456, 0.406]
        ),
        "resnet": t.ConvNextImageProcessor(size={"shortest_edge": 32}),
    }
    for name, model in models.items():
        for parameter in model.parameters():  # as after a training: nothing is exactly zero or one
            parameter.data += 0.02 * torch.randn_like(parameter)
        model.save_pretrained(folder / name)
        if name in processors:
            processors[name].save_pretrained(folder / name)
        if name not in ("dinov2", "resnet"):
            t.ByT5Tokenizer(extra_ids=0).save_pretrained(folder / name)
