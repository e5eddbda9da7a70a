"""What frozen encoders have seen and read once is not shown to them again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from provla.augmentation import NoAugmentation
from provla.backbone.fingerprints import content
from provla.backbone.tower import towers
from provla.core.errors import NoSpace
from provla.core.files import fingerprint
from provla.core.progress import console
from provla.dataset.features import feature_cache, frames_digest
from provla.dataset.joined import in_videos
from provla.run.frozen import asking, decided_by
from provla.run.sentences import remember_sentences
from provla.run.setting import Setting

FOLDER = "features"  # of the data folder


def remember(config: Mapping[str, Any], policy: Any, setting: Setting, device: torch.device) -> None:
    """Of all frames and sentences of the data, where encoders are frozen. What they made of them is cached; then their
    weights may rest.
    """
    if config.get("feature_cache", "auto") == "off":
        return
    remember_sentences(config, policy, setting.data.instructions, Path(config["data_dir"]).expanduser() / FOLDER)
    remember_features(config, policy, setting, device)


def remember_features(config: Mapping[str, Any], policy: Any, setting: Setting, device: torch.device) -> None:
    """Gives both samplers what the policy's frozen vision encoder makes of the frames, from a cache that is made now if
    it is not there. Losses and weights are those of a run without, to the last bit where a training computes in the
    precision of deployment; elsewhere (autocast) the cached features are the more exact ones.

    Where that cannot be, a line says why, unless the encoder is one that trains from scratch anyway.
    """
    vision: Any = getattr(policy, "vision", None)
    if not hasattr(vision, "encode") or not getattr(vision, "pretrained", False):
        return
    if reason := _moving(policy):
        console.print(f"the vision encoder runs in every step: {reason}")
        return
    arrays = {name: frames for name, frames in setting.data.frames.items() if not in_videos(frames)}
    if len(arrays) < len(setting.data.frames):
        console.print("the vision encoder runs in every step: its features are kept with dataset.cache=full alone")
        return
    place, kept = Path(config["data_dir"]).expanduser() / FOLDER, []
    try:
        for camera in setting.spec.cameras:
            frames = arrays[camera]
            name = fingerprint(_facts(config, policy, device) | {"frames": frames_digest(frames)}, 24)
            kept.append(feature_cache(place / f"{name}.npy", camera, frames, _encoder(policy, device)))
    except NoSpace as error:
        console.print(f"the vision encoder runs in every step: {error}; vision.pool=patches_2x2 takes a quarter")
        return
    setting.learn.features = setting.held.features = kept
    for _, tower in towers(vision):
        tower.rest()
    size = sum(one.rows.nbytes for one in kept)
    console.print(f"the frozen vision encoder has seen every frame: {size / 1e9:.2f} GB of features in {place}")


def _moving(policy: Any) -> str:
    """Why a frame's features are not the same in every step; empty where they are."""
    if any(p.requires_grad for p in policy.vision.adaptable.parameters()):
        return "some of its weights train (vision.adapter=frozen keeps it as it is)"
    if not isinstance(policy.augmentation, NoAugmentation):
        return "its pictures are changed at random (augmentation=none leaves them as they are)"
    return ""


def _encoder(policy: Any, device: torch.device) -> Any:
    def encode(pictures: Tensor) -> Tensor:
        with asking(policy, "vision", "on a frame of the data", device):
            found: Tensor = policy.vision.encode(pictures.to(device))
        return found.cpu()

    return encode


def _facts(config: Mapping[str, Any], policy: Any, device: torch.device) -> dict[str, Any]:
    """All that decides, to the last bit, what the encoder makes of a picture."""
    # A base's fingerprint is known without reading its weights again.
    bases = [tower.base.fingerprint if tower.base else "" for _, tower in towers(policy.vision)]
    weights = " ".join(bases) if bases and all(bases) else content(policy.vision.adaptable)
    return decided_by(config, "vision", device) | {"weights": weights}
