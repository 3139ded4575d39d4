"""What a policy is trained on: action chunks and the indicator of each frame."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from recap.data.augment import shift_images
from recap.data.mixture import Mixture, Picked
from recap.data.tensors import Batch
from recap.method.advantage import awr_weights, certainty_weights
from recap.policies.config import PolicyConfig
from recap.policies.registry import adapter_of
from recap.training.config import IndicatorMode, PolicyTrainConfig


def policy_batches(
    mixture: Mixture,
    keys: PolicyConfig,
    train: PolicyTrainConfig,
    seed: int,
    labels: list[dict[str, np.ndarray]] | None,
) -> Callable[[int], Batch]:
    """Batches of a policy: action chunks, the indicator of each frame (after dropout), and noise that it asks for.

    Args:
        labels: of every source of the mixture, "indicator" bool [frames], "advantage" float64 [frames] and "epsilon"
            float64 [frames], where the training reads them.
    """
    adapter = adapter_of(keys)
    weights = _weights(train, labels)

    def indicators(picked: Picked, rng: np.random.Generator) -> list[bool | None]:
        if train.indicator is IndicatorMode.ignore:
            return [None] * len(picked.frame)
        if train.indicator is IndicatorMode.always_positive:
            given = [True] * len(picked.frame)
        else:
            assert labels is not None
            given = [bool(labels[s]["indicator"][f]) for s, f in zip(picked.source, picked.frame, strict=True)]
        dropped = rng.random(len(given)) < keys.indicator_dropout
        if train.indicator is IndicatorMode.positive_only:
            dropped |= ~np.array(given)
        return [None if gone else positive for gone, positive in zip(dropped, given, strict=True)]

    def batch(step: int) -> Batch:
        picked = mixture.pick(seed, step, train.batch_size)
        data = mixture.gather(picked, chunk=keys.chunk_size)
        rng = np.random.default_rng([seed, step, 1])
        shift_images(data, train.random_shift, rng)
        data["indicator"] = indicators(picked, rng)
        if weights is not None:
            chosen = [weights[s][f] for s, f in zip(picked.source, picked.frame, strict=True)]
            if train.indicator_temperature is not None:  # a sample without its label's text learns whatever it shows
                chosen = [1.0 if one is None else w for one, w in zip(data["indicator"], chosen, strict=True)]
            data["weight"] = np.array(chosen, dtype=np.float32)
        return {**data, **adapter.training_noise(keys, rng, train.batch_size)}

    return batch


def _weights(train: PolicyTrainConfig, labels: list[dict[str, np.ndarray]] | None) -> list[np.ndarray] | None:
    """Weights of the frames of every source, of mean 1 over all of them together; None where all count alike."""
    if labels is None:
        return None
    pooled = {key: np.concatenate([source[key] for source in labels]) for key in labels[0]}
    if train.awr_temperature is not None:
        together = awr_weights(pooled["advantage"], train.awr_temperature)
    elif train.indicator_temperature is not None:
        label = (pooled["advantage"], pooled["epsilon"], pooled["indicator"])
        together = certainty_weights(*label, train.indicator_temperature)
    else:
        return None
    return np.split(together, np.cumsum([len(source["advantage"]) for source in labels])[:-1])
