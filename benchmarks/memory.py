"""Memory of frozen, cached backbones against the plain way: python benchmarks/memory.py [steps]

SigLIP-base's vision and Qwen2.5-0.5B's text at full size, from checkpoints that are written first, with random weights,
in the number formats of the Hub's (float32, bfloat16); two cameras of 224×224, batches of 4, one thread, float32. Every
figure is of a fresh process. First line: the training command where the frames' and sentences' features are known, from
its start to the end of its last step; against the steps alone of the plain way: LoRA in both, each sample's sentence
padded to 64 tokens, through the causal language model with its logits. Second: the same command to its end, judging
included, which runs the vision encoder for its milliseconds per chunk. Third: where the command makes those caches.
Then the peak of the summed PSS of four such commands at once, for each of them, against the resident size of one alone,
which is its PSS where nobody shares with it: up to the first's last step, and to its end. Other processes that have
torch loaded make a PSS smaller: there should be none. imports: of a process that does nothing but import what the
command has imported in the end, and its PSS. Lines of JSON, in MB.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from turns import held, told

SIZES = ["episodes=4", "length=16", "image_size=224", "cameras=[high,wrist]", "state_size=14", "action_size=14"]
ASKED = [
    *("dataset=fake", *(f"dataset.{size}" for size in SIZES), "augmentation=none", "adapter=frozen"),
    *("vision=siglip_base", "text=qwen2_5_0_5b", "vision.revision=null", "text.revision=null"),
    *("fusion=perceiver", "fusion.width=256", "fusion.num_latents=32", "fusion.depth=4", "fusion.num_heads=8"),
    *("fusion.state_hidden=256", "head=unet1d_concat", "scheduler=ddim", "trainer=default", "trainer.batch_size=4"),
    *("trainer.val_samples=8", "trainer.precision=none", "logger=none", "threads=1", "device=cpu"),
]
PARALLEL = 4


def write_backbones(folder: Path) -> None:
    import torch
    import transformers as t

    torch.manual_seed(0)
    sizes = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    t.SiglipVisionModel(t.SiglipVisionConfig(**sizes)).save_pretrained(folder / "vision")
    t.SiglipImageProcessor(size={"height": 224, "width": 224}).save_pretrained(folder / "vision")
    words = {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14}
    config = t.Qwen2Config(**words, vocab_size=151936, num_key_value_heads=2, tie_word_embeddings=True)
    t.Qwen2ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder / "text")
    t.ByT5Tokenizer(extra_ids=0).save_pretrained(folder / "text")


def plain(place: Path) -> None:
    """The plain way's steps; prints the peak while they last, and while the models were loaded."""
    import torch
    from steps import Plainly, drawn, policy_of, stepper

    from provla.core.machine import forget_peak_memory

    torch.set_num_threads(1)
    pretrained = [f"{part}.{key}" for part in ("vision", "text") for key in (f"name={place / part}", "revision=null")]
    policy = policy_of("vision.pretrained=true", "text.pretrained=true", *pretrained)
    policy.plain = Plainly(policy)
    policy.train()
    loading = held("VmHWM")
    step = stepper(policy, drawn(), True)
    forget_peak_memory(torch.device("cpu"))  # it starts anew, at what is held now
    for _ in range(3):
        step()
    print(json.dumps({"peak": held("VmHWM"), "loading": loading}))


def train(place: Path) -> None:
    """The command, in this process; prints its peak up to the end of the last step, and in all. What it has imported in
    the end goes into `modules`.
    """
    from provla.run import train as run
    from provla.train import main as start

    peaks, save = {}, run.save_policy

    def trained(*given: Any, **more: Any) -> None:  # the training has just ended
        peaks["trained"] = held("VmHWM")
        save(*given, **more)

    run.save_policy = trained
    try:
        start()
    finally:  # it exits
        (place / "modules").write_text("\n".join(sys.modules))
        print(json.dumps(peaks | {"peak": held("VmHWM")}))


def imports(place: Path) -> None:
    import contextlib
    import importlib

    for name in (place / "modules").read_text().split("\n"):
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    print(json.dumps({"peak": held("VmHWM"), "pss": held("Pss", "smaps_rollup")}))


def started(kind: str, place: Path, *arguments: str) -> subprocess.Popen[str]:
    environment = os.environ | {"PROVLA_DATA": str(place / "data"), "HF_HUB_OFFLINE": "1"}
    asked = [sys.executable, __file__, f"--{kind}", str(place), *arguments]
    return subprocess.Popen(asked, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def ended(process: subprocess.Popen[str]) -> dict[str, Any]:
    """What it said in its last line, where that is JSON."""
    out, err = process.communicate()
    if process.returncode:
        sys.exit(out + err)
    last = out.strip().rpartition("\n")[2]
    return json.loads(last) if last.startswith("{") else {}


def command(place: Path, run: str, steps: int, seed: int = 0) -> subprocess.Popen[str]:
    names = [f"vision.name={place / 'vision'}", f"text.name={place / 'text'}", f"hydra.run.dir={place / run}"]
    return started("train", place, *ASKED, *names, f"trainer.max_steps={steps}", f"seed={seed}")


def watched(what: str, place: Path, runs: dict[str, subprocess.Popen[str]]) -> tuple[float, float]:
    """The highest sum of what the runs' smaps say (Pss, Rss) [MB], looked at ten times a second: until the first has
    trained, and until the first ends.
    """
    training = highest = 0.0
    while all(process.poll() is None for process in runs.values()):
        highest = max(highest, sum(held(what, "smaps_rollup", process.pid) for process in runs.values()))
        if not any((place / run / "policy").exists() for run in runs):
            training = highest
        time.sleep(0.1)
    for process in runs.values():
        ended(process)
    return training, highest


def say(what: str, against: str, ours: float, theirs: float, **more: Any) -> None:
    told(what, against, [(ours, theirs)], share=True, unit="MB", **more)


def main(steps: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        ended(started("write", place))
        theirs = ended(started("plain", place))
        first = ended(command(place, "first", steps))
        ours = ended(command(place, "second", steps))
        bare = ended(started("imports", place))
        more = {"imports": round(bare["peak"]), "their_loading": round(theirs["loading"])}
        against = "steps of the plain way"
        say("peak memory of training, caches known", against, ours["trained"], theirs["peak"], **more)
        say("peak memory of the command, caches known", against, ours["peak"], theirs["peak"], **more)
        say("peak memory of the command, caches made", against, first["peak"], theirs["peak"], **more)
        one = watched("Rss", place, {"alone": command(place, "alone", steps)})
        beside = {f"beside{n}": command(place, f"beside{n}", steps, n) for n in range(PARALLEL)}
        four = watched("Pss", place, beside)
        for what, alone, total in zip(("training", "the command"), one, four, strict=True):
            more = {"total": round(total), "plain": round(theirs["peak"])}
            more |= {"imports": round(bare["peak"]), "imports_pss": round(bare["pss"])}
            say(f"PSS of {what}, each of {PARALLEL} at once", "one alone", total / PARALLEL, alone, **more)


if __name__ == "__main__":
    inside = {"--write": write_backbones, "--plain": plain, "--train": train, "--imports": imports}
    if len(sys.argv) > 2 and sys.argv[1] in inside:
        given, where = sys.argv[1], Path(sys.argv[2])
        sys.argv = ["provla.train", *sys.argv[3:]]
        inside[given](where)
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 40)
