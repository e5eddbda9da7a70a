"""Convolutions over the chunk."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated

import torch
from annotated_types import MinLen
from torch import Tensor, nn
from torch.nn import functional as F

from provla.core.checks import Channels, Depth, Even
from provla.core.types import Tokens
from provla.head.parts import Conditioning, Mish, Pool, Pooling, TimeEmbedding, check_conditioning

SHORT = 8  # steps in time; a longer chunk is convolved on a CPU too: there it is the faster way


class Conv(nn.Conv1d):
    """A convolution over the time of (B,C,1,T), channels last: so oneDNN needs an eighth less for a training step.

    Of a short chunk, on a CPU, each step's neighbours are laid side by side and multiplied at once: a convolution would
    turn many weights and their gradients around for few steps, which takes longer than the sums.
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.kernel_size == (1,):
            return F.linear(x.movedim(1, -1), self.weight.squeeze(2), self.bias).movedim(-1, 1)
        if x.device.type != "cpu" or x.shape[-1] > SHORT:
            return F.conv2d(x, self.weight.unsqueeze(2), self.bias, (1, *self.stride), (0, *self.padding))
        rows = F.pad(x, (*self.padding, *self.padding)).movedim(1, -1)  # (B,1,T',C)
        (size,), (stride,) = self.kernel_size, self.stride
        last = rows.shape[2] - size + 1
        beside = torch.stack([rows[:, :, i : i + last : stride] for i in range(size)], -1).flatten(3)  # (B,1,T,C·k)
        return F.linear(beside, self.weight.flatten(1), self.bias).movedim(-1, 1)


class Grow(nn.ConvTranspose1d):
    """The same for a transposed one."""

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        return F.conv_transpose2d(x, self.weight.unsqueeze(2), self.bias, (1, *self.stride), (0, *self.padding))


class ResidualBlock1d(nn.Module):
    """Two convolutions over time with GroupNorm and Mish; the condition scales and shifts what is between them
    (FiLM). (B,before,1,T) → (B,after,1,T).
    """

    def __init__(self, before: int, after: int, condition: int, kernel_size: int) -> None:
        super().__init__()
        self.first = nn.Sequential(
            Conv(before, after, kernel_size, padding=kernel_size // 2), nn.GroupNorm(8, after), Mish()
        )
        self.second = nn.Sequential(
            Conv(after, after, kernel_size, padding=kernel_size // 2), nn.GroupNorm(8, after), Mish()
        )
        self.condition = nn.Linear(condition, 2 * after)
        self.skip = Conv(before, after, 1) if before != after else nn.Identity()

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        scale, shift = self.condition(condition)[:, :, None, None].chunk(2, 1)  # (B, after, 1, 1)
        found: Tensor = self.second((1 + scale) * self.first(x) + shift) + self.skip(x)
        return found


class UNet1d(nn.Module):
    """FiLM-conditioned 1-D U-Net over the action chunk (Diffusion Policy, Chi et al. 2023, arXiv:2303.04137).

    Time and the pooled context condition every block (`pooling`: see `Pool`). The horizon is padded inside to what the
    levels need.
    """

    _concat = False

    def __init__(
        self,
        action_size: int,
        horizon: int,
        context_width: int,
        channels: Annotated[list[Channels], MinLen(1)],
        kernel_size: Depth,
        time_width: Even,
        conditioning: Conditioning = "pooled",
        pooling: Pooling = "mean",
    ) -> None:
        super().__init__()
        check_conditioning(conditioning, ("pooled",), "a U-Net")
        if kernel_size % 2 == 0:
            raise ValueError(f"head.kernel_size={kernel_size}: must be odd")
        self.time = TimeEmbedding(time_width)
        self.pool = Pool(pooling, context_width)
        self._multiple = 2 ** (len(channels) - 1)
        inputs = action_size + (context_width if self._concat else 0)
        condition = time_width + (0 if self._concat else context_width)

        def pair(before: int, after: int) -> nn.ModuleList:
            return nn.ModuleList(
                [
                    ResidualBlock1d(before, after, condition, kernel_size),
                    ResidualBlock1d(after, after, condition, kernel_size),
                ]
            )

        self.down = nn.ModuleList(pair(a, b) for a, b in pairwise([inputs, *channels]))
        self.shrink = nn.ModuleList(Conv(c, c, 3, 2, 1) for c in channels[:-1])
        self.middle = pair(channels[-1], channels[-1])
        self.up = nn.ModuleList(pair(2 * a, b) for a, b in pairwise(channels[::-1]))
        self.grow = nn.ModuleList(Grow(c, c, 4, 2, 1) for c in channels[-2::-1])
        last = channels[0]
        self.out = nn.Sequential(
            Conv(last, last, kernel_size, padding=kernel_size // 2),
            nn.GroupNorm(8, last),
            Mish(),
            Conv(last, action_size, 1),
        )

    def forward(self, actions: Tensor, time: Tensor, context: Tokens) -> Tensor:
        horizon, pooled = actions.shape[1], self.pool(context)
        if self._concat:
            # (B, H, A + context)
            actions = torch.cat([actions, pooled.unsqueeze(1).expand(-1, horizon, -1).to(actions.dtype)], -1)
            condition = F.mish(self.time(time))
        else:
            condition = F.mish(torch.cat([self.time(time), pooled], -1))  # (B, time + context)
        padded = F.pad(actions, (0, 0, 0, -horizon % self._multiple))  # (B, H', A)
        x = padded.transpose(1, 2).unsqueeze(2)  # (B, A, 1, H'), channels last as they lie
        skips: list[Tensor] = []
        for level, blocks in enumerate(self.down):
            for block in blocks:  # type: ignore[attr-defined]
                x = block(x, condition)
            skips.append(x)
            if level < len(self.shrink):
                x = self.shrink[level](x)
        for block in self.middle:
            x = block(x, condition)
        for blocks, grow in zip(self.up, self.grow, strict=True):
            x = torch.cat([x, skips.pop()], 1)
            for block in blocks:  # type: ignore[attr-defined]
                x = block(x, condition)
            x = grow(x)
        found: Tensor = self.out(x).squeeze(2).transpose(1, 2)[:, :horizon]
        return found


class UNet1dConcat(UNet1d):
    """The same U-Net that sees the context as extra channels of its input; time still conditions every block.

    (diffusers' UNet1DModel with plain blocks, often used this way, ignores time altogether.)
    """

    _concat = True
