"""The table of docs/full_size.md: the memory that full-size π0 trainable in, as recap.policies.pi0.memory counts it.

python bench/memory.py
"""

from __future__ import annotations

from pathlib import Path

from hydra import compose, initialize_config_dir

from recap.config import TrainJob, typed
from recap.policies.pi0.memory import pi0_weights, training_bytes
from recap.policies.sizes import Trained
from recap.training.config import Optimizer

CONF = Path(__file__).resolve().parents[1] / "conf"


def main() -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        size = typed(compose("train"), TrainJob).policy
    print("weights (M): " + ", ".join(f"{name} {count / 1e6:.0f}" for name, count in pi0_weights(size).items()))
    print("| policy.trainable | optimizer | batch | weights | gradients | moments | activations | together |")
    print("|---|---|---|---|---|---|---|---|")
    for trainable in Trained:
        for optimizer, batch in ((Optimizer.adamw, 32), (Optimizer.adamw8bit, 32), (Optimizer.adamw, 8)):
            found = training_bytes(size, trainable, optimizer, batch)
            numbers = " | ".join(f"{value / 1e9:.1f}" for value in (*found.values(), sum(found.values())))
            print(f"| {trainable.name} | {optimizer.name} | {batch} | {numbers} |")


if __name__ == "__main__":
    main()
