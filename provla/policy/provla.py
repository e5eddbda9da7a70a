"""ProVLA: a composition of a vision encoder, a text encoder, a fusion, a head and a noise scheduler."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from provla.adapter import Adapter, own
from provla.backbone.later import put_off
from provla.backbone.tower import towers
from provla.core.build import build, check_node, locate
from provla.core.cameras import Images, flatten
from provla.core.checks import Width
from provla.core.interfaces import Generators
from provla.core.types import Anchor, Batch, Observation, Spec, Tokens, fake_observation
from provla.policy.matched import build_matched, stand_in, unmatched
from provla.policy.normalize import Normalization, normalizers
from provla.policy.parts import Normalized, check_sizes
from provla.policy.phrases import Phrases
from provla.policy.relative import Actions, Relative
from provla.quant import Quant, QuantReport

# As torch.compile has them; true, as it was called first, is default.
Compile = Literal["default", "reduce-overhead", "max-autotune"] | bool


class ProVLA(Normalized):
    """Observation → vision and text Tokens → fusion → head, denoised by the scheduler. Pure composition.

    The parts are configuration nodes; this class supplies the sizes they share. States and actions are normalised on
    the way in and out, so everything outside speaks the robot's units. compile: torch.compile the networks, in one of
    its modes, of which the last two replay CUDA graphs of each network. context_width: a linear layer brings the
    context to this width, so that heads have one size whatever the fusion's; None: the head reads the fusion's own
    width. actions: what the scheduler learns, see `Relative`.
    """

    graphable = True  # where an observation says `which` sentences it has, its loss reads nothing else of the host

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
        compile: Compile = False,
        context_width: Width | None = None,
        actions: Actions = "absolute",
    ) -> None:
        super().__init__()
        self.spec, self._normalization = spec, normalization
        with put_off(not compile and _unchanged("vision", vision, adapter, quant)):
            later = build(_alone(vision), "vision", nn.Module)
            check_sizes(locate(vision["_target_"], "vision"), "vision", spec)
            self.vision = later(num_images=spec.n_obs_steps * len(spec.cameras), image_size=spec.image_size)
        with put_off(not compile and _unchanged("text", text, adapter, quant)):
            self.text = build(_alone(text), "text", nn.Module)(instructions=spec.instructions)
        # Of each action before: its numbers, and whether there was one.
        state_size = spec.n_obs_steps * spec.state_size + spec.n_past_actions * (spec.action_size + 1)
        sizes = {"vision_width": self.vision.width, "text_width": self.text.width, "state_size": state_size}
        self.fusion = build_matched(fusion, "fusion", sizes)
        fused: Any = self.fusion.width
        width = fused if context_width is None else context_width
        self.project = None if context_width is None else nn.Linear(fused, width)
        self.head = build(head, "head", nn.Module)(
            action_size=spec.action_size, horizon=spec.horizon, context_width=width
        )
        _check_conditioning(head, self.fusion)
        self.scheduler = build(scheduler, "scheduler", nn.Module)
        self.augmentation = build(augmentation, "augmentation", nn.Module)
        check_sizes(type(self.augmentation), "augmentation", spec)
        self.state_norm, self.action_norm = normalizers(spec)
        self.relative = Relative(spec) if actions == "relative" else None
        self.quant_report = {
            key: self._adapt(key, node, adapter, quant, device) for key, node in (("vision", vision), ("text", text))
        }
        self.phrases = Phrases(self.text)
        self.to(device)
        self.compiled = "default" if compile is True else compile or ""
        self._replays = device.type == "cuda" and self.compiled in ("reduce-overhead", "max-autotune")
        if self.compiled:
            self._compile()

    def _compile(self) -> None:
        """The models of towers, whose pictures and sentences are prepared in Python; fusion and head; and a vision
        encoder that is no tower. A text encoder that is none reads sentences, each of which it would be compiled for.
        """
        _repeatable_compiler()
        alone = [] if any(towers(self.vision)) else [self.vision]
        for network in (*(tower.model for _, tower in towers(self)), *alone, self.fusion, self.head):
            network.compile(mode=self.compiled)

    def _adapt(
        self,
        key: str,
        node: Mapping[str, Any],
        adapter: Mapping[str, Any],
        quant: Mapping[str, Any],
        device: torch.device,
    ) -> QuantReport:
        """Chooses what of an encoder trains, and quantises the rest."""
        part = getattr(self, key)
        how, bits = _ways(key, node, adapter, quant)
        # Where files are, weights come later.
        exact = self._probe(key) if bits.bits and node.get("files") is None else None
        report: QuantReport = how.apply(
            getattr(part, "adaptable", part), key, getattr(part, "pretrained", False), bits, device
        )
        part.to(device)
        if exact is not None and report.layers:
            report.error = float((self._probe(key).to(exact.device) - exact).norm() / exact.norm().clamp(min=1e-12))
        return report

    @staticmethod
    def check_parts(given: Mapping[str, Any], where: str) -> None:
        """`ValueError` for what is wrong with the nodes of the parts, as far as it shows without data and weights."""
        for key in ("vision", "text"):
            check_node(_alone(given[key]), key, nn.Module)
            for way, kind in (("adapter", Adapter), ("quant", Quant)):
                own(given[key].get(way), given[way], kind, f"{key}.{way}")
        fusion = build(unmatched(given["fusion"]), "fusion", nn.Module)
        if given["fusion"].get("match_params") is None:
            stand_in(fusion, "fusion", ("vision_width", "text_width", "state_size"))
        stand_in(build(given["head"], "head", nn.Module), "head", ("action_size", "horizon", "context_width"))
        for key in ("scheduler", "augmentation"):
            build(given[key], key, nn.Module)

    @torch.no_grad()
    def _probe(self, key: str) -> Tensor:
        """A part's tokens for two random images, or for the first instructions."""
        part, asked = getattr(self, key), fake_observation(self.spec, 2)
        device = next((p.device for p in part.parameters()), torch.device("cpu"))
        was = part.training
        part.eval()
        tokens: Tokens = (
            part(asked.to(device).images) if key == "vision" else part(list(dict.fromkeys(asked.instruction)))
        )
        part.train(was)
        return (tokens.features * tokens.mask.unsqueeze(-1)).float()

    @property
    def reach(self) -> tuple[float, str]:
        return getattr(self.scheduler, "limit", math.inf), "scheduler.clip_sample"

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """`loss`, the scheduler's objective (a scalar with gradients). Augments images in training mode."""
        self._begin()
        images = self.augmentation(batch) if self.training else batch.observation.images
        context = self._context(images, batch.observation)
        actions = self.targets(batch)
        return {"loss": self.scheduler.loss(self.head, actions, context, batch.is_pad, batch.noise, batch.time)}

    forward = loss  # what accelerate wraps

    def sample(self, observation: Observation, generator: Generators, anchor: Anchor | None) -> Tensor:
        self._begin()
        context = self._context(observation.images, observation)
        shape = (len(observation), self.spec.horizon, self.spec.action_size)
        held = {} if anchor is None else {"anchor": anchor}  # a scheduler of one's own may know of none
        chunk: Tensor = self.scheduler.sample(self.head, context, shape, generator, **held)
        return chunk

    def _begin(self) -> None:
        """Tells torch.compile's CUDA graphs that what they gave is done with: they keep it no longer. But the gradients
        of a step's first parts are not.
        """
        if self._replays and not any(p.grad is not None for p in self.parameters()):
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]

    def _context(self, images: Images, observation: Observation) -> Tokens:
        distinct, rows = observation.told()  # each is encoded once
        words: Tokens = self.phrases(distinct)
        # index_select: the gradient of indexing is summed by several threads in whatever order they come.
        known = observation.features
        seen = self.vision(images) if known is None else self.vision.assemble(flatten(known), len(observation))
        context: Tokens = self.fusion(
            seen,
            Tokens(words.features.index_select(0, rows), words.mask[rows]),
            self.felt(observation),
        )
        return context if self.project is None else Tokens(self.project(context.features), context.mask)

    def felt(self, observation: Observation) -> Tensor:
        """States (B,T,S) normalised; with the actions before, all of it side by side (B,N)."""
        state = self.state(observation)
        if not self.spec.n_past_actions:
            return state
        past, early = observation.past_actions, observation.past_is_pad
        if past is None or early is None:
            raise ValueError(
                f"the policy reads the last {self.spec.n_past_actions} executed actions (n_past_actions); give the "
                "observation past_actions and past_is_pad (provla.core.types.past_of)"
            )
        known = (~early).to(state.dtype).unsqueeze(-1)  # (B, P, 1)
        return torch.cat([one.flatten(1) for one in (state, self.inside(past, observation) * known, known)], 1)


