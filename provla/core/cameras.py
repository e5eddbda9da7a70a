"""Pictures of several cameras: side by side in one array where all have one size, else one array each.

`Images` are (B,T,C,3,h,w) uint8, or of C cameras (B,T,3,h,w) each, in the cameras' order. Nothing heavy is imported
here: every world's process imports this file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

type Size = tuple[int, int]  # height and width
type ImageSize = Size | Mapping[str, Size]  # of all cameras, or of each where they differ
type Images = Tensor | tuple[Tensor, ...]
type Looks = NDArray[Any] | tuple[NDArray[Any], ...]  # the same of numpy, channels last


def sizes_of(size: ImageSize, cameras: Sequence[str]) -> dict[str, Size]:
    """Camera → its size. `ValueError` where sizes are those of other cameras."""
    if not isinstance(size, Mapping):
        return dict.fromkeys(cameras, (int(size[0]), int(size[1])))
    if set(size) != set(cameras):
        raise ValueError(f"image_size names the cameras {', '.join(size) or 'none'}; there are: {', '.join(cameras)}")
    return {camera: (int(size[camera][0]), int(size[camera][1])) for camera in cameras}


def shared(sizes: Mapping[str, Size]) -> ImageSize:
    """The one size of all cameras, or the sizes as they are."""
    return next(iter(sizes.values())) if len(set(sizes.values())) == 1 else dict(sizes)


def distinct(size: ImageSize) -> list[Size]:
    """The sizes that there are, each once."""
    return list(dict.fromkeys(size.values())) if isinstance(size, Mapping) else [size]


def in_words(sizes: Mapping[str, Size]) -> str:
    """`96×128`, or each camera's."""
    if len(set(sizes.values())) == 1:
        return "×".join(map(str, next(iter(sizes.values()))))
    return ", ".join(f"{camera} {h}×{w}" for camera, (h, w) in sizes.items())


def together[T](cameras: list[T], join: Callable[[list[T]], T]) -> T | tuple[T, ...]:
    """Arrays of each camera as one, by `join`, where they are of one shape."""
    shaped: list[Any] = cameras
    alike = len({tuple(one.shape) for one in shaped}) == 1
    return join(cameras) if alike else tuple(cameras)


def apart[T](images: T | tuple[T, ...], axis: int) -> list[T]:
    """Each camera's. axis: of the cameras, where they are side by side."""
    if isinstance(images, tuple):
        return list(images)
    found: Any = images
    return [found[(slice(None),) * axis + (c,)] for c in range(found.shape[axis])]


def each[T, U](images: T | tuple[T, ...], change: Callable[[T], U]) -> U | tuple[U, ...]:
    """What `change` makes of the one array, or of each camera's."""
    return tuple(map(change, images)) if isinstance(images, tuple) else change(images)


def stacked[T](looks: Sequence[T | tuple[T, ...]], stack: Callable[[list[T]], T]) -> T | tuple[T, ...]:
    """Several looks as one, by `stack`."""
    seen: list[Any] = list(looks)
    if isinstance(seen[0], tuple):
        return tuple(stack(list(camera)) for camera in zip(*seen, strict=True))
    return stack(seen)


def flatten(images: Images) -> Images:
    """(B,T,C,…) → (B·T·C,…); of each camera (B,T,…) → (B·T,…)."""
    return tuple(one.flatten(0, 1) for one in images) if isinstance(images, tuple) else images.flatten(0, 2)


def count(images: Images) -> int:
    """B."""
    return len(images[0]) if isinstance(images, tuple) else len(images)
