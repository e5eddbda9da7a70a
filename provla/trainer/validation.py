"""What a policy comes to on demonstrations that it has not learned from."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from provla.core.errors import NotFinite
from provla.core.precision import repeatable
from provla.core.signals import check
from provla.dataset.sampler import Sampler
from provla.trainer.metrics import chunk_metrics, measured


def validate(
    policy: Any, val: Sampler, samples: int, batch_size: int, seed: int, device: torch.device, bars: Any | None = None
) -> dict[str, float]:
    """`loss` (the objective) and the metrics of sampled chunks on evenly spaced validation samples, with fixed draws,
    in the precision of deployment. torch's generators are left as they were. Of a mix each source is looked at, on its
    part of the samples, as `<metric>/<source>`, and what all come to is weighed by their shares of the training's.
    """
    sources = val.sources()
    if not sources:
        return _validate(policy, val, samples, batch_size, seed, device, bars)
    few = -(-samples // len(sources))
    found = {name: _validate(policy, one, few, batch_size, seed, device, bars) for name, (_, one) in sources.items()}
    shares, total = {name: share for name, (share, _) in sources.items()}, sum(s for s, _ in sources.values())
    common = [key for key in next(iter(found.values())) if all(key in one for one in found.values())]
    mean = {key: sum(shares[name] * one[key] for name, one in found.items()) / total for key in common}
    return mean | {f"{key}/{name}": value for name, one in found.items() for key, value in one.items()}


def _validate(
    policy: Any, val: Sampler, samples: int, batch_size: int, seed: int, device: torch.device, bars: Any | None = None
) -> dict[str, float]:
    """Of one source. What a GPU finds is fetched at the end."""
    policy.eval()
    rows = val.rows[np.unique(np.linspace(0, len(val.rows) - 1, min(samples, len(val.rows))).astype(int))]
    rng = np.random.default_rng([seed, 2])
    generator = torch.Generator().manual_seed(seed)
    bar = bars.add_task("validation", total=len(rows), note="") if bars else None
    losses, weights, chunks, truths, pads = [], [], [], [], []
    for start in range(0, len(rows), batch_size):
        batch = val.gather(rows[start : start + batch_size])
        noise = torch.from_numpy(rng.standard_normal(tuple(batch.actions.shape), dtype=np.float32))
        drawn = replace(batch, noise=noise, time=torch.from_numpy(rng.random(len(batch), dtype=np.float32))).to(device)
        check()
        with repeatable(seed, device):
            losses.append(policy.loss(drawn)["loss"])
            chunks.append(policy.act(drawn.observation, generator))
        weights.append((~batch.is_pad).sum().item())
        truths.append(batch.actions)
        pads.append(batch.is_pad)
        if bars:
            bars.advance(bar, len(batch))
    if bars:
        bars.remove_task(bar)
    found, sampled = torch.stack(losses).cpu(), torch.cat(chunks).cpu()
    for what, values in (("loss", found), ("sampled action chunk", sampled)):
        if not values.isfinite().all():
            raise NotFinite(f"on held-out samples the {what} is not finite")
    loss = float(np.average(found.tolist(), weights=weights))
    return {"loss": loss} | measured(
        chunk_metrics(sampled, torch.cat(truths), torch.cat(pads), policy.spec.joint_groups)
    )
