"""Actions as their distance from where the robot was when it looked."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from provla.core.checks import shown
from provla.core.types import Spec

Actions = Literal["absolute", "relative"]
GRIPPER = "gripper"  # in a joint's name: it opens and closes to what is said, wherever it was
MOST = 0.7  # of actions' spread that is left without the state: 0.02 to 0.2 of ALOHA's joints, 0.93 up of displacements


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
        """states (N,S), actions (N,A) of the same rows. `ValueError` where most joints' actions do not follow the
        state: then they are no positions, and subtracting it takes little away from them.
        """
        spread = actions.double().std(0, correction=0)
        told = (self._moves > 0) & (spread > 0)
        left = ((actions.double() - self(states.double())).std(0, correction=0) / spread)[told]
        if 2 * int((left > MOST).sum()) > len(left):
            raise ValueError(
                "policy.actions=relative: these actions do not follow the state, so they are no positions but perhaps "
                "displacements already (what subtracting the state leaves of their spread, by joint: "
                f"{shown([round(value, 2) for value in left.tolist()])}; of positions little); use "
                "policy.actions=absolute"
            )
