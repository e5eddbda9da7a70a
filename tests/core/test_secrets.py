"""Planted keys are found nowhere: in no file, no name of one, no message, no tracker's record; and hints are not hidden
with them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import FAKE, compose

from provla.core.files import write_json
from provla.core.identity import differences, identity
from provla.core.secrets import hide, hide_in

Command = Callable[..., tuple[int, str, str]]
WANDB, TOKEN, PASSWORD = "c0ffee1234" * 4, "planted-Token-8c1f", "hunter2hunter2"
COMMIT = "57c216476eefef5ab752ec549e440a49ae4ae5f3"


@pytest.fixture(autouse=True)
def _planted(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (
        ("WANDB_API_KEY", WANDB),
        ("PLANTED_TOKEN", TOKEN),
        ("MY_PASSWORD", PASSWORD),
        ("SSH_KEY", "/home/me/.ssh/id"),
        ("A_KEY", "short"),
    ):
        monkeypatch.setenv(name, value)


def leaks(folder: Path, *texts: str) -> Iterator[str]:
    """Files of a folder, their names and texts that hold a planted key."""
    for secret in (WANDB, TOKEN, PASSWORD, "literal-9d2e"):
        for path in folder.rglob("*"):
            if secret in path.name or (path.is_file() and secret.encode() in path.read_bytes()):
                yield str(path)
        yield from (text for text in texts if secret in text)


@pytest.mark.parametrize(
    "text",
    [
        "text.pad_token='</s>'",
        "its tokenizer has no padding token; name one of its tokens, such as text.pad_token='</s>'",
        "dataset.state_key='observation.state' is not a vector of this data set; it has: observation.state, action",
        "dataset.action_key=action",
        "max_tokens=512 head.conditioning=tokens image_token=7",
        "unknown key 'logger.token'; valid here: project, entity",
        "logger.api_key=${oc.env:WANDB_API_KEY}",
        "WANDB_API_KEY is not set; set HF_TOKEN (in the environment or in .env)",
        "the state's token: the mean",
        f"text.revision={COMMIT}",
        f"vision: facebook/dinov2-small at {COMMIT}",
        f"/hub/models--x/snapshots/{COMMIT}/model.safetensors",
        "git+ssh://git@github.com/a/b and sqlite:////tmp/x@y.db",
        "hf_hub_download(repo_id), sk-learn, A_KEY=short /home/me/.ssh/id",
        "python -m provla.train -m fusion=film,perceiver seed=range(3)",
    ],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert hide(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("+logger.api_key=abc", "+logger.api_key=<hidden>"),
        (
            "nothing reads logger.api_key='a b'; it takes: project",
            "nothing reads logger.api_key='<hidden>'; it takes: project",
        ),
        ('{"hf_token": "abc", "seed": 0}', '{"hf_token": "<hidden>", "seed": 0}'),
        ('{\\"client_secret\\": \\"abc\\"}', '{\\"client_secret\\": \\"<hidden>\\"}'),
        ("password=123456", "password=<hidden>"),
        ("my_token=abcd1234efgh5678", "my_token=<hidden>"),
        ("cloned https://me:pw@host/x", "cloned https://<hidden>@host/x"),
        ("GET https://host/x?token=abcd&page=1", "GET https://host/x?token=<hidden>&page=1"),
        ("using hf_abcdEFGH1234567890ijkl", "using <hidden>"),
        ("Authorization: Bearer abcdefgh12345678", "Authorization: Bearer <hidden>"),
        (f"x{PASSWORD}y {WANDB}", "x<hidden>y <hidden>"),
        ("deadbeef" * 5, "<hidden>"),
    ],
)
def test_secrets_are_hidden(text: str, shown: str) -> None:
    assert hide(text) == shown
    assert hide(shown) == shown


def test_configurations_keep_everything_else(tmp_path: Path) -> None:
    config = compose(*FAKE)
    assert hide_in(config) == config
    secret = {
        **config,
        "dataset": {
            **config["dataset"],
            "api_key": "abc",
            "url": "https://me:pw@host",
            "revision": COMMIT,
            "pad_token": "<pad>",
        },
    }
    write_json(tmp_path / "config.json", secret | {"said": ["say the password: swordfish"]})
    stored = (tmp_path / "config.json").read_text()
    assert "abc" not in stored
    assert "me:pw" not in stored
    assert COMMIT in stored
    assert "swordfish" in stored  # a sentence that a policy reads
    # A run is found again by what is stored of it, and another secret makes no other run.
    assert identity(hide_in(secret)) == identity(secret) != identity(config)
    assert differences({**secret, "dataset": {**secret["dataset"], "api_key": "xyz"}}, secret) == []


@pytest.mark.parametrize(
    ("argument", "reason"),
    [
        ("+logger.api_key=literal-9d2e", "+logger.api_key=<hidden> holds a secret"),
        (
            "dataset.root=https://me:literal-9d2e@host/x",
            "dataset.root=https://<hidden>@host/x holds credentials in a URL",
        ),
        ("resume=https://host/x?token=literal-9d2e", "https://host/x?token=<hidden>' holds a key in a URL"),
        ("question=hf_abcdEFGH1234567890ijkl", "question=<hidden> holds a Hugging Face token"),
        (f"question={TOKEN}", "question=<hidden> holds the value of PLANTED_TOKEN"),
        (f"hydra.job.env_set.WANDB_API_KEY={WANDB}", "holds the value of WANDB_API_KEY"),
    ],
)
@pytest.mark.parametrize("many", [False, True])
def test_a_secret_on_the_command_line_is_refused_and_leaves_nothing(
    command: Command, tmp_path: Path, argument: str, reason: str, many: bool
) -> None:
    where = [f"hydra.sweep.dir={tmp_path / 'out'}", "-m"] if many else [f"hydra.run.dir={tmp_path / 'out'}"]
    code, out, err = command("train", *FAKE, argument, *where)
    assert code == 2
    assert reason in err
    assert "${oc.env:NAME}" in err
    assert not list(leaks(tmp_path, out, err))
    assert not (tmp_path / "out").exists()


def test_a_secret_in_a_yaml_is_refused(command: Command, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    for group, text in (
        ("fusion", "_target_: provla.fusion.Add\n_partial_: true\napi_key: literal-9d2e\n"),
        ("experiments", "# @package _global_\nquestion: hf_a1literal9d2e000000\n"),
    ):
        (mine / group).mkdir(parents=True)
        (mine / group / "leaky.yaml").write_text(text)
    for number, arguments in enumerate(
        (["fusion=leaky"], ["-m", "fusion=leaky,film"], ["-m", "experiments=leaky", "seed=0,1"])
    ):
        out = tmp_path / f"out{number}"
        code, *said = command(
            "train",
            "--config-dir",
            str(mine),
            *arguments,
            *[o for o in FAKE if "fusion" not in o],
            f"hydra.run.dir={out}",
            f"hydra.sweep.dir={out}",
        )
        assert code != 0
        assert "holds a" in said[1]
        assert "literal" not in "".join(said)
        assert not list(leaks(out))
        assert not list(out.rglob("result.json"))


def test_a_run_that_reads_secrets_from_the_environment_keeps_none(command: Command, tmp_path: Path) -> None:
    """A whole run with W&B offline, again, judged again, and one that fails with the secret in its error."""
    fake = [o for o in FAKE if not o.startswith("logger")]
    run = tmp_path / "run"
    tracked = [
        "logger=wandb",
        "logger.mode=offline",
        "question='is it ${oc.env:PLANTED_TOKEN}?'",
        f"hydra.run.dir={run}",
    ]
    for said in ("written to", "completed already"):
        code, out, err = command("train", *fake, *tracked)
        assert code == 0, err
        assert said in out
        assert not list(leaks(tmp_path, out, err))
    assert "question: is it ${oc.env:PLANTED_TOKEN}?" in (run / ".hydra" / "config.yaml").read_text()
    assert "is it <hidden>?" in (run / "config.json").read_text()
    assert list((run / "wandb").rglob("*.wandb"))
    code, *said = command("train", *FAKE, "objective=${oc.env:MY_PASSWORD}", f"hydra.run.dir={tmp_path / 'failed'}")
    assert code == 2
    assert "objective='<hidden>' is not measured" in said[1]
    assert "objective='<hidden>' is not measured" in (tmp_path / "failed" / "result.json").read_text()
    assert not list(leaks(tmp_path, *said))


def test_a_sweep_keeps_no_secret(command: Command, tmp_path: Path) -> None:
    sweep = [
        "-m",
        *FAKE,
        "seed=0,1",
        "dataset.cameras=['${oc.env:PLANTED_TOKEN}']",
        "question='${oc.env:MY_PASSWORD}'",
        f"hydra.sweep.dir={tmp_path / 'sweep'}",
    ]
    code, out, err = command("train", *sweep)
    assert code == 0, err
    assert len(list((tmp_path / "sweep").glob("*/result.json"))) == 2
    assert not list(leaks(tmp_path, out, err))


def test_what_hydra_shows_of_a_configuration(command: Command) -> None:
    code, out, err = command("train", "question=${oc.env:PLANTED_TOKEN}", "--cfg", "job", "--resolve")
    assert (code, "question: <hidden>" in out) == (0, True), out
    assert not list(leaks(Path(), out, err))
    assert command("train", "--exp", "x/.hydra/config.pickle")[0] == 2
