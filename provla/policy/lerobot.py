"""LeRobot's own policies as baselines, behind the two methods of every policy."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypedDict

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from provla.core.build import build, check_node, first_line
from provla.core.cameras import Images, apart, each, in_words
from provla.core.checks import Steps
from provla.core.device import send
from provla.core.hub import from_pretrained, tensors_only
from provla.core.interfaces import Generators
from provla.core.libraries import transformers_library
from provla.core.types import Anchor, Batch, Observation, Spec, Tokens
from provla.policy.normalize import Normalization, normalizers
from provla.policy.parts import Normalized, check_sizes
from provla.policy.relative import Actions, Relative
from provla.scheduler.diffusion import Diffusion
from provla.scheduler.parts import masked_mean

KINDS = {
    "act": ("act", "ACT"),
    "diffusion": ("diffusion", "Diffusion"),
    "multi_task_dit": ("multi_task_dit", "MultiTaskDiT"),
}
# What LeRobot normalises images with by default.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Of LeRobot's options, those that provla decides by other keys.
ELSEWHERE = {
    "num_inference_steps": "set policy.scheduler.num_inference_steps",
    "noise_scheduler_type": "training is the same for both, and DDIM samples",
    "objective": "only the diffusion objective has provla's sampler, with a generator per episode",
}


class Sampling(TypedDict, total=False):
    """num_inference_steps of the DDIM sampler; ACT has none."""

    num_inference_steps: Steps


class Clip(TypedDict):
    """Sizes of a CLIP with random weights, as transformers names them."""

    vision: Mapping[str, Any]
    text: Mapping[str, Any]


class LeRobotPolicy(Normalized):
    """ACT (Zhao et al. 2023, arXiv:2304.13705), Diffusion Policy (Chi et al. 2023, arXiv:2303.04137) or multi-task DiT
    (arXiv:2507.05331): LeRobot's networks and, given the same draws, LeRobot's loss; provla's batches, draws and
    episodes.

    Noise, time and ACT's latent are those of the batch. What else draws inside the networks stays theirs: dropout, and
    the random crops of their own `options` (crop_shape, image_crop_shape; not set by default).

    kind: act, diffusion or multi_task_dit. options: keys of that policy's configuration in LeRobot. scheduler:
    num_inference_steps of the DDIM sampler, for those that diffuse. clip: sizes of a CLIP with random weights for
    multi_task_dit, which so needs no download; null: `options` names a pretrained one.
    actions: what the networks learn, see `Relative`.
    """

    _mean: Tensor
    _std: Tensor

    def __init__(
        self,
        spec: Spec,
        kind: Literal["act", "diffusion", "multi_task_dit"],
        options: Mapping[str, Any],
        scheduler: Sampling,
        augmentation: Mapping[str, Any],
        normalization: Normalization,
        device: torch.device,
        clip: Clip | None = None,
        actions: Actions = "absolute",
    ) -> None:
        super().__init__()
        self.spec, self._kind, self._normalization = spec, kind, normalization
        self._keys = [f"observation.images.{camera}" for camera in spec.cameras]
        _check_fit(kind, options, spec)
        self.augmentation = build(augmentation, "augmentation", nn.Module)
        check_sizes(type(self.augmentation), "augmentation", spec)
        self.state_norm, self.action_norm = normalizers(spec)
        self.relative = Relative(spec) if actions == "relative" else None
        with tempfile.TemporaryDirectory(prefix="clip-") as folder:  # LeRobot asks for "clip" in the name
            if kind == "multi_task_dit":
                options = dict(options) | (
                    _random_clip(clip, next(iter(spec.sizes.values()))[0], Path(folder)) if clip is not None else {}
                )
                self._tokenizer = _tokenizer(
                    str(options.get("text_encoder_name", "openai/clip-vit-base-patch16")), clip is not None
                )
            config = self._config(options)
            try:
                with tensors_only():  # torchvision's weights are pickles
                    self.policy = _classes(kind)[1](config)
            except Exception as error:
                raise ValueError(
                    f"policy={kind}: LeRobot refuses this data set or policy.options: {first_line(error)}"
                ) from error
        self.sampler = None
        if kind != "act":
            if "num_inference_steps" not in scheduler:
                raise ValueError("policy.scheduler.num_inference_steps is missing: the steps of its sampler")
            theirs = self.policy.diffusion if kind == "diffusion" else self.policy.objective
            self.sampler = Diffusion.ddim(theirs.noise_scheduler, scheduler["num_inference_steps"])
        self.register_buffer("_mean", torch.tensor(MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("_std", torch.tensor(STD).view(3, 1, 1), persistent=False)
        self.to(device)

    @staticmethod
    def check_parts(given: Mapping[str, Any], where: str) -> None:
        """`ValueError` for what is wrong with the node of the augmentation."""
        check_node(given["augmentation"], "augmentation", nn.Module)

    def _config(self, options: Mapping[str, Any]) -> Any:
        from lerobot.configs.types import FeatureType, PolicyFeature

        spec, cls = self.spec, _classes(self._kind)[0]
        if spec.n_past_actions:
            raise ValueError(
                f"n_past_actions={spec.n_past_actions} with policy={self._kind}: LeRobot's policies read no "
                "actions that were executed; use policy=provla, or n_past_actions=0"
            )
        unknown = [key for key in options if key not in cls.__dataclass_fields__]
        if unknown:
            raise ValueError(
                f"nothing reads policy.options.{unknown[0]}; LeRobot's {self._kind} has: "
                f"{', '.join(sorted(cls.__dataclass_fields__))}"
            )
        length = {"chunk_size": spec.horizon} if self._kind == "act" else {"horizon": spec.horizon}
        sizes = zip(self._keys, spec.sizes.values(), strict=True)
        images = {key: PolicyFeature(FeatureType.VISUAL, (3, *size)) for key, size in sizes}
        try:
            return cls(
                n_obs_steps=spec.n_obs_steps,
                n_action_steps=spec.n_action_steps,
                **length,
                input_features={**images, "observation.state": PolicyFeature(FeatureType.STATE, (spec.state_size,))},
                output_features={"action": PolicyFeature(FeatureType.ACTION, (spec.action_size,))},
                **options,
            )
        except Exception as error:
            raise ValueError(
                f"policy={self._kind}: LeRobot refuses this data set or policy.options: {first_line(error)}"
            ) from error

    def whole(self, node: dict[str, Any]) -> dict[str, Any]:
        """The node of an export: the stored weights stand for the pretrained ones, so nothing is fetched. `ValueError`
        where a CLIP is.
        """
        options = node["options"]
        if self._kind == "multi_task_dit" and node.get("clip") is None:
            raise ValueError(
                "the policy is built around the CLIP of "
                f"policy.options.text_encoder_name={options['text_encoder_name']!r}, which an export cannot hold; its "
                "policy/ folder loads wherever that CLIP can be found"
            )
        pretrained = "pretrained_backbone_weights"
        return {**node, "options": {**options, pretrained: None} if pretrained in options else options}

    @property
    def reach(self) -> tuple[float, str]:
        return math.inf if self.sampler is None else self.sampler.limit, "policy.options.clip_sample"

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """`loss`: LeRobot's, on this batch and its draws (masks and terms as in their `forward` and `compute_loss`)."""
        images = self.augmentation(batch) if self.training else batch.observation.images
        found, actions = self.inputs(images, batch.observation), self.targets(batch)
        if self.sampler is None:
            return {"loss": self._act_loss(found, actions, batch)}
        condition, network = self._network(found)
        masked = self.policy.config.do_mask_loss_for_padding
        is_pad = batch.is_pad if masked else torch.zeros_like(batch.is_pad)
        loss = self.sampler.loss(network, actions, Tokens.full(condition.unsqueeze(1)), is_pad, batch.noise, batch.time)
        return {"loss": loss if masked else batch.per_sample(loss)}

    forward = loss  # what accelerate wraps

    def _act_loss(self, found: dict[str, Any], actions: Tensor, batch: Batch) -> Tensor:
        """Absolute error, and in training the latent's divergence from a standard normal (a mean over samples)."""
        with _Latent(batch.key):
            chunk, (mean, log_variance) = self.policy.model(found | {"action": actions, "action_is_pad": batch.is_pad})
        loss = masked_mean((chunk - actions).abs(), batch.is_pad)
        if mean is None:
            return loss
        divergence = (-0.5 * (1 + log_variance - mean.square() - log_variance.exp())).sum(-1).mean()
        weight: float = self.policy.config.kl_weight
        return loss + weight * batch.per_sample(divergence)

    def sample(self, observation: Observation, generator: Generators, anchor: Anchor | None) -> Tensor:
        batch = self.inputs(observation.images, observation)
        if self.sampler is None:
            predicted: Tensor = self.policy.model(batch)[0]
            return predicted if anchor is None else anchor.pull(predicted)
        condition, network = self._network(batch)
        shape = (len(observation), self.spec.horizon, self.spec.action_size)
        return self.sampler.sample(network, Tokens.full(condition.unsqueeze(1)), shape, generator, anchor)

    def _network(self, batch: Mapping[str, Any]) -> tuple[Tensor, Any]:
        """The condition (B,D), encoded once, and LeRobot's denoiser as a head."""
        if self._kind == "diffusion":
            inner = self.policy.diffusion
            return inner._prepare_global_conditioning(batch), lambda x, t, context: inner.unet(
                x, t, global_cond=context.features[:, 0]
            )
        predict = self.policy.noise_predictor
        return self.policy.observation_encoder.encode(batch), lambda x, t, context: predict(
            x, t, conditioning_vec=context.features[:, 0]
        )

    def inputs(self, images: Images, observation: Observation) -> dict[str, Any]:
        """What LeRobot's policies read, normalised: cameras one by one and together; without the step axis for ACT."""
        pixels = each(images, lambda one: (one.to(self._mean.dtype) / 255 - self._mean) / self._std)
        state = self.state(observation)
        last = self._kind == "act"
        cameras = zip(self._keys, apart(pixels, 2), strict=True)  # (B, T, 3, h, w) each
        found: dict[str, Any] = {key: one[:, -1] if last else one for key, one in cameras}
        # As their `forward` puts them together.
        found["observation.images"] = [found[key] for key in self._keys] if last else pixels
        found["observation.state"] = state[:, -1] if last else state
        if self._kind == "multi_task_dit":
            words = self._tokenizer(
                observation.instruction,
                padding=True,
                truncation=True,
                max_length=self.policy.config.tokenizer_max_length,
            )
            for key, name in (("tokens", "input_ids"), ("attention_mask", "attention_mask")):
                found[f"observation.language.{key}"] = send(torch.tensor(words[name]), state.device)
        return found


