"""Keys and values of earlier versions, so that an old command line is answered with the new one."""

from __future__ import annotations

import re

TRAINING = {
    "outcomes": "episode_filter",
    "decay_to": "min_lr_ratio",
    "image_shift": "random_shift",
    "demonstration_share": "demo_fraction",
}
RESOURCES = {
    "cpus": "cpus_per_task",
    "mem": "mem_gb",
    "minutes": "timeout_min",
    "gpus": "gpus_per_node",
    "processes": "tasks_per_node",
}
RENAMED = (  # a pattern of the whole dotted key, and what it is now
    (r"pi0(\..+)?", r"policy\1"),
    (r"policy\.trains", "policy.trainable"),
    (r"(policy|value)\.gradient_checkpointing", r"\1.memory"),
    *((rf"(\w+)\.(sft|finetune)\.{old}", rf"\1.\2.{new}") for old, new in TRAINING.items()),
    (r"resources\.pi0(\..+)?", r"resources.policy\1"),
    (r"resources\.values(\..+)?", r"resources.value_inference\1"),
    *((rf"resources\.(\w+)\.{old}", rf"resources.\1.{new}") for old, new in RESOURCES.items()),
    (r"value\.members", "value.ensemble_size"),
    (r"value\.read", "value.aggregation"),
    (r"advantage\.(sft\.)?look_ahead", r"advantage.\1n_step"),
    (r"workers\.slots", "workers.num_envs"),
    (r"workers\.processes", "workers.num_workers"),
    (r"launcher\.notice", "launcher.grace_period_s"),
    (r"launcher\.requeues", "launcher.max_requeues"),
    (r"controls", "ablation"),
    (r"arms(\..+)?", r"ablations\1"),
)


def renamed(key: str) -> str | None:
    """What an old key is called now; None if it never was one. Patterns apply in turn, as to resources.pi0.cpus."""
    now = key
    for _ in RENAMED:
        for pattern, new in RENAMED:
            if found := re.fullmatch(pattern, now):
                now = found.expand(new)
                break
        else:
            break
    return None if now == key else now
