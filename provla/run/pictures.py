"""The pictures of one run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from provla.core.cameras import apart
from provla.dataset.demonstrations import Demonstrations
from provla.dataset.sampler import Sampler
from provla.run.chunks import plot_chunks
from provla.run.plots import plot_losses
from provla.trainer.fit import Fit


def plot_run(
    policy: Any, fit: Fit, val: Sampler, data: Demonstrations, folder: Path, device: torch.device
) -> tuple[list[Path], list[dict[str, Any]]]:
    """Pictures, and the chunks in the last one as rows: the mean of the samples beside what was demonstrated."""
    written = [plot_losses(fit.history, folder / "loss.png")] if fit.history else []
    table: list[dict[str, Any]] = []
    if len(val):
        # One observation a task, from the middle of its first held-out episode; four samples each show the spread.
        rows: list[int] = []
        seen: set[int] = set()
        owner = np.searchsorted(data.starts, val.rows, side="right") - 1
        for episode in np.unique(owner):
            if (task := data.task[episode]) not in seen and len(rows) < 8:
                seen.add(task)
                rows.append(int(data.starts[episode] + data.starts[episode + 1]) // 2)
        batch = val.gather(np.array(rows))
        samples = _samples(policy, val, rows, device)
        images = [one[:, -1].permute(0, 2, 3, 1).numpy() for one in apart(batch.observation.images, 2)]
        written.append(
            plot_chunks(
                samples,
                batch.actions.numpy(),
                batch.is_pad.numpy(),
                images,
                batch.observation.instruction,
                data.joint_names,
                policy.spec.cameras,
                folder / "chunks.png",
            )
        )
        mean = samples.mean(1)  # (R, H, A)
        for r, i, j in np.ndindex(mean.shape):
            if not batch.is_pad[r, i]:
                row = {"instruction": batch.observation.instruction[r], "step": i, "joint": data.joint_names[j]}
                table.append(row | {"predicted": float(mean[r, i, j]), "demonstrated": float(batch.actions[r, i, j])})
    return written, table


def _samples(policy: Any, val: Sampler, rows: list[int], device: torch.device, count: int = 4) -> Any:
    """(R,P,H,A): `count` chunks for each row, sampled as one batch, because as many small ones take as long each."""
    seen = val.gather(np.tile(rows, count)).observation.to(device)
    generators = [torch.Generator().manual_seed(i) for i in range(count)]
    drawn = policy.act(seen, [generator for generator in generators for _ in rows]).cpu().numpy()
    return drawn.reshape(count, len(rows), *drawn.shape[1:]).swapaxes(0, 1)
