"""π0 of the same numbers, weights and inputs: seconds of a training step and of a chunk of actions, ours and lerobot's.

python bench/pi0.py [threads]     a π0 of 30 M parameters with images of 224 pixels, on a processor; prints a table

The two take turns, so that whatever else the machine does hits both. OpenTau's π0 is lerobot's code of an earlier date.
"""

from __future__ import annotations

import importlib.util
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from lerobot.policies.pi0 import PI0Config, modeling_pi0

from recap.policies.checkpoint import Checkpoint, features
from recap.policies.pi0.adapter import PI0Adapter
from recap.policies.pi0.modeling_pi0 import RecapPI0Config, RecapPI0Policy
from recap.policies.prompt import BUILTIN
from recap.policies.sizes import GemmaSize, SiglipSize

ROOT = Path(__file__).resolve().parents[1]
BATCH, TURNS = 8, 7
# 8 heads, because lerobot's code has that number written into it.
VISION = {"width": 256, "depth": 6, "mlp_dim": 1024, "num_heads": 4, "patch_size": 14}
VLM = {"width": 256, "depth": 6, "mlp_dim": 1024, "num_heads": 8, "num_kv_heads": 1, "head_dim": 32}
EXPERT = {**VLM, "width": 128, "mlp_dim": 512}


def ours(sizes: dict) -> Checkpoint:
    config = RecapPI0Config(
        **sizes,
        device="cpu",
        dtype="float32",
        vision=SiglipSize(**VISION),
        vlm=GemmaSize(**VLM),
        expert=GemmaSize(**EXPERT),
        tokenizer=BUILTIN,
        tokenizer_max_length=48,
        push_to_hub=False,
    )
    stats = {key: {"mean": [0.0] * n, "std": [1.0] * n} for key, n in (("observation.state", 8), ("action", 7))}
    return Checkpoint.new(PI0Adapter(), RecapPI0Policy(config), stats)


def theirs(sizes: dict, like: RecapPI0Policy) -> modeling_pi0.PI0Policy:
    """lerobot's class, with its size tables set to these numbers, and the same weights."""
    spec = importlib.util.spec_from_file_location("stock_lerobot", ROOT / "bench/stock_lerobot.py")
    assert spec
    assert spec.loader
    stock = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(stock)
    vocabulary = like.config.vocab_size
    stock.shrink({"vision": VISION, "vlm": VLM, "expert": EXPERT, "vocab_size": vocabulary}, setattr)
    policy = modeling_pi0.PI0Policy(PI0Config(**sizes, device="cpu", dtype="float32", push_to_hub=False))
    policy.load_state_dict(like.state_dict(), strict=True)
    return policy


def main() -> None:
    torch.set_num_threads(int(sys.argv[1]) if len(sys.argv) > 1 else 1)
    cameras = [f"observation.images.image{k}" for k in ("", "2")]
    sizes = {**features(dict.fromkeys(cameras, (224, 224)), 8, 7), "chunk_size": 50, "n_action_steps": 10}
    checkpoint = ours(sizes)
    generator = torch.Generator().manual_seed(0)
    raw = {key: torch.rand(BATCH, 3, 224, 224, generator=generator) for key in cameras}
    raw |= {"observation.state": torch.zeros(BATCH, 8), "task": ["put both moka pots on the stove"] * BATCH}
    raw |= {"action": torch.rand(BATCH, 50, 7, generator=generator), "indicator": [True] * BATCH}
    batch = checkpoint.prepare(raw)
    policies = {"ours": checkpoint.policy, "lerobot": theirs(sizes, checkpoint.policy)}
    count = sum(p.numel() for p in checkpoint.policy.parameters())
    print(f"{count / 1e6:.0f} M parameters, batch {BATCH}, {torch.get_num_threads()} thread(s)")

    def train(policy: torch.nn.Module) -> None:
        policy.train()
        policy.forward(batch)[0].backward()
        policy.zero_grad()

    def act(policy: torch.nn.Module) -> None:
        policy.eval()
        policy.predict_action_chunk(batch)

    works: dict[str, Callable] = {"training step (forward, backward)": train, "chunk of 50 actions, 10 flow steps": act}
    for name, work in works.items():
        seconds: dict[str, list[float]] = {who: [] for who in policies}
        for turn in range(TURNS + 1):
            for who, policy in policies.items():
                began = time.perf_counter()
                work(policy)
                if turn:  # the first one warms up
                    seconds[who].append(time.perf_counter() - began)
        mine, other = (statistics.median(seconds[who]) for who in policies)
        print(f"{name:36} ours {mine:.2f} s   lerobot {other:.2f} s   {other / mine:.2f} times as long")


if __name__ == "__main__":
    main()
