"""What a network is shown first, as files: the cameras it sees after all resizing, and the text it reads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from lerobot.utils.constants import OBS_LANGUAGE_ATTENTION_MASK, OBS_LANGUAGE_TOKENS
from PIL import Image

from recap.policies.adapter import cameras_of
from recap.policies.backbone import stack_images
from recap.policies.checkpoint import Checkpoint
from recap.policies.processors import indicator_step
from recap.policies.prompt import INDICATOR_NUMBER

SAMPLES = 8


def save_first_batch(checkpoint: Checkpoint, batch: dict[str, Any], folder: Path) -> None:
    """Writes `<sample>.png`, the cameras side by side, and prompts.jsonl, the text or indicator of each.

    The folder appears whole. batch: as `checkpoint.prepare` gives it, so padded, normalised and tokenised. The first 8
    samples are kept.
    """
    config = checkpoint.policy.config
    keys = cameras_of(config)
    few = {key: value[:SAMPLES] for key, value in batch.items() if key in keys}
    size = getattr(config, "image_size", None) or max(image.shape[-1] for image in few.values())
    shown = (stack_images(few, keys, size) + 1) / 2 * 255  # [samples, cameras, 3, S, S]
    pixels = shown.round().clamp(0, 255).byte().permute(0, 3, 1, 4, 2).flatten(2, 3).cpu().numpy()
    temporary = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    for number, image in enumerate(pixels):
        Image.fromarray(np.ascontiguousarray(image)).save(temporary / f"{number}.png")
    lines = [json.dumps(text, ensure_ascii=False) + "\n" for text in _told(checkpoint, batch)]
    (temporary / "prompts.jsonl").write_text("".join(lines), encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)


def _told(checkpoint: Checkpoint, batch: dict[str, Any]) -> list[str]:
    """What the first samples read."""
    if INDICATOR_NUMBER in batch:
        return [f"indicator {number:+g}" for number in batch[INDICATOR_NUMBER][:SAMPLES].tolist()]
    tokenizer = indicator_step(checkpoint.preprocess).input_tokenizer
    tokens, mask = batch[OBS_LANGUAGE_TOKENS][:SAMPLES], batch[OBS_LANGUAGE_ATTENTION_MASK][:SAMPLES].bool()
    return [tokenizer.decode(row[kept]) for row, kept in zip(tokens.cpu(), mask.cpu(), strict=True)]
