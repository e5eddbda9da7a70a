"""The arms: every combination runs, and each does what its equation says."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import FAKE, ROOT, check_split, compose, drawn_batch
from torch import Tensor, nn

import provla
from provla.core.build import build
from provla.core.types import Spec, Tokens, fake_batch, fake_observation
from provla.head.unet1d import Conv
from provla.policy.matched import build_matched, count_parameters

CPU = torch.device("cpu")
Command = Callable[..., tuple[int, str, str]]


def options(group: str) -> list[str]:
    return [f.stem for f in sorted((ROOT / "conf" / group).glob("*.yaml"))]


@pytest.fixture(scope="module")
def nodes() -> dict[str, dict[str, dict[str, Any]]]:
    """Group → option → its node; and the policy's."""
    found = {
        group: {option: compose(f"{group}={option}")[group] for option in options(group)}
        for group in ("fusion", "head", "scheduler")
    }
    tiny = ["text=task_embedding", "text.width=8", "vision.channels=[8,8]", "vision.width=8", "vision.num_keypoints=4"]
    return found | {"policy": {"provla": compose(*tiny)["policy"]}}


SMALL = {
    "fusion": {
        "width": 16,
        "hidden": 16,
        "rank": 8,
        "depth": 1,
        "num_heads": 2,
        "num_latents": 2,
        "num_queries": 2,
        "num_bottlenecks": 2,
        "num_experts": 2,
    },
    "head": {"channels": [8, 16], "time_width": 8, "width": 16, "depth": 1, "num_heads": 2},
    "scheduler": {"num_inference_steps": 2},
}


def small(nodes: dict[str, Any], group: str, option: str) -> dict[str, Any]:
    node = nodes[group][option]
    return {key: SMALL[group].get(key, value) for key, value in node.items()}


@pytest.mark.parametrize("fusion", options("fusion"))
def test_every_combination_trains_two_steps_and_samples(fusion: str, nodes: dict[str, Any], spec: Spec) -> None:
    batch, observation = fake_batch(spec, 2), fake_observation(spec, 2)
    for head, scheduler, conditioning in itertools.product(options("head"), options("scheduler"), ("pooled", "tokens")):
        parts = {
            "fusion": small(nodes, "fusion", fusion),
            "head": small(nodes, "head", head),
            "scheduler": small(nodes, "scheduler", scheduler),
        }
        parts["head"]["conditioning"] = conditioning
        node = nodes["policy"]["provla"] | parts
        sensible = conditioning == "pooled" or head == "dit"
        if not sensible:
            with pytest.raises(
                ValueError, match=r"head\.conditioning='tokens': .* reads the context pooled; head=dit reads tokens"
            ):
                build(node, "policy", nn.Module, spec=spec, device=CPU)
            continue
        if conditioning == "tokens" and fusion in ("add", "bilinear", "concat_mlp", "film", "joint_attention"):
            with pytest.raises(ValueError, match=r"head\.conditioning=tokens: \w+ gives one vector and no tokens"):
                build(node, "policy", nn.Module, spec=spec, device=CPU)
            continue
        policy = build(node, "policy", nn.Module, spec=spec, device=CPU)
        optimizer = torch.optim.SGD(policy.parameters(), lr=1e-3)
        for _ in range(2):
            optimizer.zero_grad()
            loss = policy.loss(batch)["loss"]
            loss.backward()
            optimizer.step()
        assert loss.isfinite()
        chunk = policy.eval().act(observation, torch.Generator().manual_seed(0))
        assert chunk.shape == (2, spec.horizon, spec.action_size)
        assert chunk.isfinite().all()


def test_arms_are_of_the_same_order_of_size() -> None:
    sizes = {"vision_width": 256, "text_width": 64, "state_size": 4}
    counts = {
        option: count_parameters(build_matched(compose(f"fusion={option}")["fusion"], "fusion", sizes))["total"]
        for option in options("fusion")
    }
    assert max(counts.values()) / min(counts.values()) < 5, counts


