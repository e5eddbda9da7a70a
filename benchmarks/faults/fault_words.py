"""Mistakes of the hand: command lines and configuration files that are wrong. Each has to end in a run or in one
message, never in a traceback.
"""

from __future__ import annotations

import contextlib
import io
import os
import random
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "benchmarks"))
from tiny import TINY  # noqa: E402

os.environ.setdefault("PROVLA_ROOT", str(ROOT))
SEED = 0
# A run of a second, for lines that turn out to be right.
FAKE = [*TINY, "logger=none", "trainer.val_every=2", "trainer.max_steps=1"]
# What people write, and worse.
VALUES = [
    *("abc", "''", "' '", "ünï", "'a b'", "a/b", "'../x'", "null", "true", "false", "'3'", "???", "auto", "none"),
    *(
        "0",
        "-1",
        "1",
        "2",
        "3",
        "7",
        "100000",
        "1000000000000",
        "-1000000000000",
        "0.5",
        "-0.5",
        "1.0",
        "1e-9",
        "1e38",
        "1e400",
        "nan",
        "inf",
        "-inf",
    ),
    *(
        "[]",
        "[1]",
        "[1,2]",
        "[a,b]",
        "[0.9]",
        "[null]",
        "[[1]]",
        "{}",
        "{a:1}",
        "{_target_:os.getcwd}",
        "1,2",
        "a=b",
        "[1",
        "{a",
        "'${nope}'",
        "'${oc.env:NOPE}'",
    ),
]
# Everything the issue names, and what is like it.
NAMED = [
    *(
        "trainer.lr=abc",
        "trainer.lr=null",
        "trainer.betas=0.9",
        "dataset.val_fraction=abc",
        "head.channels=64",
        "fusion.width=a",
        "trainer.max_steps=true",
    ),
    *(
        "scheduler.num_inference_steps=a",
        "text.config.hidden_size=63",
        "head.width=0",
        "eval_episodes=-1",
        "trainer.batch_size=100000",
        "horizon=0",
    ),
    *(
        "head.channels=[12,20]",
        "head.channels=[]",
        "head.kernel_size=4",
        "head.time_width=3",
        "policy.normalization.action=log",
        "n_obs_steps=null",
    ),
    *(
        "text.config.num_attention_heads=0",
        "text.config={}",
        "text.config.hidden_act=loud",
        "vision.pool=max",
        "trainer.betas=[1,2]",
        "trainer.lr=nan",
    ),
    *(
        "policy=act policy.options.dim_model=a",
        "policy=diffusion policy.options.down_dims=64",
        "policy=diffusion policy.options.horizon=3",
    ),
    *(
        "vision=siglip_tiny vision.config.patch_size=7",
        "vision=siglip_tiny vision.config.image_size=a",
        "vision=siglip_tiny vision.processor.image_mean=a",
    ),
    *(
        "adapter=lora +adapter.peft.bias=7",
        "adapter=lora +adapter.peft.rank=7",
        "adapter=lora adapter.dropout=2",
        "quant=4bit quant.bits=5",
    ),
    *(
        "fusion=perceiver fusion.num_heads=3",
        "fusion.match_params=-5",
        "fusion.match_params=1",
        "policy=act policy.scheduler=null",
        "~head.channels",
    ),
    *(
        "dataset.image_size=[8,8]",
        "dataset.cameras=front",
        "dataset.episodes=0",
        "dataset.state_size=-1",
        "augmentation.pad=-1",
        "seed=1.5",
        "seed=[1]",
    ),
]


class Enough(BaseException):
    """The line is a run, and its time is over."""


def say(arguments: Sequence[str], name: str = "train", seconds: float = 6.0) -> tuple[str, str]:
    """How a command line ends, in this process: its exit code, `ran` where it was still at it after `seconds` of CPU
    time, or `traceback`; and what it said.
    """
    from hydra.core.global_hydra import GlobalHydra

    def enough(*_: Any) -> None:
        raise Enough

    out, before = io.StringIO(), (sys.argv, signal.signal(signal.SIGVTALRM, enough))
    sys.argv = [f"provla.{name}", *arguments]
    GlobalHydra.instance().clear()
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        with contextlib.redirect_stderr(out), contextlib.redirect_stdout(io.StringIO()):
            __import__(f"provla.{name}", fromlist=["main"]).main()
        code = "0"
    except SystemExit as stop:
        code = str(stop.code or 0)
    except Enough:
        code = "ran"
    except BaseException:
        code = "traceback"
        out.write(traceback.format_exc())
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        sys.argv = before[0]
        signal.signal(signal.SIGVTALRM, before[1])
    return code, out.getvalue()