class _Latent(TorchFunctionMode):
    """ACT's network draws its latent's noise with `torch.randn_like`; here each row of it comes from that
    sample's key.
    """

    def __init__(self, keys: Tensor | None) -> None:
        super().__init__()
        self.seeds = None if keys is None else keys.tolist()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not torch.randn_like or self.seeds is None:
            return func(*args, **(kwargs or {}))
        like = args[0]  # (B, latent)
        drawn = [torch.randn(like.shape[1], generator=torch.Generator().manual_seed(seed)) for seed in self.seeds]
        return send(torch.stack(drawn), like.device).to(like)


def _check_fit(kind: str, options: Mapping[str, Any], spec: Spec) -> None:
    """`ValueError` for options that stand elsewhere, and cameras that LeRobot's policy does not read."""
    for option, way_out in ELSEWHERE.items():
        if option in options:
            raise ValueError(f"policy.options.{option}={options[option]!r} is not read here: {way_out}; leave it out")
    if kind != "act" and isinstance(spec.image_size, Mapping):
        raise ValueError(
            f"policy={kind}: LeRobot's puts the pictures of all cameras into one tensor, and they differ in size "
            f"({in_words(spec.sizes)}); bring them to one by dataset.image_size=[h,w], or use policy=act or "
            "policy=provla"
        )


