"""By hand: π0 at full size with random weights, ours against lerobot's own in a process without this package.

python bench/checkpoint_full_size.py FOLDER   9 GB on disk, 11 GB of memory, minutes; for docs/full_size.md
"""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import init_empty_weights

from recap.export import export
from recap.policies.checkpoint import Checkpoint, features
from recap.policies.pi0.adapter import PI0Adapter
from recap.policies.pi0.modeling_pi0 import RecapPI0Config, RecapPI0Policy
from recap.policies.prompt import BUILTIN
from recap.policies.sizes import GemmaSize, SiglipSize

ROOT = Path(__file__).resolve().parents[1]


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()

    def say(text: str) -> None:
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        print(f"{time.perf_counter() - began:4.0f} s  {memory:4.1f} GB at most  {text}", flush=True)

    if not (folder / "ours").exists():
        numbers = yaml.safe_load((ROOT / "conf/policy/pi0/full.yaml").read_text())
        make(folder / "ours", numbers, ["observation.images.image"])
        say("random weights, saved")
    batch = {
        "observation.images.image": torch.rand(1, 3, 256, 256, generator=torch.Generator().manual_seed(0)),
        "observation.state": torch.linspace(-1, 1, 8)[None],
        "task": ["put both moka pots on the stove"],
        "noise": torch.randn(1, 10, 32, generator=torch.Generator().manual_seed(1)),
    }
    torch.save(batch, folder / "batch.pt")
    checkpoint = Checkpoint.load(folder / "ours", PI0Adapter(), "cpu")
    say("loaded strictly")
    actions = {}
    for indicator in (True, None):
        checkpoint.set_prompt(indicator)
        actions[indicator] = checkpoint.postprocess(checkpoint.policy.predict_action_chunk(checkpoint.prepare(batch)))
        say(f"a chunk of actions, indicator {indicator}")
    del checkpoint
    shutil.rmtree(folder / "stock", ignore_errors=True)
    out = export(folder / "ours", folder / "stock")
    say("exported")
    job = {"checkpoint": str(out), "batch": str(folder / "batch.pt"), "actions": str(folder / "actions.pt")}
    (folder / "job.json").write_text(json.dumps({**job, "numbers": None, "evaluate": []}))
    subprocess.run([sys.executable, "-I", ROOT / "bench/stock_lerobot.py", folder / "job.json"], check=True)
    theirs = torch.load(folder / "actions.pt", weights_only=True)["actions"]
    say("lerobot's own has acted")
    for indicator, ours in actions.items():
        difference = (ours - theirs).abs()
        print(f"indicator {indicator}: differs by {difference.max():.4f} at most, {difference.mean():.5f} on average")
    print(f"actions have a standard deviation of {theirs.std():.3f}")


def make(folder: Path, numbers: dict[str, Any], cameras: Sequence[str], device: str = "cpu") -> None:
    """A checkpoint of random weights in bfloat16, each made in place; numbers: those of conf/size for π0."""
    config = RecapPI0Config(
        **features(dict.fromkeys(cameras, (256, 256)), 8, 7),
        device="cpu",
        dtype="bfloat16",
        vision=SiglipSize(**numbers["vision"]),
        vlm=GemmaSize(**numbers["vlm"]),
        expert=GemmaSize(**numbers["expert"]),
        tokenizer=BUILTIN,  # PaliGemma's is gated; its ids are embedded the same
        tokenizer_max_length=numbers["tokenizer_max_length"],
        chunk_size=numbers["chunk_size"],
        n_action_steps=numbers["n_action_steps"],
        push_to_hub=False,
    )
    with init_empty_weights(include_buffers=False):
        policy = RecapPI0Policy(config)
    generator = torch.Generator(device).manual_seed(0)
    state = {}
    for name, weight in policy.state_dict().items():
        one = "vision_tower" in name and "norm" in name and name.endswith("weight")  # Gemma's norms add one themselves
        value = torch.full(weight.shape, float(one), dtype=torch.bfloat16, device=device)
        if weight.ndim > 1:
            value.normal_(std=weight[0].numel() ** -0.5, generator=generator)
        state[name] = value
    print(f"{sum(value.numel() for value in state.values()) / 1e9:.3f} G parameters")
    stats = {
        key: {"mean": [0.0] * size, "std": [1.0] * size} for key, size in (("observation.state", 8), ("action", 7))
    }
    Checkpoint.new(PI0Adapter(), policy, stats).save(folder, state)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
