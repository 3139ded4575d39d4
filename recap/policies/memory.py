"""GPU memory of a training and disk of a run, computed from the sizes of the networks.

Exact: how many weights there are, and what a weight, its gradient and its moments take. Estimated: the activations,
with gradient checkpointing, as what is kept at every layer plus the recomputation of the largest one.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from recap.policies.pi0.config import PI0Config
from recap.policies.sizes import GemmaSize, SiglipSize, Trained
from recap.policies.value.config import ValueConfig
from recap.training.config import Optimizer

VOCABULARY, VALUE_VOCABULARY = 257_152, 262_144  # PaliGemma's and Gemma 3's
MOMENTS = {Optimizer.adamw: 8, Optimizer.adamw8bit: 2}  # bytes a weight
UNCHECKED = 6  # times what gradient checkpointing keeps is kept without; measured at size=tiny: 6.5 (π0) and 7.4 (V)
HALF, FULL = 2, 4  # bytes of bfloat16 and float32


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


def pi0_weights(size: PI0Config, vocabulary: int = VOCABULARY) -> dict[str, int]:
    """Weights of π0 by part; `unread` are those that no action depends on, and that never learn."""
    vlm, expert = size.vlm, size.expert
    last = 2 * vlm.width * vlm.head_dim * vlm.num_heads + 3 * vlm.width * vlm.mlp_dim + vlm.width  # but keys and values
    around = 2 * size.max_action_dim + size.max_state_dim + 2 * expert.width + expert.width
    return {
        "vision": siglip(size.vision, size.image_size),
        "vlm": (size.vision.width + 1) * vlm.width + vocabulary * vlm.width + vlm.depth * gemma(vlm) - last,
        "expert": expert.depth * gemma(expert) + expert.width * (around + 5) + size.max_action_dim,
        "unread": last + vlm.width + vocabulary * (vlm.width + expert.width),
    }


def words(tokenizer: str, published: int) -> int:
    """How many embeddings there are; the few of the built-in tokenizer are not worth counting."""
    return 0 if tokenizer == "builtin" else published


def value_weights(size: ValueConfig) -> int:
    """Weights of a value function, but for its few small norms and its bins."""
    text = size.text
    around = (size.vision.width + 1) * text.width + words(size.tokenizer, VALUE_VOCABULARY) * text.width
    return siglip(size.vision, size.image_size) + around + text.depth * gemma(text)


def adapters(size: PI0Config) -> int:
    """Weights of LoRA beside every matrix of both Gemmas."""

    def layer(gemma: GemmaSize) -> int:
        width, queries, keys = gemma.width, gemma.num_heads * gemma.head_dim, gemma.num_kv_heads * gemma.head_dim
        return 2 * (width + queries) + 2 * (width + keys) + 3 * (width + gemma.mlp_dim)

    return size.lora_rank * (size.vlm.depth * layer(size.vlm) + size.expert.depth * layer(size.expert))


def training_bytes(
    size: PI0Config, trainable: Trained, optimizer: Optimizer, batch: int, cameras: int = 2, processes: int = 1
) -> dict[str, float]:
    """GPU memory of π0's training in bytes, a process, in bfloat16 with gradient checkpointing.

    Args:
        batch: samples a process. processes: that share weights, gradients and moments (sharding=fsdp).
    """
    learned, frozen = learned_and_frozen(size, trainable)
    return {
        "weights": (learned * FULL + frozen * HALF) / processes,
        "gradients": learned * FULL / processes,
        "moments": learned * MOMENTS[optimizer] / processes,
        "activations": activations(size, trainable, batch, cameras) + learned * HALF / processes,
    }


def learned_and_frozen(size: PI0Config, trainable: Trained) -> tuple[int, int]:
    """How many weights learn, in float32, and how many do not, in bfloat16."""
    parts = pi0_weights(size, words(size.tokenizer, VOCABULARY))
    everything = sum(parts.values())
    if trainable is Trained.lora:
        return adapters(size), everything
    learned = parts["expert"]
    learned += parts["vlm"] if trainable is not Trained.expert else 0
    learned += parts["vision"] if trainable is Trained.all else 0
    return learned, everything - learned


def disk_bytes(acting: PI0Config, value: ValueConfig, policies: int, values: int) -> float:
    """Disk for the checkpoints of a run.

    Args:
        policies, values: how many trainings of each leave one. Beside these, the largest training under way has
            `keep_checkpoints` with the optimiser's state, and writes another one.
    """
    learned, frozen = learned_and_frozen(acting, acting.trainable)
    policy = learned * FULL + (frozen * HALF if acting.trainable is not Trained.lora else 0)  # adapters are saved alone
    critic = value_weights(value) * FULL
    under_way = max(
        (acting.sft.keep_checkpoints + 1) * (policy + learned * MOMENTS[acting.sft.optimizer]),
        (value.sft.keep_checkpoints + 1) * (critic + value_weights(value) * MOMENTS[value.sft.optimizer]),
    )
    return policies * policy + values * critic + under_way


def activations(size: PI0Config, trainable: Trained, batch: int, cameras: int) -> float:
    """About how many bytes the layers' inputs take, and the largest layer while it is computed again."""
    patches = (size.image_size // size.vision.patch_size) ** 2
    tokens = batch * (cameras * patches + size.tokenizer_max_length)
    pixels = batch * cameras * patches
    kept = 0.0
    if trainable is Trained.all:
        kept += size.vision.depth * pixels * size.vision.width * FULL
    if trainable is not Trained.expert:
        kept += size.vlm.depth * tokens * size.vlm.width * HALF
    kept += size.vlm.depth * tokens * 2 * size.vlm.num_kv_heads * size.vlm.head_dim * HALF
    kept += size.expert.depth * batch * (size.chunk_size + 1) * size.expert.width * HALF
    largest = tokens * (5 * size.vlm.mlp_dim + 8 * size.vlm.width) * HALF  # gate, up, their product and gradients
    return kept + largest


def sample_bytes(size: PI0Config | ValueConfig, shapes: Sequence[tuple[int, ...]], on_device: bool) -> float:
    """About how much memory of the machine a sample of a training batch takes, rather too little.

    Args:
        shapes: (H, W, 3) of each camera. on_device: the network has memory of its own, a GPU's.
    """
    read = sum(math.prod(shape) for shape in shapes) * (1 + FULL)  # as recorded, and in [0, 1]
    if on_device:
        return read
    cameras, patches = len(shapes), (size.image_size // size.vision.patch_size) ** 2
    seen = cameras * 3 * size.image_size**2 * FULL
    if isinstance(size, PI0Config):
        kept = activations(size, size.trainable, 1, cameras)
    else:
        kept = cameras * patches * (size.vision.depth * size.vision.width + size.text.depth * size.text.width) * FULL
    return (read + seen + kept) * (1 if size.gradient_checkpointing else UNCHECKED)


def machine_bytes() -> float:
    """Memory of this machine, or what its container may take of it."""
    found = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError):  # another system, or "max"
            found.append(int(Path(path).read_text(encoding="ascii")))
    return float(min(found))