def _check_conditioning(head: Mapping[str, Any], fusion: nn.Module) -> None:
    if head.get("conditioning") == "tokens" and getattr(fusion, "vector", False):
        raise ValueError(
            f"head.conditioning=tokens: {type(fusion).__name__} gives one vector and no tokens; use "
            "head.conditioning=pooled, or a fusion that gives tokens, such as perceiver, qformer or cross_attention"
        )


def _alone(node: Mapping[str, Any]) -> dict[str, Any]:
    """A tower's node without its own ways to adapt and quantise it, which are read here."""
    return {key: value for key, value in node.items() if key not in ("adapter", "quant")}


def _ways(
    key: str, node: Mapping[str, Any], adapter: Mapping[str, Any], quant: Mapping[str, Any]
) -> tuple[Adapter, Quant]:
    """How an encoder is adapted and quantised: its own ways, or the root's."""
    how: Adapter = own(node.get("adapter"), adapter, Adapter, f"{key}.adapter")
    bits: Quant = own(node.get("quant"), quant, Quant, f"{key}.quant")
    return how, bits


def _unchanged(key: str, node: Mapping[str, Any], adapter: Mapping[str, Any], quant: Mapping[str, Any]) -> bool:
    """Whether an encoder stays what its base is."""
    how, bits = _ways(key, node, adapter, quant)
    return type(how) is Adapter and how.mode == "frozen" and not bits.bits


def _repeatable_compiler() -> None:
    """Where computations must repeat, torch's compiler chooses no kernel by timing."""
    from torch._inductor import config

    config.deterministic = torch.are_deterministic_algorithms_enabled()