@pytest.mark.parametrize("option", options("fusion"))
@pytest.mark.parametrize("wanted", [200_000, 500_000])
def test_a_fusion_of_a_given_size(option: str, wanted: int) -> None:
    sizes = {"vision_width": 256, "text_width": 64, "state_size": 4}
    node = compose(f"fusion={option}", f"fusion.match_params={wanted}")["fusion"]
    fusion = build_matched(node, "fusion", sizes)
    assert count_parameters(fusion)["total"] == pytest.approx(wanted, rel=0.03)
    assert fusion.width % node.get("num_heads", 1) == 0


def test_heads_of_one_size_for_fusions_of_any_width(spec: Spec) -> None:
    sizes = set()
    for fusion in ("film", "perceiver"):
        policy = build(
            compose(f"fusion={fusion}", "policy.context_width=24")["policy"], "policy", nn.Module, spec=spec, device=CPU
        )
        sizes.add(count_parameters(policy.head)["total"])
        assert policy.act(fake_observation(spec, 2)).shape == (2, spec.horizon, spec.action_size)
        policy.loss(fake_batch(spec, 2))["loss"].backward()
        assert policy.project.weight.grad.abs().sum() > 0
    assert len(sizes) == 1


def test_a_size_that_cannot_be_reached_is_refused() -> None:
    sizes = {"vision_width": 256, "text_width": 64, "state_size": 4}
    with pytest.raises(
        ValueError,
        match=r"fusion\.match_params=100: the nearest that provla\.fusion\.Perceiver comes is \d+ parameters, at width "
        r"4",
    ):
        build_matched(compose("fusion=perceiver", "fusion.match_params=100")["fusion"], "fusion", sizes)
    with pytest.raises(ValueError, match=r"fusion\.width=30 is not divisible by fusion\.num_heads=4"):
        build_matched(compose("fusion=qformer", "fusion.width=30")["fusion"], "fusion", sizes)
    with pytest.raises(ValueError, match=r"head\.width=30 is not divisible by head\.num_heads=4"):
        build(compose("head=dit", "head.width=30")["head"], "head", nn.Module)(
            action_size=2, horizon=4, context_width=8
        )


def fused(option: str, **changes: Any) -> Any:
    torch.manual_seed(0)
    node = compose(f"fusion={option}")["fusion"] | changes
    return build_matched(node, "fusion", {"vision_width": 12, "text_width": 10, "state_size": 8})


def inputs() -> tuple[Tokens, Tokens, Tensor]:
    g = torch.Generator().manual_seed(1)
    text = Tokens(torch.randn(3, 5, 10, generator=g), torch.arange(5).expand(3, 5) < 3)
    return Tokens.full(torch.randn(3, 7, 12, generator=g)), text, torch.randn(3, 2, 4, generator=g)


def test_gated_cross_attention_starts_as_the_identity() -> None:
    fusion = fused("gated_cross_attention")
    vision, text, state = inputs()
    _, said, felt = fusion.enter(vision, text, state)
    context = fusion(vision, text, state)
    assert torch.equal(context.features, torch.cat([said.features, felt.features], 1))
    nn.init.constant_(fusion.gates, 1.0)
    assert not torch.allclose(fusion(vision, text, state).features, context.features)
    assert fusion.gates.requires_grad


@pytest.mark.parametrize("option", options("fusion"))
def test_the_order_of_vision_tokens_does_not_matter(option: str) -> None:
    """Positions are in the features, so tokens that move with their positions say the same."""
    fusion = fused(option)
    for p in fusion.parameters():
        nn.init.normal_(p, std=0.1)
    vision, text, state = inputs()
    order = torch.tensor([3, 6, 0, 2, 5, 1, 4])
    moved = Tokens(vision.features[:, order], vision.mask[:, order])
    torch.testing.assert_close(fusion(moved, text, state).mean(), fusion(vision, text, state).mean())


