"""Two names for one configuration: does the verdict tell them apart?

    python benchmarks/same.py

Trains a tiny policy on made-up data 120 times, by seeds 0 to 119, makes twenty studies of two arms with three
trainings each of them, and judges each. Writes docs/same.csv. At 5 %, more than three studies with a word would be news
(binomial, 98 %).
"""

from __future__ import annotations

import contextlib
import io
import tempfile
from pathlib import Path

from tiny import TINY

from provla.core.files import csv_text, write_text
from provla.core.result import read_result
from provla.study.elsewhere import load_results
from provla.study.verdict import judge

STUDIES, TRAININGS = 20, 3
DOCS = Path(__file__).parents[1] / "docs"


def train(seed: int, folder: Path) -> float:
    import sys

    import provla.train

    asked = [*TINY, "logger=none", "trainer.max_steps=8", f"seed={seed}", f"hydra.run.dir={folder}"]
    sys.argv = ["provla.train", *asked]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        provla.train.main()
    return read_result(folder).value


def main() -> None:
    rows = []
    with tempfile.TemporaryDirectory() as place:
        for number in range(STUDIES):
            runs = []
            for arm in range(2):
                for _ in range(TRAININGS):
                    seed = 2 * TRAININGS * number + len(runs)
                    value = train(seed, Path(place) / str(seed))
                    runs.append({"arm": "ab"[arm], "seed": seed, "status": "completed", "trajectory_mse": value})
            file = Path(place) / "runs.csv"
            write_text(file, csv_text([run | {"config_hash": ""} for run in runs]))
            ((_, found),) = judge(load_results(file, "a"), 0.1, trial=False).compared
            rows.append({"study": number, "difference": found.difference, "p": found.p, "word": found.word})
            print(f"study {number}: {found.difference:+.4f}, p {found.p:.3f}, {found.word}", flush=True)
    write_text(DOCS / "same.csv", csv_text(rows, end="\n"))
    words = sum(row["word"] in ("better", "worse") for row in rows)
    print(f"{words} of {STUDIES} studies gave a word to one configuration under two names")


if __name__ == "__main__":
    main()
