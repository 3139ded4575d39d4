"""What starting must not import: seconds that a command, a job or a simulator would pay for nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NETWORKS = "torch lerobot transformers datasets pandas scipy matplotlib cv2"
OTHERS = "datasets pandas aiohttp lerobot.datasets lerobot.policies.act lerobot.policies.diffusion "
OTHERS += "lerobot.policies.groot.modeling_groot torchvision.models.resnet torchvision.ops.roi_align"
CASES = {
    "a run planned and checked": ("recap.pipeline.runner, recap.pipeline.preflight", f"{NETWORKS} mujoco"),
    "a job without networks": (
        "recap.jobs.job, recap.stages.demonstrations, recap.stages.advantage, recap.stages.gate",
        f"{NETWORKS} mujoco",
    ),
    "a simulator": ("recap.rollout.worker, recap.envs.moka.env, recap.data.lerobot_writer", f"{NETWORKS} hydra"),
    "frames of a data set": ("recap.data.frames, recap.data.mixture", NETWORKS),
    "π0 and the value function": (
        "recap.policies.pi0.adapter, recap.policies.value.adapter, recap.policies.checkpoint",
        f"{OTHERS} mujoco",
    ),
}


def imported(code: str) -> set[str]:
    """Modules of a process that has run it."""
    command = [sys.executable, "-c", f"{code}\nimport sys; print(*sys.modules)"]
    return set(subprocess.run(command, check=True, cwd=ROOT, capture_output=True, text=True).stdout.split())


@pytest.mark.parametrize("case", CASES)
def test_what_is_not_imported(case: str) -> None:
    modules, heavy = CASES[case]
    assert not imported(f"import {modules}") & set(heavy.split())


def test_who_asks_for_the_rest_of_a_package_gets_it() -> None:
    code = "import recap.policies.pi0.adapter, lerobot.policies, torchvision, sys\n"
    code += "assert 'lerobot.policies.act.configuration_act' not in sys.modules\n"
    code += "from lerobot.policies import ACTConfig, make_policy\n"
    code += "assert ACTConfig.__module__ in sys.modules and lerobot.policies.DiffusionConfig\n"
    code += "assert torchvision.models.resnet18 and torchvision.ops.nms and not hasattr(torchvision.ops, 'nothing')"
    assert {"lerobot.policies.act.configuration_act", "torchvision.models.resnet"} <= imported(code)
