"""GPU memory of a training and disk of a run, computed from the sizes of the networks.

Exact: how many weights there are, and what a weight, its gradient and its moments take. What a network keeps beside
them, it estimates itself.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from recap.policies.sizes import GemmaSize, SiglipSize
from recap.training.config import Optimizer

if TYPE_CHECKING:
    from recap.policies.config import NetworkConfig

MOMENTS = {Optimizer.adamw: 8, Optimizer.adamw8bit: 2}  # bytes a weight
UNCHECKED = 6  # times what gradient checkpointing keeps is kept without; measured at size=tiny: 6.5 (π0) and 7.4 (V)
FULL, HALF = 4, 2  # bytes of float32 and bfloat16


def siglip(size: SiglipSize, image_size: int) -> int:
    """Weights of a vision tower without a stem."""
    width, mlp = size.width, size.mlp_dim
    layer = 4 * (width**2 + width) + 2 * width * mlp + mlp + width + 4 * width
    patches = (image_size // size.patch_size) ** 2
    return (3 * size.patch_size**2 + 1) * width + patches * width + size.depth * layer + 2 * width


def gemma(size: GemmaSize) -> int:
    """Weights of one Gemma layer."""
    attention = 2 * size.width * size.head_dim * (size.num_heads + size.num_kv_heads)
    return attention + 3 * size.width * size.mlp_dim + 2 * size.width


def siglip_kept(size: SiglipSize, pixels: float) -> float:
    """What one layer of a vision tower keeps of `pixels` patches for its backward pass, as it is compiled, in bytes."""
    inside = size.width * (2 * FULL + 7 * HALF) + 2 * size.mlp_dim * HALF  # residuals; norms, q, k, v, attention; MLP
    return pixels * inside + HALF * (4 * size.width**2 + 2 * size.width * size.mlp_dim)


def gemma_kept(size: GemmaSize, tokens: float, seen: float) -> float:
    """The same of one Gemma layer, of `tokens` that see so many keys each; and its weights in bfloat16."""
    heads = size.head_dim * (2 * size.num_heads + 4 * size.num_kv_heads)
    inside = HALF * (5 * size.width + heads + 3 * size.mlp_dim) + (FULL + HALF) * size.num_heads * seen
    return tokens * inside + HALF * gemma(size)


def words(tokenizer: str, published: int) -> int:
    """How many embeddings there are; the few of the built-in tokenizer are not worth counting."""
    return 0 if tokenizer == "builtin" else published


def weight_bytes(learned: int, frozen: int, optimizer: Optimizer, processes: int = 1) -> dict[str, float]:
    """Memory of a training but for its activations, a process; processes: that share all of it (sharding=fsdp)."""
    return {
        "weights": (learned * FULL + frozen * HALF) / processes,
        "gradients": learned * FULL / processes,
        "moments": learned * MOMENTS[optimizer] / processes,
    }


def disk_bytes(trained: Sequence[tuple[NetworkConfig, int]]) -> float:
    """Disk for the checkpoints of a run.

    Args:
        trained: each network, and how many of its trainings leave a checkpoint. Beside these, the largest training
            under way has `keep_checkpoints` with the optimiser's state, and writes another one.
    """
    under_way = max(
        (size.sft.keep_checkpoints + 1) * (size.saved_bytes() + size.weights()[0] * MOMENTS[size.sft.optimizer])
        for size, _ in trained
    )
    return sum(count * size.saved_bytes() for size, count in trained) + under_way


def sample_bytes(size: NetworkConfig, shapes: Sequence[tuple[int, ...]], on_device: bool) -> float:
    """About how much memory of the machine a sample of a training batch takes, rather too little.

    Args:
        shapes: (H, W, 3) of each camera. on_device: the network has memory of its own, a GPU's.
    """
    read = sum(math.prod(shape) for shape in shapes) * (1 + FULL)  # as recorded, and in [0, 1]
    return read if on_device else size.sample_bytes(read, len(shapes))


def machine_bytes() -> float:
    """Memory of this machine, or what its container may take of it."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError):  # another system, or "max"
            found.append(int(Path(path).read_text(encoding="ascii")))
    return float(min(found))
