"""Actions as their distance from where the robot was when it looked."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from provla.core.checks import shown
from provla.core.types import Spec

Actions = Literal["absolute", "relative"]
GRIPPER = "gripper"  # in a joint's name: it opens and closes to what is said, wherever it was
LEAST = 0.5  # slope of actions against states from which on subtracting the state leaves less than there was


class Relative(nn.Module):
    """`policy.actions=relative`: a chunk minus the state at its start, joint by joint, as their names say (as π0's
    configurations have it, arXiv:2410.24164). Grippers stay as they are.

    `ValueError` where an action's name is not among the state's, or where nothing has names.
    """

    _from: Tensor
    _moves: Tensor

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        state, actions = list(spec.state_names), list(spec.action_names)
        joints = [name for name in actions if GRIPPER not in name.lower()]
        missing = [name for name in joints if name not in state]
        why = ""
        if not state or not actions:
            why = f"this data set does not name its {'actions' if state else 'state'}"
        elif missing:
            why = f"no number of the state is called {missing[0]!r}, as the action is (state: {shown(state)})"
        elif not joints:
            why = "all its actions are grippers, which stay as they are"
        elif repeated := [name for name in joints if state.count(name) > 1]:
            why = f"several numbers of the state are called {repeated[0]!r} (choose one feature by dataset.state_key)"
        if why:
            raise ValueError(
                "policy.actions=relative subtracts from each action the state of the same name, and "
                f"{why}; valid here: policy.actions=absolute, or a data set whose features.<state>.names and "
                "features.<action>.names in meta/info.json agree"
            )
        self.joints = joints
        at = [state.index(name) if name in joints else 0 for name in actions]
        self.register_buffer("_from", torch.tensor(at), persistent=False)
        self.register_buffer("_moves", torch.tensor([float(name in joints) for name in actions]), persistent=False)

    def forward(self, state: Tensor) -> Tensor:
        """state (…,S) → (…,A): what is subtracted from actions, 0 for grippers."""
        return state.index_select(-1, self._from) * self._moves

    def check(self, states: Tensor, actions: Tensor) -> None:
        """states (N,S), actions (N,A) of the same rows. `ValueError` where actions are no positions, of most joints:
        where they do not follow the state, subtracting it adds to them what it should take away.
        """
        base = self(states.double())
        base, follow = base - base.mean(0), actions.double() - actions.double().mean(0)
        spread = base.square().sum(0)
        told = (self._moves > 0) & (spread > 0)
        slope = (base * follow).sum(0)[told] / spread[told]
        if 2 * int((slope < LEAST).sum()) > len(slope):
            raise ValueError(
                "policy.actions=relative: these actions do not follow the state, so they are no positions but perhaps "
                f"displacements already (slope of action against state, by joint: {shown(_rounded(slope))}; of "
                "positions about 1); use policy.actions=absolute"
            )


def _rounded(values: Tensor) -> list[float]:
    return [round(value, 2) for value in values.tolist()]
