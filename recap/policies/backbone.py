"""What π0 and the value function share: sizes as Hugging Face configurations, image preparation, initialisation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from lerobot.policies.common.vla_utils import resize_with_pad_torch
from torch import Tensor, nn
from transformers import PreTrainedModel, SiglipVisionConfig
from transformers import logging as transformers_logging

from recap.policies.sizes import SiglipSize

STEM_STRIDE = 4
transformers_logging.set_verbosity_error()  # its warnings are about how it builds its own configurations


def siglip_config(size: SiglipSize, image_size: int) -> SiglipVisionConfig:
    """SigLIP of a size. Behind a stem it sees the stem's map instead of pixels, with the same number of patches."""
    stride = STEM_STRIDE if size.stem else 1
    config = SiglipVisionConfig(
        hidden_size=size.width,
        intermediate_size=size.mlp_dim,
        num_hidden_layers=size.depth,
        num_attention_heads=size.num_heads,
        num_channels=size.stem or 3,
        patch_size=size.patch_size // stride,
        image_size=image_size // stride,
    )
    config.vision_use_head = False
    return config


def make_stem(size: SiglipSize) -> nn.Module | None:
    """Overlapping convolutions before the patches, [B, 3, S, S] -> [B, stem, S/4, S/4]; None for plain SigLIP.

    Small models from scratch need them: with one linear map per patch they place a pot to 15 mm, with a stem to 7 mm.
    """
    if not size.stem:
        return None
    return nn.Sequential(
        nn.Conv2d(3, size.stem, 5, stride=2, padding=2),
        nn.GELU(),
        nn.Conv2d(size.stem, size.stem, 3, stride=2, padding=1),
        nn.GELU(),
    )


def siglip_layer(self: Any, hidden: Tensor, attention_mask: None = None, **_: Any) -> Tensor:
    """A layer of SigLIP as Hugging Face computes it; hidden [B, patches, width].

    Three biases are added with what follows their products. As part of that of the MLP, cuBLAS first writes the bias
    out for every row: a twelfth of a value function's time.
    """
    attention, mlp = self.self_attn, self.mlp
    normed = self.layer_norm1(hidden)
    q, k, v = (
        heads(part, attention.head_dim)
        for part in products(normed, attention.q_proj, attention.k_proj, attention.v_proj)
    )
    attended = F.scaled_dot_product_attention(q, k, v, scale=attention.scale).transpose(1, 2).flatten(2)
    hidden = hidden + (F.linear(attended, attention.out_proj.weight) + attention.out_proj.bias)
    inner = F.linear(self.layer_norm2(hidden), mlp.fc1.weight)
    inner = mlp.activation_fn(inner + mlp.fc1.bias.type_as(inner))
    return hidden + (F.linear(inner, mlp.fc2.weight) + mlp.fc2.bias)


def heads(x: Tensor, head_dim: int) -> Tensor:
    """[B, L, heads · head_dim] -> [B, heads, L, head_dim]."""
    return x.unflatten(-1, (-1, head_dim)).transpose(1, 2)


def products(x: Tensor, *layers: Any) -> Sequence[Tensor]:
    """What each of some linear layers makes of x; in one matrix product after `join`."""
    joined = getattr(layers[0], "joined", None)
    if joined is None:
        return [layer(x) for layer in layers]
    return F.linear(x, *joined).split([layer.out_features for layer in layers], dim=-1)


def join(*layers: nn.Linear) -> None:
    """Lays weights that no longer learn side by side, for `products`; the layers keep them as parts of the whole."""
    weight = torch.cat([layer.weight for layer in layers])
    bias = None if layers[0].bias is None else torch.cat([layer.bias for layer in layers])
    for layer, part in zip(layers, weight.split([layer.out_features for layer in layers]), strict=True):
        layer.weight.data = part
    layers[0].joined = (weight, bias)  # type: ignore[assignment]


