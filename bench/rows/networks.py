"""π0 of the same numbers, weights and inputs: a training step and a chunk of actions, ours and lerobot's.

30 M parameters, two images of 224 pixels. OpenTau's π0 is lerobot's code of an earlier date.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

import flop
import stock_lerobot
import torch
from lerobot.policies.pi0 import PI0Config, modeling_pi0

from recap.config import TrainJob
from recap.policies.checkpoint import Checkpoint, features
from recap.policies.pi0.adapter import PI0Adapter
from recap.policies.pi0.modeling_pi0 import RecapPI0Config, RecapPI0Policy
from recap.policies.prompt import BUILTIN, load_tokenizer
from recap.policies.sizes import GemmaSize, SiglipSize
from recap.training.optim import make_optimizer
from rows.row import Bench, Row, rate

CAMERAS = [f"observation.images.image{k}" for k in ("", "2")]
STATS = {key: {"mean": [0.0] * n, "std": [1.0] * n} for key, n in (("observation.state", 8), ("action", 7))}
# 8 heads, because lerobot's code has that number written into it.
VISION = {"width": 256, "depth": 6, "mlp_dim": 1024, "num_heads": 4, "patch_size": 14}
VLM = {"width": 256, "depth": 6, "mlp_dim": 1024, "num_heads": 8, "num_kv_heads": 1, "head_dim": 32}
EXPERT = {**VLM, "width": 128, "mlp_dim": 512}
CHUNK, PADDED, FLOW_STEPS, CLIP = 50, 48, 10, 10.0
WORDS = 16  # tokens of the prompt, about


def rows(bench: Bench, full: TrainJob) -> Iterator[Row]:
    checkpoint, theirs = pair({"vision": VISION, "vlm": VLM, "expert": EXPERT}, 224, 224, CHUNK)
    size = checkpoint.policy.config
    count = sum(p.numel() for p in checkpoint.policy.parameters())
    bench.notes.append(f"π0 here: {count / 1e6:.0f} M parameters, chunks of {CHUNK}, {FLOW_STEPS} flow steps, float32")
    for many in (1,) if bench.quick else (1, 8):
        for beta in (1.0, 1.5):
            peer = chunk(theirs, inputs(checkpoint, many, 1.0))  # it has no guidance
            ours = chunk(checkpoint.policy, inputs(checkpoint, many, beta))
            limit = bench.flops / flop.chunk(size, len(CAMERAS), WORDS, 1 if beta == 1 else 2)
            what = f"π0: a chunk of actions, batch {many}, β = {beta:g}" + (" (lerobot's: 1)" if beta != 1 else "")
            yield Row(what, "samples/s", rate(ours, many), rate(peer, many), goal=2, limit=limit)
    for many in (1,) if bench.quick else (1, 8):
        batch = inputs(checkpoint, many, 1.0)
        own = make_optimizer(checkpoint.policy, full.policy.sft)
        preset = theirs.config.get_optimizer_preset().build(theirs.get_optim_params())
        steps = step(checkpoint.policy, own, batch), step(theirs, preset, batch)
        limit = bench.flops / flop.training(size, len(CAMERAS), WORDS)
        what = f"π0: a training step, batch {many}"
        yield Row(what, "samples/s", rate(steps[0], many), rate(steps[1], many), goal=2, limit=limit)


def pair(numbers: dict[str, Any], pixels: int, image_size: int, chunk: int) -> tuple[Checkpoint, Any]:
    """Ours, and lerobot's class with its size tables set to these numbers; the same weights."""
    torch.manual_seed(0)
    shapes = features(dict.fromkeys(CAMERAS, (pixels, pixels)), 8, 7)
    both = {**shapes, "chunk_size": chunk, "n_action_steps": 10, "device": "cpu", "dtype": "float32"}
    both |= {"image_resolution": (image_size, image_size), "push_to_hub": False, "num_inference_steps": FLOW_STEPS}
    config = RecapPI0Config(
        **both,
        vision=SiglipSize(**numbers["vision"]),
        vlm=GemmaSize(**numbers["vlm"]),
        expert=GemmaSize(**numbers["expert"]),
        vocab_size=len(load_tokenizer(BUILTIN)),
        tokenizer=BUILTIN,
        tokenizer_max_length=PADDED,
    )
    checkpoint = Checkpoint.new(PI0Adapter(), RecapPI0Policy(config), STATS)
    with ExitStack() as stack:
        stock_lerobot.shrink(
            numbers | {"vocab_size": config.vocab_size}, lambda *named: stack.enter_context(patch.object(*named))
        )
        theirs = modeling_pi0.PI0Policy(PI0Config(**both))
    theirs.load_state_dict(checkpoint.policy.state_dict(), strict=True)
    return checkpoint, theirs


def inputs(checkpoint: Checkpoint, many: int, beta: float) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    raw: dict[str, Any] = {key: torch.rand(many, 3, 224, 224, generator=generator) for key in CAMERAS}
    raw |= {"observation.state": torch.zeros(many, 8), "task": ["put both moka pots on the stove"] * many}
    raw |= {"action": torch.rand(many, CHUNK, 7, generator=generator), "indicator": [True] * many}
    checkpoint.set_prompt(indicator=True, beta=beta)
    return checkpoint.prepare(raw)


def chunk(policy: Any, batch: dict[str, Any]) -> Callable[[], None]:
    def act() -> None:
        policy.eval()
        with torch.no_grad():
            policy.predict_action_chunk(batch)

    return act


def step(policy: Any, optimizer: torch.optim.Optimizer, batch: dict[str, Any]) -> Callable[[], None]:
    def train() -> None:
        policy.train()
        policy.forward(batch)[0].backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()

    return train