def test_bottleneck_lets_nothing_else_through() -> None:
    """With the bottleneck tokens of the other side held still, text cannot change what vision's layer does."""
    fusion = fused("bottleneck", depth=1)
    vision, text, state = inputs()
    seen: list[Tensor] = []
    fusion.self_[0].register_forward_hook(lambda module, args, out: seen.append(out))
    fusion(vision, text, state)
    fusion(vision, Tokens(text.features + 1, text.mask), state + 1)
    assert torch.equal(seen[0], seen[1])


def test_bilinear_is_low_rank_in_each_factor() -> None:
    fusion = fused("bilinear", rank=6)
    vision, text, state = inputs()
    v, t = fusion.norm(vision.mean()), text.mean()
    product = (fusion.vision(v)).tanh() * (fusion.text(t)).tanh()
    expected = fusion.leave(torch.cat([product, state.flatten(1)], -1))
    torch.testing.assert_close(fusion(vision, text, state).features[:, 0], expected)


def test_moe_is_the_weighted_sum_of_its_experts() -> None:
    fusion = fused("moe", num_experts=3)
    vision, text, state = inputs()
    seen, said, felt = fusion.enter(vision, text, state)
    p = fusion.gate(torch.cat([said.mean(), felt.features[:, 0]], -1)).softmax(-1)
    torch.testing.assert_close(p.sum(-1), torch.ones(3))
    expected = sum(p[:, e, None, None] * fusion.experts[e](seen.features) for e in range(3))
    torch.testing.assert_close(fusion(vision, text, state).features[:, :-1], expected)


def test_dit_starts_as_the_identity() -> None:
    torch.manual_seed(0)
    for conditioning in ("pooled", "tokens"):
        head = build(compose("head=dit", f"head.conditioning={conditioning}")["head"], "head", nn.Module)(
            action_size=3, horizon=8, context_width=10
        )
        context, x = Tokens.full(torch.randn(2, 4, 10)), torch.randn(2, 8, 192)
        condition = torch.randn(2, 192)
        for block in head.blocks:
            assert torch.equal(block(x, condition, Tokens(head.context(context.features), context.mask)), x)
        assert (head(torch.randn(2, 8, 3), torch.tensor([3, 50]), context) == 0).all()


@pytest.mark.parametrize("kind", ["mean", "attention", "first"])
def test_pooling(kind: str) -> None:
    from provla.head.parts import Pool

    torch.manual_seed(0)
    pool = Pool(kind, 6)
    features, mask = torch.randn(2, 4, 6), torch.tensor([[True, True, False, False], [True, True, True, True]])
    found = pool(Tokens(features, mask))
    other = pool(Tokens(torch.where(mask.unsqueeze(-1), features, 7.0), mask))
    torch.testing.assert_close(found, other)
    if kind == "attention":
        weights = pool.score(features[0, :2]).softmax(0)  # type: ignore[misc]
        torch.testing.assert_close(found[0], (weights * features[0, :2]).sum(0))


MEAN, SPREAD = 0.3, 0.25
NOTHING = Tokens.full(torch.zeros(4000, 1, 1))


def posterior_mean(x: Tensor, signal: Tensor, spread: Tensor) -> Tensor:
    """E[a | signal · a + spread · ε = x] for a ~ N(MEAN, SPREAD²)."""
    return MEAN + SPREAD**2 * signal / (SPREAD**2 * signal**2 + spread**2) * (x - signal * MEAN)


def diffusion_denoiser(chosen: Any, kind: str) -> Any:
    def head(x: Tensor, t: Tensor, context: Tokens) -> Tensor:
        alpha = chosen._scheduler.alphas_cumprod[t].view(-1, 1, 1)
        signal, spread = alpha.sqrt(), (1 - alpha).sqrt()
        clean = posterior_mean(x, signal, spread)
        noise = (x - signal * clean) / spread
        return {"epsilon": noise, "sample": clean, "v_prediction": signal * noise - spread * clean}[kind]

    return head