def survived(code: str, said: str) -> bool:
    """A run, numbers that are not finite (exit code 3, in words), or one message with exit code 2."""
    if code in ("0", "ran"):
        return True
    return code in ("2", "3") and "Traceback" not in said and said.count("error: ") >= 1


def names() -> tuple[dict[str, list[str]], list[str]]:
    """Group → its options; the keys that there are, dotted, of the fake run and of every option."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import OmegaConf

    groups = {
        g.name: sorted(f.stem for f in g.glob("*.yaml"))
        for g in (ROOT / "conf").iterdir()
        if g.is_dir() and g.name != "backbone"
    }
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        whole = OmegaConf.to_container(compose("train", overrides=FAKE), resolve=False)
    keys = [key for key in _dotted(whole) if not key.startswith(("logger", "hydra"))]
    for group, options in groups.items():
        for option in options:
            node = OmegaConf.to_container(OmegaConf.load(ROOT / "conf" / group / f"{option}.yaml"), resolve=False)
            inside = node.get(group, node) if isinstance(node, dict) else {}  # type: ignore[call-overload]
            keys += [
                f"{group}={option} {group}.{key}"
                for key in _dotted({k: v for k, v in inside.items() if k != "defaults"})
            ]
    return groups, keys


def _dotted(node: Any, prefix: str = "") -> Iterator[str]:
    for key, value in node.items() if isinstance(node, dict) else ():
        yield f"{prefix}{key}"
        yield from _dotted(value, f"{prefix}{key}.")


def lines(count: int, seed: int = SEED) -> list[list[str]]:
    """Random override lines over all groups and keys, each on top of the fake run."""
    draw = random.Random(seed)
    groups, keys = names()
    # Record, simulate and start a service where nothing is wrong with them.
    slow = {
        "dataset=metaworld",
        "env=metaworld",
        "logger=wandb",
    }
    found = []
    while len(found) < count:
        line = list(FAKE)
        for _ in range(draw.choice((1, 1, 1, 2, 3))):
            kind = draw.random()
            if kind < 0.15:
                group = draw.choice(list(groups))
                line.append(f"{group}={draw.choice([*groups[group], draw.choice(VALUES)])}")
            else:
                key = draw.choice(keys)
                mark = draw.choice(("", "", "", "", "", "+", "++", "~"))
                *option, key = key.split(" ")
                line += [*option, f"{mark}{key}" + ("" if mark == "~" else f"={draw.choice(VALUES)}")]
        if not slow & set(line):
            found.append(line)
    return found


def judge(tries: Sequence[tuple[str, Sequence[str]]], place: Path, seconds: float = 20.0) -> tuple[int, int, str]:
    """(tried, survived, note); what did not survive is printed."""
    ends: Counter[str] = Counter()
    lost, before = 0, Path.cwd()
    os.chdir(place)
    os.environ |= {"PROVLA_DATA": str(place / "data"), "HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline"}
    # What is imported is imported: no later line is cut off in the middle of that.
    say([*FAKE, f"hydra.run.dir={place}/first"], seconds=1e9)
    begun = time.process_time()
    try:
        for number, (label, line) in enumerate(tries):
            code, said = say([*line, f"hydra.run.dir={place}/{number}"], seconds=seconds)
            ends[code] += 1
            if not survived(code, said):
                lost += 1
                print(f"LOST {code}: {label}\n{said[-1500:]}", flush=True)
    finally:
        os.chdir(before)
    ended = {"0": "runs", "ran": "runs that went on", "2": "messages", "3": "not finite"}
    note = ", ".join(f"{count} {ended.get(code, code)}" for code, count in ends.most_common())
    return len(tries), len(tries) - lost, f"{note}; {(time.process_time() - begun) / len(tries):.2f} s of CPU time each"


def fault_random_lines(place: Path) -> tuple[int, int, str]:
    """500 random command lines over all groups and keys"""
    return judge([(" ".join(line[len(FAKE) :]), line) for line in lines(500)], place, 10.0)


def fault_named_lines(place: Path) -> tuple[int, int, str]:
    """command lines with one wrong value, which ended in tracebacks or ran nonsense once: every one has to end in a
    message
    """
    tried, alive, note = judge([(line, [*_fitting(line), *line.split()]) for line in NAMED], place)
    return tried, alive, note


def _fitting(line: str) -> list[str]:
    """The fake run without what belongs to options that the line changes."""
    changed = {word.partition("=")[0] for word in line.split() if "." not in word}
    return [override for override in FAKE if override.partition(".")[0] not in changed]


# Group → the option that is made wrong.
GROUPS = {
    "fusion": "film",
    "head": "mlp",
    "vision": "conv_small",
    "scheduler": "flow",
    "trainer": "default",
    "dataset": "fake",
    "pruner": "median",
    "augmentation": "crop",
}


def malformed(group: str) -> Iterator[tuple[str, dict[str, bytes]]]:
    """What is wrong, and the files, in a folder for `--config-dir`, that make `<group>=bad` wrong in this way."""
    good = (ROOT / "conf" / group / f"{GROUPS[group]}.yaml").read_text()
    node = "\n".join(line for line in good.splitlines() if not line.startswith(("#", "defaults", "  - ")))
    node = "\n".join(line[2:] for line in node.splitlines() if line.startswith("  ")) if group == "dataset" else node
    target = next(line for line in node.splitlines() if line.startswith("_target_"))
    rest = node.replace(target, "").strip()
    texts = {
        "no _target_": rest,
        "_target_ of no module": f"_target_: nowhere.Nothing\n{rest}",
        "_target_ of no class": f"{target}s\n{rest}",
        "_target_ of another kind": f"_target_: os.getcwd\n{rest}",
        "_target_ null": f"_target_: null\n{rest}",
        "_target_ a number": f"_target_: 7\n{rest}",
        "_target_ a module": f"_target_: provla.fusion\n{rest}",
        "a list for a node": "- 1\n- 2\n",
        "a text for a node": "just words\n",
        "an empty file": "",
        "a bracket left open": f"{target}\nwidth: [1, 2\n",
        "a tab": f"{target}\n\twidth: 3\n",
        "a key twice": f"{node}\n{target}\n",
        "a default that is not there": f"defaults:\n  - nix\n  - _self_\n{node}",
        "a circle of defaults": f"defaults:\n  - bad\n  - _self_\n{node}",
        "defaults that are no list": f"defaults: nix\n{node}",
        "another package header": f"# @package nix.{group}\n{node}",
        "an interpolation of nothing": f"{node}\nmore: ${{nix.nix}}\n",
        "an interpolation that goes round": f"{node}\nmore: ${{.more}}\n",
        "an interpolation left open": f"{node}\nmore: ${{nix\n",
        "an unknown resolver": f"{node}\nmore: ${{nix:3}}\n",
        "an unknown environment variable": f"{node}\nmore: ${{oc.env:NIX_NIX}}\n",
        "_partial_ a text": f"{node.replace('_partial_: true', '')}\n_partial_: perhaps\n",
        "_args_": f"{node}\n_args_: [1]\n",
        "a key that nothing reads": f"{node}\ncolour: red\n",
        "a mandatory value without one": f"{node}\nmore: ???\n",
        "no value at all": target,
    }
    for what, text in texts.items():
        yield what, {f"{group}/bad.yaml": text.encode()}
    yield "no text but bytes", {f"{group}/bad.yaml": b"\xff\xfe\x00\x01"}
    yield "a folder for a file", {f"{group}/bad.yaml/x": b""}


def broken(place: Path) -> list[tuple[str, list[str]]]:
    """A command line for every malformed configuration, whose files are written under `place`."""
    tries = []
    for group in GROUPS:
        for number, (what, files) in enumerate(malformed(group)):
            folder = place / f"{group}{number}"
            for path, text in files.items():
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                (folder / path).write_bytes(text)
            tries.append(
                (
                    f"{group}: {what}",
                    ["--config-dir", str(folder), *_fitting(f"{group}=bad"), f"{group}=bad", "env=none"],
                )
            )
    return tries


def fault_malformed_files(place: Path) -> tuple[int, int, str]:
    """malformed configuration files: no target, wrong kinds, broken YAML, circles, interpolations of nothing"""
    return judge(broken(place), place)


if __name__ == "__main__":
    import tempfile

    for fault in (fault_named_lines, fault_malformed_files, fault_random_lines):
        if not sys.argv[1:] or sys.argv[1] in fault.__name__:
            print(fault.__name__, fault(Path(tempfile.mkdtemp())))
