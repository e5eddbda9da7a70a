"""A data set on the Hugging Face Hub: the files that are needed, and no others."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from provla.core.hub import guarded
from provla.dataset.format import Camera, Info
from provla.dataset.table import natural, read_table

ABOUT = ("meta/info.json", "meta/stats.json", "meta/tasks.parquet")


def commit_of(root: Path) -> str | None:
    """The Hub's commit of which a folder is the snapshot, by where it lies in the Hub's cache; else None."""
    return root.name if root.parent.name == "snapshots" and re.fullmatch(r"[0-9a-f]{40}", root.name) else None


class Remote:
    """The data set `repo_id` at `revision` (a branch, tag or commit; None: main), fetched into the Hub's cache in two
    steps, both at the commit that the first one found. What lies there is not fetched again. Errors: `ValueError`.
    """

    def __init__(self, repo_id: str, revision: str | None) -> None:
        self.repo_id, self.revision = repo_id, revision

    def begin(self) -> Path:
        """The folder, with what says what the data set is."""
        root = self._snapshot(ABOUT, self.revision)
        self.revision = commit_of(root) or self.revision
        return root

    def finish(self, info: Info, cameras: Iterable[Camera], first: int | None) -> list[str]:
        """Fetches the tables and the videos of these cameras; of the first episodes alone where a number is given.
        Says what it left.
        """
        videos = [camera.key for camera in cameras if camera.stored == "video"]
        if first is None:
            self._snapshot(["meta/*", "data/*", "images/*", *(f"videos/{key}/*" for key in videos)], self.revision)
            return []
        self._fetch_episodes(info, first)
        numbers = dict.fromkeys(("data", *(f"videos/{key}" for key in videos)), ("chunk_index", "file_index"))
        columns = [f"{key}/{part}" for key, parts in numbers.items() for part in parts]
        episodes = read_table(info.root, "meta/episodes", ["episode_index", *columns]).head(first)
        needed: dict[Path, None] = {}
        for key in numbers:
            chunks, files = (episodes.integers(f"{key}/{part}").tolist() for part in numbers[key])
            for chunk, file in dict.fromkeys(zip(chunks, files, strict=True)):
                of = info.table(chunk, file) if key == "data" else info.video(key.removeprefix("videos/"), chunk, file)
                needed[of] = None
        self._need(info.root, [file.relative_to(info.root).as_posix() for file in needed])
        return [f"of {self.repo_id}, {first} of {info.total_episodes} episodes were fetched: {len(needed)} files"]

    def _fetch_episodes(self, info: Info, first: int) -> None:
        """As many of the files under meta/episodes as say where the first episodes lie."""
        folder = info.root / "meta" / "episodes"

        def enough() -> bool:
            have = any(folder.rglob("*.parquet"))
            return have and len(read_table(info.root, "meta/episodes", ["episode_index"])) >= first

        if enough():
            return
        from huggingface_hub import HfApi

        names = guarded(
            lambda: HfApi().list_repo_files(self.repo_id, repo_type="dataset", revision=self.revision),
            self.repo_id,
            "dataset.repo_id",
        )
        for name in sorted((n for n in names if re.fullmatch(r"meta/episodes/.*\.parquet", n)), key=natural):
            self._need(info.root, [name])
            if enough():
                return

    def _need(self, root: Path, names: list[str]) -> None:
        if missing := [name for name in names if not (root / name).is_file()]:
            self._snapshot(missing, self.revision)

    def _snapshot(self, patterns: Iterable[str], revision: str | None) -> Path:
        from huggingface_hub import snapshot_download

        return Path(
            guarded(
                lambda: snapshot_download(
                    self.repo_id, repo_type="dataset", revision=revision, allow_patterns=list(patterns)
                ),
                self.repo_id,
                "dataset.repo_id",
            )
        )