def flow_velocity(x: Tensor, t: Tensor, context: Tokens) -> Tensor:
    share = (t / 100).view(-1, 1, 1)
    clean = posterior_mean(x, share, 1 - share)
    return clean - (x - share * clean) / (1 - share)


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("option", ["ddim", "ddpm", "dpm_solver"])
def test_diffusion_recovers_a_gaussian(option: str, kind: str) -> None:
    changes = {"prediction_type": kind, "clip_sample": False, "num_inference_steps": 100}
    chosen = build(compose(f"scheduler={option}")["scheduler"] | changes, "scheduler")
    found = chosen.sample(diffusion_denoiser(chosen, kind), NOTHING, (4000, 1, 2), torch.Generator().manual_seed(0))
    assert found.mean().item() == pytest.approx(MEAN, abs=0.02)
    # DDPM's fixed small variance narrows the samples a little.
    assert found.std().item() == pytest.approx(SPREAD, rel=0.1 if option == "ddpm" else 0.05)


@pytest.mark.parametrize("solver", ["euler", "midpoint"])
def test_flow_moves_noise_along_the_closed_form(solver: str) -> None:
    """Between Gaussians the flow is the monotone map ε → MEAN + SPREAD · ε."""
    errors = []
    for steps in (8, 64):
        chosen = build(
            compose("scheduler=flow", f"scheduler.solver={solver}", f"scheduler.num_inference_steps={steps}")[
                "scheduler"
            ],
            "scheduler",
        )
        found = chosen.sample(flow_velocity, NOTHING, (4000, 1, 2), torch.Generator().manual_seed(0))
        noise = torch.randn(4000, 1, 2, generator=torch.Generator().manual_seed(0))
        errors.append((found - (MEAN + SPREAD * noise)).abs().mean().item())
    assert errors[1] < 0.01
    assert errors[0] / errors[1] > (6 if solver == "euler" else 20)  # first order, second order
    noise, actions = torch.randn(64, 3, 2), torch.randn(64, 3, 2)
    time = torch.rand(64)
    asked: list[Tensor] = []

    def head(x: Tensor, t: Tensor, context: Tokens) -> Tensor:
        asked.append(t)
        return actions - noise

    beta = build(compose("scheduler=flow", "scheduler.time_sampling=beta")["scheduler"], "scheduler")
    for chosen in (build(compose("scheduler=flow")["scheduler"], "scheduler"), beta):
        assert chosen.loss(head, actions, NOTHING, torch.zeros(64, 3, dtype=torch.bool), noise, time).item() == 0
    torch.testing.assert_close(asked[0], 100 * time)
    x = 1 - asked[1] / 99.9
    torch.testing.assert_close(x**1.5, time)  # the distribution function of Beta(1.5, 1)


def test_dpm_solver_converges_faster_than_ddim_to_the_same_sample() -> None:
    few = Tokens.full(torch.zeros(500, 1, 1))

    def sample(option: str, steps: int) -> Tensor:
        changes = {
            "prediction_type": "epsilon",
            "clip_sample": False,
            "num_inference_steps": steps,
            "timestep_spacing": "trailing",
        }
        chosen = build(compose(f"scheduler={option}")["scheduler"] | changes, "scheduler")
        found: Tensor = chosen.sample(
            diffusion_denoiser(chosen, "epsilon"), few, (500, 1, 2), torch.Generator().manual_seed(0)
        )
        return found

    limit = sample("ddim", 100)
    errors = {
        (option, steps): (sample(option, steps) - limit).abs().mean().item()
        for option in ("ddim", "dpm_solver")
        for steps in (5, 10)
    }
    assert errors["dpm_solver", 5] < errors["ddim", 5]
    assert errors["dpm_solver", 10] < 0.005 < 0.03 < errors["ddim", 10]


