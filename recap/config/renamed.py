"""Keys and values of earlier versions, so that an old command line is answered with the new one."""

from __future__ import annotations

import re

RENAMED = (  # a pattern of the whole dotted key, and what it is now
    (r"pi0\.(.*\.)?trains", r"policy.trainable"),
    (r"(pi0|policy)\.(sft|finetune)\.outcomes", r"policy.\2.episode_filter"),
    (r"(pi0|policy)\.(sft|finetune)\.decay_to", r"policy.\2.min_lr_ratio"),
    (r"(pi0|policy)\.(sft|finetune)\.image_shift", r"policy.\2.random_shift"),
    (r"(pi0|policy)\.(sft|finetune)\.demonstration_share", r"policy.\2.demo_fraction"),
    (r"resources\.pi0\.(\w+)", r"resources.policy.\1"),
    (r"resources\.values\.(\w+)", r"resources.value_inference.\1"),
    (r"resources\.(\w+)\.cpus", r"resources.\1.cpus_per_task"),
    (r"resources\.(\w+)\.mem", r"resources.\1.mem_gb"),
    (r"resources\.(\w+)\.minutes", r"resources.\1.timeout_min"),
    (r"resources\.(\w+)\.gpus", r"resources.\1.gpus_per_node"),
    (r"resources\.(\w+)\.processes", r"resources.\1.tasks_per_node"),
    (r"resources\.pi0", "resources.policy"),
    (r"resources\.values", "resources.value_inference"),
    (r"pi0(\..+)?", r"policy\1"),
    (r"value\.(\w+)\.decay_to", r"value.\1.min_lr_ratio"),
    (r"value\.(\w+)\.image_shift", r"value.\1.random_shift"),
    (r"value\.(\w+)\.demonstration_share", r"value.\1.demo_fraction"),
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
