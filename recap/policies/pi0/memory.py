"""How many weights π0 has, and the GPU memory of its training.

The activations are estimated, with gradient checkpointing, as what is kept at every layer plus the recomputation of the
largest one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from recap.policies.memory import FULL, HALF, gemma, gemma_kept, siglip, siglip_kept, weight_bytes, words
from recap.policies.sizes import GemmaSize, Trained
from recap.training.config import Optimizer

if TYPE_CHECKING:
    from recap.policies.pi0.config import PI0Config

VOCABULARY = 257_152  # PaliGemma's


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
        **weight_bytes(learned, frozen, optimizer, processes),
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


def all_activations(size: PI0Config, trainable: Trained, batch: float, cameras: int) -> float:
    """About how many bytes the compiled layers keep where nothing is computed again.

    At full size, batch 32 and 16 tokens of text it says 69 GB, and a GPU took 66.
    """
    patches = cameras * (size.image_size // size.vision.patch_size) ** 2
    tokens, suffix = patches + size.tokenizer_max_length, size.flow_samples * (size.chunk_size + 1)
    kept = size.expert.depth * gemma_kept(size.expert, batch * suffix, tokens + suffix)
    if trainable is not Trained.expert:
        kept += (size.vlm.depth - 1) * gemma_kept(size.vlm, batch * tokens, tokens)
    if trainable is Trained.all:
        kept += size.vision.depth * siglip_kept(size.vision, batch * patches)
    return kept


def activations(size: PI0Config, trainable: Trained, batch: float, cameras: int) -> float:
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
