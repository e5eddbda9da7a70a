"""ProVLA: a composition of a vision encoder, a text encoder, a fusion, a head and a noise scheduler."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from provla.adapter import Adapter, Quant, QuantReport, own
from provla.backbone import check_room, towers
from provla.build import build, check_node
from provla.checks import Count, Width, check
from provla.interfaces import Generators
from provla.normalize import Normalization, Normalizer
from provla.precision import deployed
from provla.types import Batch, Observation, Spec, Tokens, fake_observation


class ProVLA(nn.Module):
    """Observation → vision and text Tokens → fusion → head, denoised by the scheduler. Pure composition.

    The parts are configuration nodes; this class supplies the sizes they share. States and actions are normalised on
    the way in and out, so everything outside speaks the robot's units. compile: torch.compile the networks.
    context_width: a linear layer brings the context to this width, so that heads have one size whatever the fusion's; None:
    the head reads the fusion's own width.
    """

    def __init__(
        self,
        spec: Spec,
        vision: Mapping[str, Any],
        text: Mapping[str, Any],
        fusion: Mapping[str, Any],
        head: Mapping[str, Any],
        scheduler: Mapping[str, Any],
        augmentation: Mapping[str, Any],
        adapter: Mapping[str, Any],
        quant: Mapping[str, Any],
        normalization: Normalization,
        device: torch.device,
        compile: bool = False,
        context_width: Width | None = None,
    ) -> None:
        super().__init__()
        self.spec = spec
        self._normalization = normalization
        self.vision = build(_alone(vision), "vision", nn.Module)(num_images=spec.n_obs_steps * len(spec.cameras), image_size=spec.image_size)
        self.text = build(_alone(text), "text", nn.Module)(instructions=spec.instructions)
        state_size = spec.n_obs_steps * spec.state_size
        sizes = {"vision_width": self.vision.width, "text_width": self.text.width, "state_size": state_size}
        self.fusion = build_matched(fusion, "fusion", sizes)
        fused: Any = self.fusion.width
        width = fused if context_width is None else context_width
        self.project = None if context_width is None else nn.Linear(fused, width)
        self.head = build(head, "head", nn.Module)(action_size=spec.action_size, horizon=spec.horizon, context_width=width)
        if head.get("conditioning") == "tokens" and getattr(self.fusion, "vector", False):
            raise ValueError(
                f"head.conditioning=tokens: {type(self.fusion).__name__} gives one vector and no tokens; use head.conditioning=pooled, or a fusion "
                "that gives tokens, such as perceiver, qformer or cross_attention"
            )
        self.scheduler = build(scheduler, "scheduler", nn.Module)
        self.augmentation = build(augmentation, "augmentation", nn.Module)
        self.state_norm, self.action_norm = Normalizer(spec.state_size), Normalizer(spec.action_size)
        self.quant_report: dict[str, QuantReport] = {}
        for key, part, node in (("vision", self.vision, vision), ("text", self.text, text)):
            how = own(node.get("adapter"), adapter, Adapter, f"{key}.adapter")
            bits = own(node.get("quant"), quant, Quant, f"{key}.quant")
            exact = self._probe(key) if bits.bits and node.get("files") is None else None  # where files are, weights come later
            report = how.apply(getattr(part, "adaptable", part), key, getattr(part, "pretrained", False), bits, device)
            part.to(device)
            if exact is not None and report.layers:
                report.error = float((self._probe(key).to(exact.device) - exact).norm() / exact.norm().clamp(min=1e-12))
            self.quant_report[key] = report
        self.to(device)
        if compile:
            _repeatable_compiler()
            for network in (*(tower.model for _, tower in towers(self)), self.fusion, self.head):
                network.compile()

    @staticmethod
    def check_parts(given: Mapping[str, Any], where: str) -> None:
        """`ValueError` for what is wrong with the nodes of the parts, as far as it shows without data and weights."""
        for key in ("vision", "text"):
            check_node(_alone(given[key]), key, nn.Module)
            for way, kind in (("adapter", Adapter), ("quant", Quant)):
                own(given[key].get(way), given[way], kind, f"{key}.{way}")
        fusion = build(unmatched(given["fusion"]), "fusion", nn.Module)
        if given["fusion"].get("match_params") is None:
            _stand_in(fusion, "fusion", ("vision_width", "text_width", "state_size"))
        _stand_in(build(given["head"], "head", nn.Module), "head", ("action_size", "horizon", "context_width"))
        for key in ("scheduler", "augmentation"):
            build(given[key], key, nn.Module)

    @torch.no_grad()
    def _probe(self, key: str) -> Tensor:
        """A part's tokens for two random images, or for the first instructions."""
        part, asked = getattr(self, key), fake_observation(self.spec, 2)
        device = next((p.device for p in part.parameters()), torch.device("cpu"))
        was = part.training
        part.eval()
        tokens: Tokens = part(asked.images.to(device)) if key == "vision" else part(list(dict.fromkeys(asked.instruction)))
        part.train(was)
        return (tokens.features * tokens.mask.unsqueeze(-1)).float()

    def fit_normalization(self, states: Tensor, actions: Tensor) -> None:
        """states (N,S) and actions (N,A) of the training episodes, in the robot's units."""
        self.state_norm.fit(states, self._normalization["state"])
        self.action_norm.fit(actions, self._normalization["action"])
        self.action_norm.check_reach(actions, self._normalization["action"], getattr(self.scheduler, "limit", math.inf), "scheduler.clip_sample")

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """`loss`, the scheduler's objective (a scalar with gradients). Augments images in training mode."""
        images = self.augmentation(batch) if self.training else batch.observation.images
        context = self._context(images, batch.observation)
        actions = self.action_norm(batch.actions)
        return {"loss": self.scheduler.loss(self.head, actions, context, batch.is_pad, batch.noise, batch.time)}

    forward = loss  # what accelerate wraps

    @deployed
    def act(self, observation: Observation, generator: Generators = None) -> Tensor:
        """(B,H,A) float32 in the robot's units; the sampler's noise comes from `generator` (one, or a list of B)."""
        context = self._context(observation.images, observation)
        shape = (len(observation), self.spec.horizon, self.spec.action_size)
        chunk: Tensor = self.action_norm.undo(self.scheduler.sample(self.head, context, shape, generator).float())
        return chunk

    def _context(self, images: Tensor, observation: Observation) -> Tokens:
        distinct = list(dict.fromkeys(observation.instruction))  # each is encoded once
        words: Tokens = self.text(distinct)
        # index_select: the gradient of indexing is summed by several threads in whatever order they come.
        rows = torch.tensor([distinct.index(text) for text in observation.instruction], device=words.mask.device)
        context: Tokens = self.fusion(self.vision(images), Tokens(words.features.index_select(0, rows), words.mask[rows]), self.state_norm(observation.state))
        return context if self.project is None else Tokens(self.project(context.features), context.mask)