def stack_images(batch: dict[str, Tensor], keys: list[str], image_size: int) -> Tensor:
    """Cameras of a batch as SigLIP takes them: each float [B, 3, H, W] in [0, 1] -> [B, cameras, 3, S, S] in [-1, 1].

    S is `image_size`. Cameras that the batch does not have are left out: no compute for them.

    Raises:
        KeyError: no camera of `keys` is in the batch.
    """
    present = [key for key in keys if key in batch]
    if not present:
        raise KeyError(f"none of the cameras {keys} is in the batch, which has {sorted(batch)}")
    images = []
    for key in present:
        image = batch[key].to(torch.float32)
        if image.shape[-2:] != (image_size, image_size):
            image = resize_with_pad_torch(image, image_size, image_size)
        images.append(image * 2.0 - 1.0)
    return torch.stack(images, dim=1)


def trim(tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Drops the columns [B, L] that are padding for the whole batch, on the right.

    Only on a processor: a GPU would have to finish what it does before the length is known, and `PromptTokenizer` has
    left little.
    """
    if tokens.device.type != "cpu":
        return tokens, mask
    length = int(mask.sum(dim=1).max())
    return tokens[:, :length], mask[:, :length]


def sine_positions(size: int, width: int) -> Tensor:
    """2-D sines and cosines [size², width] of the patch grid: neighbours look alike, which a table has yet to learn."""
    grid = torch.linspace(-1, 1, size)
    y, x = torch.meshgrid(grid, grid, indexing="ij")
    waves = torch.pi / 2 * torch.linspace(0.5, size / 2, width // 4)
    parts = [wave(f * axis) for f in waves for axis in (x, y) for wave in (torch.sin, torch.cos)]
    return F.pad(torch.stack(parts, dim=-1).reshape(size * size, -1), (0, width % 4))


def recompute(part: PreTrainedModel) -> None:
    """Gradient checkpointing: activations are computed twice instead of kept.

    Hugging Face also lets gradients into the embeddings, for adapters with reentrant checkpointing. That made frozen
    parts keep activations that nobody needs: 60.7 GB instead of 48.6 with π0's vision tower frozen.
    """
    part.gradient_checkpointing_enable({"use_reentrant": False})
    part.disable_input_require_grads()


def autocast(config: Any) -> torch.autocast:
    """Matrix products in the precision that a policy was trained in (`config.dtype`).

    Casts of weights are not kept until its end: a CUDA graph would go on reading what is long given back.
    """
    half = config.dtype == "bfloat16"
    return torch.autocast(torch.device(config.device).type, torch.bfloat16, enabled=half, cache_enabled=False)


def finish(module: nn.Module, device: str) -> None:
    """Random weights, on their device; nothing for a module without memory, whose weights are yet to be loaded."""
    if not next(module.parameters()).is_meta:
        init_from_scratch(module)
        module.to(device)


@torch.no_grad()
def init_from_scratch(module: nn.Module) -> None:
    """Unit-variance initialisation for small models without pre-trained weights.

    Hugging Face's 0.02 is made for widths in the thousands. With 60 pictures to learn from, sine positions and shifted
    images (`random_shift`) place a pot to 8 mm where a learned table and unshifted images place it to 67 mm.
    """
    for name, child in module.named_modules():
        if isinstance(child, nn.Linear | nn.Conv2d):
            nn.init.normal_(child.weight, std=child.weight[0].numel() ** -0.5)
            if child.bias is not None:
                nn.init.zeros_(child.bias)
        elif isinstance(child, nn.Embedding) and "position" in name:
            child.weight.copy_(sine_positions(math.isqrt(child.num_embeddings), child.embedding_dim))
        elif isinstance(child, nn.Embedding):
            scaled = hasattr(child, "embed_scale")  # Gemma multiplies its embeddings by √width
            nn.init.normal_(child.weight, std=child.embedding_dim**-0.5 if scaled else 1.0)