def test_regressions_against_a_hand_computation() -> None:
    actions = torch.tensor([[[1.0], [2.0]], [[-1.0], [5.0]]])
    is_pad = torch.tensor([[False, False], [False, True]])
    context = Tokens.full(torch.zeros(2, 1, 1))
    calls: list[tuple[Tensor, Tensor]] = []

    def head(x: Tensor, t: Tensor, context: Tokens) -> Tensor:
        calls.append((x, t))
        return x + 0.5

    one = build(compose("scheduler=l1")["scheduler"], "scheduler")
    assert one.loss(head, actions, context, is_pad).item() == pytest.approx((0.5 + 1.5 + 1.5) / 3)
    assert (one.sample(head, context, (2, 2, 1)) == 0.5).all()
    assert all((x == 0).all() and (t == 0).all() for x, t in calls)
    noise = torch.ones_like(actions)
    two = build(compose("scheduler=mip", "scheduler.weighted=false", "scheduler.t_star=0.8")["scheduler"], "scheduler")
    first = (0.5**2 + 1.5**2 + 1.5**2) / 3
    second = sum((0.8 * a + 0.2 + 0.5 - a) ** 2 for a in (1.0, 2.0, -1.0)) / 3
    assert two.loss(head, actions, context, is_pad, noise).item() == pytest.approx((first + second) / 2)
    torch.testing.assert_close(two.sample(head, context, (2, 2, 1)), torch.full((2, 2, 1), 0.8 * 0.5 + 0.5))
    assert calls[-1][1].tolist() == pytest.approx([80.0, 80.0])
    heavy = build(compose("scheduler=mip", "scheduler.t_star=0.8")["scheduler"], "scheduler")
    weights = 1 / 0.8**2, 1 / 0.2**2
    assert heavy.loss(head, actions, context, is_pad, noise).item() == pytest.approx(
        (weights[0] * first + weights[1] * second) / sum(weights), rel=1e-5
    )


