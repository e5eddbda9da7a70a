"""Parts of a policy counted, and brought to an asked number of parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from provla.backbone.tower import check_room
from provla.core.build import build
from provla.core.checks import Count, check


def unmatched(node: Mapping[str, Any]) -> dict[str, Any]:
    """A node without `match_params`."""
    check(Count | None, node.get("match_params"), "fusion.match_params")
    return {key: value for key, value in node.items() if key != "match_params"}


def stand_in(part: Any, where: str, sizes: Sequence[str]) -> None:
    """Builds a part without memory for its weights, with stand-ins for its sizes. `ValueError` for what it says, and
    for weights that no memory holds.
    """
    try:
        with torch.device("meta"):
            module = part(**dict.fromkeys(sizes, 8))
    except ValueError:
        raise
    except Exception:  # somebody's class that needs numbers: it is built for real soon
        return
    check_room(module, where)


def count_parameters(module: nn.Module) -> dict[str, int]:
    """Trainable and total parameters, and the bytes they take; a quantised weight counts as the numbers it
    stands for.
    """
    trainable = sum(p.numel() for p in module.parameters() if p.requires_grad)
    total = sum(2 * p.numel() if type(p).__name__ == "Params4bit" else p.numel() for p in module.parameters())
    size = sum(tensor.nbytes for tensor in module.state_dict().values() if isinstance(tensor, Tensor))
    return {"trainable": trainable, "total": total, "bytes": size}


def parameters_by_part(policy: nn.Module) -> dict[str, dict[str, int]]:
    """`count_parameters` of each part that has any."""
    counts = {name: count_parameters(part) for name, part in policy.named_children()}
    return {name: count for name, count in counts.items() if count["total"]}


def build_matched(node: Mapping[str, Any], where: str, sizes: Mapping[str, int], tolerance: float = 0.03) -> nn.Module:
    """The part of a node; with `match_params` the width at which it has that many parameters, so that arms compare at
    equal size.

    Widths are multiples of `num_heads`; where the part has a `hidden` of its own choosing (null: 4 × width, of the
    feed-forward networks), that makes up the rest. Errors: `ValueError` where no width comes within the tolerance.
    """
    given, wanted = unmatched(node), node.get("match_params")
    if wanted is None:
        found: nn.Module = build(given, where, nn.Module)(**sizes)
        return found
    if "width" not in given:
        raise ValueError(f"{where}.match_params={wanted}: {given.get('_target_')} has no width to change")
    step = int(given.get("num_heads") or 1)

    def count(width: int, **more: int) -> int:
        with torch.device("meta"):
            return count_parameters(build({**given, "width": width, **more}, where, nn.Module)(**sizes))["total"]

    low, high = 1, 2
    while count(high * step) < wanted and high * step < 2**15:
        low, high = high, 2 * high
    while high - low > 1:  # count grows with the width
        middle = (low + high) // 2
        low, high = (middle, high) if count(middle * step) < wanted else (low, middle)
    best = min((low * step, high * step), key=lambda width: abs(count(width) - wanted))
    if "hidden" in given and given["hidden"] is None:
        base = count(best, hidden=1)
        given["hidden"] = max(1, 1 + round((wanted - base) / (count(best, hidden=2) - base)))
    if abs(count(best) - wanted) > tolerance * wanted:
        raise ValueError(
            f"{where}.match_params={wanted}: the nearest that {given['_target_']} comes is {count(best)} parameters, "
            f"at width {best}; more than {tolerance:.0%} away. Choose another number, or change its other sizes."
        )
    matched: nn.Module = build({**given, "width": best}, where, nn.Module)(**sizes)
    return matched
