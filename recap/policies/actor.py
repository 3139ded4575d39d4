"""A policy as a plain function from observations to action chunks, the same for any batch it finds itself in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from recap.data.tensors import to_tensor
from recap.policies.adapter import cameras_of
from recap.policies.checkpoint import Checkpoint
from recap.utils.errors import RecapError


class ActionChunks:
    """`act(observation, noise_keys)` for rollouts.

    The noise of a row is a function of (episode seed, chunk number) alone, so an episode does not depend on its
    slot, on its neighbours in the batch, or on how often the run was interrupted.
    """

    def __init__(self, checkpoint: Checkpoint, indicator: bool | None, beta: float = 1.0) -> None:
        self.checkpoint = checkpoint
        checkpoint.set_prompt(indicator, beta)
        self.config = checkpoint.policy.config
        self.noise = checkpoint.adapter.acting_noise(self.config)

    def __call__(self, observation: dict[str, Any], noise_keys: Sequence[tuple[int, int]]) -> np.ndarray:
        """Actions [slots, chunk, A] in the environment's units.

        Args:
            observation: images uint8 [slots, H, W, 3], `observation.state` float32 [slots, S], `task` list of str.
            noise_keys: (episode seed, chunk number) per slot.
        """
        batch = _on(self.config.device, observation)
        missing = [key for key in cameras_of(self.config) if key not in self.checkpoint.sees(batch)]
        if missing:
            raise RecapError(
                f"the policy was trained with camera {missing[0]}, which the environment does not have "
                f"({sorted(observation)})."
            )
        if self.noise is not None:
            rows = [np.random.default_rng(key).standard_normal(self.noise, dtype=np.float32) for key in noise_keys]
            batch["noise"] = torch.from_numpy(np.stack(rows))
        with torch.no_grad():
            actions = self.checkpoint.policy.predict_action_chunk(self.checkpoint.prepare(batch))
            return self.checkpoint.postprocess(actions).float().numpy()


class Values:
    """V(o, l) of observations as `ActionChunks` takes them: float32 [slots] in (−1, 0)."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint

    def __call__(self, observation: dict[str, Any]) -> np.ndarray:
        batch = self.checkpoint.prepare(_on(self.checkpoint.policy.config.device, observation))
        with torch.no_grad():
            return self.checkpoint.policy.value(batch).float().cpu().numpy()


def _on(device: str, observation: dict[str, Any]) -> dict[str, Any]:
    return {
        key: to_tensor(value, device) if isinstance(value, np.ndarray) else value for key, value in observation.items()
    }