@pytest.mark.parametrize(
    ("length", "size", "stride"), [(4, 3, 1), (4, 3, 2), (8, 5, 1), (1, 3, 2), (5, 1, 1), (16, 3, 2)]
)
def test_a_chunk_is_convolved_by_whichever_way_is_faster(length: int, size: int, stride: int) -> None:
    mine, theirs = Conv(6, 4, size, stride, size // 2), nn.Conv1d(6, 4, size, stride, size // 2)
    theirs.load_state_dict(mine.state_dict())
    x = torch.randn(3, 6, length)
    lain = x.transpose(1, 2).contiguous().transpose(1, 2).unsqueeze(2).requires_grad_()
    plain = x.clone().requires_grad_()
    found, true = mine(lain).squeeze(2), theirs(plain)
    torch.testing.assert_close(found, true)
    slope = torch.randn(true.shape)
    found.backward(slope), true.backward(slope)
    torch.testing.assert_close(lain.grad.squeeze(2), plain.grad)
    torch.testing.assert_close((mine.weight.grad, mine.bias.grad), (theirs.weight.grad, theirs.bias.grad))


def test_unet1d_equals_lerobot_s_with_the_same_weights() -> None:
    from lerobot.configs.types import FeatureType, PolicyFeature
    from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig
    from lerobot.policies.diffusion.modeling_diffusion import DiffusionConditionalUnet1d

    torch.manual_seed(0)
    features = {
        "observation.image": PolicyFeature(FeatureType.VISUAL, (3, 8, 8)),
        "observation.state": PolicyFeature(FeatureType.STATE, (3,)),
    }
    config = DiffusionConfig(
        horizon=16,
        n_action_steps=8,
        down_dims=(16, 32, 64),
        kernel_size=5,
        diffusion_step_embed_dim=32,
        input_features=features,
        output_features={"action": PolicyFeature(FeatureType.ACTION, (4,))},
    )
    theirs = DiffusionConditionalUnet1d(config, global_cond_dim=10)
    mine = build(
        compose("head=unet1d", "head.channels=[16,32,64]", "head.kernel_size=5", "head.time_width=32")["head"],
        "head",
        nn.Module,
    )(action_size=4, horizon=16, context_width=10)

    def block(to: Any, source: Any) -> None:
        for a, b in ((to.first, source.conv1.block), (to.second, source.conv2.block)):
            a.load_state_dict(b.state_dict())
        to.condition.load_state_dict(source.cond_encoder[1].state_dict())
        to.condition.bias.data[: source.out_channels] -= 1  # (1 + scale) here, scale there
        to.skip.load_state_dict(source.residual_conv.state_dict())

    mine.time.mlp.load_state_dict(
        {
            f"{i}.{key}": value
            for i in (0, 2)
            for key, value in theirs.diffusion_step_encoder[i + 1].state_dict().items()
        }
    )
    for level, (first, second, down) in enumerate(theirs.down_modules):
        block(mine.down[level][0], first)
        block(mine.down[level][1], second)
        if level < len(mine.shrink):
            mine.shrink[level].load_state_dict(down.state_dict())
    for to, source in zip(mine.middle, theirs.mid_modules, strict=True):
        block(to, source)
    for level, (first, second, up) in enumerate(theirs.up_modules):
        block(mine.up[level][0], first)
        block(mine.up[level][1], second)
        mine.grow[level].load_state_dict(up.state_dict())
    mine.out[0].load_state_dict(theirs.final_conv[0].block[0].state_dict())
    mine.out[1].load_state_dict(theirs.final_conv[0].block[1].state_dict())
    mine.out[3].load_state_dict(theirs.final_conv[1].state_dict())
    x, time, condition = torch.randn(5, 16, 4), torch.tensor([0, 7, 50, 98, 99]), torch.randn(5, 10)
    torch.testing.assert_close(
        mine(x, time, Tokens.full(condition.unsqueeze(1))), theirs(x, time, global_cond=condition)
    )


BASELINES = {
    "act": ["policy.options.dim_model=32", "policy.options.dim_feedforward=32", "policy.options.n_encoder_layers=1"],
    "diffusion": ["policy.options.down_dims=[16,32]", "policy.options.spatial_softmax_num_keypoints=4"],
    "multi_task_dit": [
        "policy.options.hidden_dim=32",
        "policy.options.num_layers=1",
        "policy.clip.vision.num_hidden_layers=1",
    ],
}


@pytest.mark.parametrize(
    "options", [[], ["policy.options.do_mask_loss_for_padding=false", "+policy.options.prediction_type=sample"]]
)
@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("kind", list(BASELINES))
def test_a_lerobot_baseline_has_lerobot_s_loss(kind: str, mode: str, options: list[str], spec: Spec) -> None:
    """LeRobot's policy, its own pre-processing, the same raw batch and draws give the same loss."""
    if kind == "act" and options:
        pytest.skip("ACT has no such options")
    from lerobot.policies.factory import make_pre_post_processors

    sizes = replace(spec, n_obs_steps=1)
    torch.manual_seed(0)
    policy = build(
        compose(f"policy={kind}", "augmentation=none", *BASELINES[kind], *options)["policy"],
        "policy",
        nn.Module,
        spec=sizes,
        device=CPU,
    )
    batch = fake_batch(sizes, 4)
    observation = batch.observation
    policy.fit_normalization(observation.state.flatten(0, 1), batch.actions.flatten(0, 1))
    policy.train(mode == "train")
    if kind == "act":  # dropout draws for itself
        policy.apply(
            lambda module: setattr(module, "dropout", 0.0) if isinstance(module, nn.MultiheadAttention) else None
        )
        policy.apply(lambda module: setattr(module, "p", 0.0) if isinstance(module, nn.Dropout) else None)
    torch.manual_seed(7)  # what LeRobot will draw: for ACT its latent, for the others noise and diffusion steps
    if kind != "act":
        noise = torch.randn(batch.actions.shape)
        batch = replace(batch, noise=noise, time=(torch.randint(0, 100, (4,)) + 0.5) / 100)
    mine = policy.loss(batch)["loss"]

    state, actions = observation.state.flatten(0, 1), batch.actions.flatten(0, 1)
    stats: dict[str, Any] = {
        key: {"min": v.amin(0), "max": v.amax(0), "mean": v.mean(0), "std": v.std(0, correction=0)}
        for key, v in (("observation.state", state), ("action", actions))
    }
    for camera in sizes.cameras:
        stats[f"observation.images.{camera}"] = {
            "mean": torch.tensor([[[0.485]], [[0.456]], [[0.406]]]),
            "std": torch.tensor([[[0.229]], [[0.224]], [[0.225]]]),
        }
    raw: dict[str, Any] = {
        f"observation.images.{c}": observation.images[:, :, i].float() / 255 for i, c in enumerate(sizes.cameras)
    }
    raw |= {"observation.state": observation.state, "action": batch.actions, "action_is_pad": batch.is_pad}
    if kind == "act":
        raw |= {key: value[:, 0] for key, value in raw.items() if key.startswith("observation.")}
    config = policy.policy.config
    config.device = "cpu"
    if kind == "multi_task_dit":
        normalise = _only_normalise(config, stats)
        theirs = normalise(raw)
        words = policy._tokenizer(observation.instruction, padding=True)
        theirs |= {
            "observation.language.tokens": torch.tensor(words["input_ids"]),
            "observation.language.attention_mask": torch.tensor(words["attention_mask"]),
        }
    else:
        theirs = make_pre_post_processors(config, dataset_stats=stats)[0](raw)
    torch.manual_seed(7)
    expected = policy.policy.forward(theirs)[0]
    torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", [[], ["policy.options.do_mask_loss_for_padding=false"]])
@pytest.mark.parametrize("kind", list(BASELINES))
def test_splitting_a_baseline_s_batch_changes_no_gradient(kind: str, options: list[str], spec: Spec) -> None:
    if kind == "act" and options:
        pytest.skip("ACT has no such option")
    sizes = replace(spec, n_obs_steps=1)
    torch.manual_seed(0)
    node = compose(
        f"policy={kind}",
        "augmentation=crop_color",
        *BASELINES[kind],
        *options,
        *(["+policy.options.dropout=0"] if kind != "diffusion" else []),
    )
    check_split(build(node["policy"], "policy", nn.Module, spec=sizes, device=CPU), drawn_batch(sizes, 8))


def _only_normalise(config: Any, stats: dict[str, Any]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """LeRobot's normalisation alone: its tokenizer step would need a download."""
    from lerobot.processor import NormalizerProcessorStep, PolicyProcessorPipeline

    step = NormalizerProcessorStep(
        features={**config.input_features, **config.output_features}, norm_map=config.normalization_mapping, stats=stats
    )
    return PolicyProcessorPipeline(steps=[step])


@pytest.mark.parametrize("kind", list(BASELINES))
def test_a_baseline_trains_saves_and_is_judged_like_any_policy(kind: str, command: Command, tmp_path: Path) -> None:
    fake = [o for o in FAKE if not o.startswith(("vision", "fusion", "head"))]
    run = tmp_path / "run"
    code, _, err = command("train", *fake, f"policy={kind}", *BASELINES[kind], f"hydra.run.dir={run}")
    assert code == 0, err
    result = json.loads((run / "result.json").read_text())
    assert result["status"] == "completed"
    code, _, err = command("evaluate", f"checkpoint={run}", f"hydra.run.dir={tmp_path / 'again'}")
    assert code == 0, err
    again = json.loads((tmp_path / "again" / "result.json").read_text())
    assert again["metrics"]["trajectory_mse"] == pytest.approx(result["metrics"]["trajectory_mse"], rel=1e-5)
    assert result["precision"] == again["precision"] == "float32"
    code, out, err = command("export", f"checkpoint={run}")
    assert code == 0, err
    assert "nothing to merge" in out
    policies = [provla.load(place) for place in (run, run / "policy-full")]
    seen = fake_observation(policies[0].spec, 2)
    assert torch.equal(*(policy.act(seen, torch.Generator().manual_seed(0)) for policy in policies))


@pytest.mark.parametrize("kind", list(BASELINES))
def test_a_baseline_samples_each_row_as_if_alone(kind: str, spec: Spec) -> None:
    sizes = replace(spec, n_obs_steps=1)
    torch.manual_seed(0)
    policy = build(
        compose(f"policy={kind}", *BASELINES[kind])["policy"], "policy", nn.Module, spec=sizes, device=CPU
    ).eval()
    observation = fake_observation(sizes, 2)
    both = policy.act(observation, [torch.Generator().manual_seed(i) for i in (3, 4)])
    alone = policy.act(observation.rows(slice(1, 2)), [torch.Generator().manual_seed(4)])
    torch.testing.assert_close(both[1:], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("overrides", "changes", "message"),
    [
        (
            ["policy=act"],
            {"n_obs_steps": 2},
            r"policy=act: LeRobot refuses this data set or policy.options: Multiple observation steps not handled",
        ),
        (
            ["policy=diffusion"],
            {"n_obs_steps": 1, "horizon": 12},
            r"policy=diffusion: LeRobot refuses .*horizon should be an integer multiple",
        ),
        (["policy=act"], {"n_obs_steps": 1, "cameras": ()}, r"policy=act: LeRobot refuses .*at least one image"),
        (
            ["policy=act", "+policy.options.colour=3"],
            {"n_obs_steps": 1},
            r"nothing reads policy\.options\.colour; LeRobot's act has: .*dim_model",
        ),
        (["policy=act", "policy.kind=pi9"], {}, r"policy\.kind='pi9': expected one of: act, diffusion, multi_task_dit"),
        (["scheduler=flow", "scheduler.solver=rk4"], {}, r"scheduler\.solver='rk4': expected one of: euler, midpoint"),
        (
            ["scheduler=flow", "scheduler.time_sampling=late"],
            {},
            r"scheduler\.time_sampling='late': expected one of: uniform, beta",
        ),
        (
            ["scheduler=mip", "scheduler.t_star=1.5"],
            {},
            r"scheduler\.t_star=1\.5: expected a number above 0 and below 1",
        ),
        (
            ["scheduler=dpm_solver", "scheduler.clip_sample=true"],
            {},
            r"scheduler\.clip_sample=true: DPM-Solver\+\+ has no such cut",
        ),
    ],
)
def test_bad_input(overrides: list[str], changes: dict[str, Any], message: str, spec: Spec) -> None:
    with pytest.raises(ValueError, match=message):
        build(compose(*overrides)["policy"], "policy", nn.Module, spec=replace(spec, **changes), device=CPU)


def test_quality_against_sampler_steps_in_one_call(command: Command, tmp_path: Path) -> None:
    run, judged = tmp_path / "run", tmp_path / "judged"
    assert command("train", *FAKE, f"hydra.run.dir={run}")[0] == 0
    code, out, err = command(
        "evaluate", f"checkpoint={run}", "scheduler.num_inference_steps=1,2,4", f"hydra.run.dir={judged}"
    )
    assert code == 0, err
    result = json.loads((judged / "result.json").read_text())
    assert [row["num_inference_steps"] for row in result["steps"]] == [1, 2, 4]
    assert len({row["trajectory_mse"] for row in result["steps"]}) == 3
    assert result["objective"] == {
        "name": "trajectory_mse",
        "value": min(row["trajectory_mse"] for row in result["steps"]),
    }
    assert "quality against sampler steps" in out
    assert (judged / "plots" / "steps.png").stat().st_size > 5000
    assert len((judged / "steps.csv").read_text().splitlines()) == 4