def _alone(node: Mapping[str, Any]) -> dict[str, Any]:
    """A tower's node without its own ways to adapt and quantise it, which are read here."""
    return {key: value for key, value in node.items() if key not in ("adapter", "quant")}


def unmatched(node: Mapping[str, Any]) -> dict[str, Any]:
    """A node without `match_params`."""
    check(Count | None, node.get("match_params"), "fusion.match_params")
    return {key: value for key, value in node.items() if key != "match_params"}


def _stand_in(part: Any, where: str, sizes: Sequence[str]) -> None:
    """Builds a part without memory for its weights, with stand-ins for its sizes. `ValueError` for what it says, and for weights that no memory holds."""
    try:
        with torch.device("meta"):
            module = part(**dict.fromkeys(sizes, 8))
    except ValueError:
        raise
    except Exception:  # somebody's class that needs numbers: it is built for real soon
        return
    check_room(module, where)


def count_parameters(module: nn.Module) -> dict[str, int]:
    """Trainable and total parameters, and the bytes they take; a quantised weight counts as the numbers it stands for."""
    trainable = sum(p.numel() for p in module.parameters() if p.requires_grad)
    total = sum(2 * p.numel() if type(p).__name__ == "Params4bit" else p.numel() for p in module.parameters())
    size = sum(tensor.nbytes for tensor in module.state_dict().values() if isinstance(tensor, Tensor))
    return {"trainable": trainable, "total": total, "bytes": size}


def parameters_by_part(policy: nn.Module) -> dict[str, dict[str, int]]:
    """`count_parameters` of each part that has any."""
    counts = {name: count_parameters(part) for name, part in policy.named_children()}
    return {name: count for name, count in counts.items() if count["total"]}


def build_matched(node: Mapping[str, Any], where: str, sizes: Mapping[str, int], tolerance: float = 0.03) -> nn.Module:
    """The part of a node; with `match_params` the width at which it has that many parameters, so that arms compare at equal size.

    Widths are multiples of `num_heads`; where the part has a `hidden` of its own choosing (null: 4 × width, of the feed-forward
    networks), that makes up the rest. Errors: `ValueError` where no width comes within the tolerance.
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
            f"{where}.match_params={wanted}: the nearest that {given['_target_']} comes is {count(best)} parameters, at width {best}; "
            f"more than {tolerance:.0%} away. Choose another number, or change its other sizes."
        )
    matched: nn.Module = build({**given, "width": best}, where, nn.Module)(**sizes)
    return matched


def _repeatable_compiler() -> None:
    """Where computations must repeat, torch's compiler chooses no kernel by timing."""
    from torch._inductor import config

    config.deterministic = torch.are_deterministic_algorithms_enabled()