def _classes(kind: str) -> tuple[Any, Any]:
    """LeRobot's configuration and policy class."""
    from importlib import import_module

    module, name = KINDS[kind]
    where = f"lerobot.policies.{module}"
    return getattr(import_module(f"{where}.configuration_{module}"), f"{name}Config"), getattr(
        import_module(f"{where}.modeling_{module}"), f"{name}Policy"
    )


def _random_clip(sizes: Mapping[str, Any], edge: int, folder: Path) -> dict[str, str]:
    """A CLIP with random weights where LeRobot will load it from; its names for LeRobot's configuration."""
    transformers = transformers_library()
    words = {**sizes["text"], "vocab_size": 259, "eos_token_id": 1, "pad_token_id": 0}  # ByT5's
    try:
        config = transformers.CLIPConfig(text_config=words, vision_config={"image_size": edge, **sizes["vision"]})
        transformers.CLIPModel(config).save_pretrained(folder)
    except Exception as error:
        raise ValueError(f"policy.clip: transformers makes no CLIP of these sizes: {first_line(error)}") from error
    return {"vision_encoder_name": str(folder), "text_encoder_name": str(folder)}


def _tokenizer(name: str, random: bool) -> Any:
    transformers = transformers_library()
    if random:
        return transformers.ByT5Tokenizer(extra_ids=0)
    return from_pretrained(transformers.AutoTokenizer, name, None, "policy.options.text_encoder_name")
