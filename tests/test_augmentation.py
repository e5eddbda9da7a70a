"""What augmentations do to pictures: as much as they say, alike for a camera's frames, by the batch's draws alone."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import compose, drawn_batch
from PIL import Image
from torch import Tensor

from provla.augmentation import PARTS, CameraAugmentation, Part, RandomCrop, _jpeg
from provla.core.build import build
from provla.core.types import Batch, Spec

# Part → its strength here, and the mean change that it makes at this strength [grey levels]: at least, at most.
STRENGTHS = {
    "rotate": (10.0, 1, 40),
    "translate": (0.1, 1, 40),
    "shadow": (0.5, 3, 70),
    "color": (0.4, 5, 80),
    "gamma": (0.5, 3, 40),
    "blur": (0.08, 0.5, 30),
    "noise": (10.0, 2, 8),  # a normal number is 0.8 of its deviation away from its mean, and this the half of that
    "jpeg": (80.0, 0.5, 15),
}


def only(name: str, strength: float, probability: float = 1.0) -> CameraAugmentation:
    given: dict[str, Any] = {name: Part(strength=strength, probability=probability)}
    return CameraAugmentation(**given)


@pytest.fixture
def batch(spec: Spec) -> Batch:
    """Smooth pictures of 30×44, each other than its neighbours; the same at both observation steps."""
    found = drawn_batch(spec, 32)
    coarse = torch.rand(64, 3, 5, 7, generator=torch.Generator().manual_seed(1)) * 255
    fine = torch.nn.functional.interpolate(coarse, size=(30, 44), mode="bilinear").round().to(torch.uint8)
    images = fine.view(32, 1, 2, 3, 30, 44).expand(-1, 2, -1, -1, -1, -1)
    return replace(found, observation=replace(found.observation, images=images))


def change(batch: Batch, found: Tensor) -> Tensor:
    """(B,T,C): the mean change of each picture [grey levels]."""
    assert found.dtype == torch.uint8
    assert found.shape == batch.observation.images.shape
    return (found.float() - batch.observation.images.float()).abs().mean((-3, -2, -1))


@pytest.mark.parametrize("name", PARTS)
def test_each_part_changes_pictures_by_what_it_says_and_frames_of_a_camera_alike(name: str, batch: Batch) -> None:
    strength, least, most = STRENGTHS[name]
    found = only(name, strength)(batch)
    changed = change(batch, found)
    assert least < changed.mean() < most
    assert (changed > 0).float().mean() > 0.75  # a draw may be almost nothing
    assert torch.equal(found[:, 0], found[:, 1])
    assert not torch.equal(changed[:, 0, 0], changed[:, 0, 1])  # each camera by itself
    half = change(batch, only(name, strength, 0.5)(batch))
    assert 0.25 < (half > 0).float().mean() < 0.75
    assert 0.2 < change(batch, only(name, strength / 2)(batch)).mean() / changed.mean() < 1
    utmost = only(name, strength)
    utmost.utmost = True
    assert change(batch, utmost(batch)).mean() > changed.mean()


@pytest.mark.parametrize("name", PARTS)
def test_strength_and_probability_0_are_the_identity(name: str, batch: Batch) -> None:
    assert only(name, 0)(batch) is only(name, 1, 0)(batch) is batch.observation.images
    # As what is not drawn is.
    found = only(name, STRENGTHS[name][0], 0.5)(batch)
    assert (found == batch.observation.images).flatten(3).all(-1).sum() > 16
    if name != "jpeg":  # nearly no strength: the way there and back costs no grey level; quality 100 is not lossless
        assert change(batch, only(name, 1e-6)(batch)).max() == 0


def camera(**changes: Any) -> Any:
    node = compose("augmentation=camera")["augmentation"] | changes
    return build(node, "augmentation", torch.nn.Module)


def test_draws_are_the_batchs_own(batch: Batch) -> None:
    augmentation = camera()
    found = augmentation(batch)
    assert torch.equal(augmentation(batch), found)
    for parts in (2, 5):
        assert torch.equal(torch.cat([augmentation(part) for part in batch.split(parts)]), found)
    assert batch.color is not None
    other = augmentation(replace(batch, color=1 - batch.color - 2**-24))
    assert (other != found).float().mean() > 0.5
    torch.manual_seed(0)
    assert not torch.equal(*(augmentation(replace(batch, color=None, crop=None)) for _ in range(2)))
    # A part is drawn alike, whatever is beside it.
    noise = {"strength": 50, "probability": 0.5}
    alone = only("noise", 50, 0.5)(batch) != batch.observation.images
    beside = CameraAugmentation(noise=Part(**noise), blur=Part(strength=1e-6, probability=1))(batch)
    assert torch.equal(beside != batch.observation.images, alone)


def test_draws_are_uniform_and_independent() -> None:
    from provla.augmentation import WIDTH, _draws

    draws = _draws(torch.rand(2000, 2, generator=torch.Generator().manual_seed(0)), 2).flatten(0, 1)
    assert draws.shape == (4000, WIDTH)
    assert 0 <= draws.min() < 1e-4
    assert 1 - 1e-4 < draws.max() < 1
    assert (draws.mean(0) - 0.5).abs().max() < 4 * (1 / 12 / 4000) ** 0.5
    whole = torch.cat([draws[::2], draws[1::2]], 1)  # both cameras of a sample
    correlated = torch.corrcoef(whole.T) - torch.eye(2 * WIDTH)
    assert correlated.abs().max() < 5 / 2000**0.5


def test_what_comes_in_at_the_edges_is_the_edge(batch: Batch) -> None:
    flat = replace(batch, observation=replace(batch.observation, images=torch.full((32, 2, 2, 3, 30, 44), 90).byte()))
    for name in ("rotate", "translate", "blur"):
        assert torch.equal(only(name, STRENGTHS[name][0])(flat), flat.observation.images), name
    # Pictures that are 40 at the left and 200 at the right stay so, and nothing is black.
    images = torch.full((32, 2, 2, 3, 30, 44), 40, dtype=torch.uint8)
    images[..., 22:] = 200
    halves = replace(batch, observation=replace(batch.observation, images=images))
    for name in ("rotate", "translate"):
        found = only(name, 10 if name == "rotate" else 0.2)(halves)
        assert found.min() == 40
        assert found.max() == 200
        assert (found[..., :8] == 40).all()
        assert (found[..., -8:] == 200).all()


def test_a_turn_is_a_turn_also_where_sides_differ() -> None:
    images = torch.zeros(1, 1, 3, 40, 80)
    images[..., 20, 20:60] = 255  # a bar through the middle
    turned = PARTS["rotate"].change(images, torch.ones(1, 1), 45.0)[0, 0, 0]
    rows, columns = (turned > 60).nonzero(as_tuple=True)
    slope = np.polyfit(columns.numpy(), rows.numpy(), 1)[0]
    assert abs(slope) == pytest.approx(1, abs=0.05)
    assert len(columns) > 30


@pytest.mark.parametrize("quality", [90, 60, 30, 10])
def test_jpeg_is_what_a_codec_makes_of_a_picture(quality: int, batch: Batch) -> None:
    picture = batch.observation.images[0, 0, 0]
    file = io.BytesIO()
    Image.fromarray(picture.permute(1, 2, 0).numpy()).save(file, "JPEG", quality=quality, subsampling=0)
    coded = torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1).float()
    ours = _jpeg(picture[None, None].float(), torch.ones(1, 1), 100.0 - quality)[0, 0].round()
    lost = (coded - picture.float()).abs().mean().item()
    assert (ours - coded).abs().mean() < min(1, 0.5 * lost)
    assert (ours - picture.float()).abs().mean().item() == pytest.approx(lost, rel=0.15)


def test_shown_alone_each_part_is_at_its_strength(batch: Batch) -> None:
    alone = camera().alone()
    assert [caption.split()[0] for caption in alone] == ["crop", *PARTS]
    assert all(change(batch, part(batch)).mean() > 0.1 for name, part in alone.items() if not name.startswith("crop"))
    assert isinstance(camera(jpeg=None, pad=3).crop, RandomCrop)
    assert "jpeg" not in camera(jpeg=None).parts


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rotate": {"strength": 90, "probability": 1}}, r"rotate\.strength=90: expected at most 45 \(degrees\)"),
        ({"blur": {"strength": -1, "probability": 1}}, r"blur\.strength=-1: expected a number of at least 0"),
        ({"noise": {"strength": 1, "probability": 1.5}}, r"noise\.probability=1\.5: expected a number from 0 to 1"),
        ({"noise": {"strength": 1}}, r"augmentation\.noise\.probability is missing"),
        ({"noise": {"strength": 1, "probability": 1, "std": 3}}, r"nothing reads augmentation\.noise\.std"),
        ({"noise": 3}, r"augmentation\.noise=3"),
        ({"glare": None}, r"nothing reads augmentation\.glare"),
    ],
)
def test_values_that_make_no_sense_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        camera(**changes)
