"""π0 as stock lerobot runs it with nothing of ours installed: its tokenizer says the indicator by itself."""

from __future__ import annotations

from pathlib import Path

from lerobot.policies.pi0.processor_pi0 import Pi0NewLineProcessor
from safetensors.torch import save_file

from recap.policies.adapter import Adapter
from recap.policies.checkpoint import read_config
from recap.policies.folder import WEIGHTS, has_adapters
from recap.policies.lerobot.export import export_processors, export_weights
from recap.policies.pi0 import lora
from recap.utils.errors import RecapError


def export(adapter: Adapter, source: Path, out: Path, indicator: bool | None, name: str) -> None:
    """Writes a checkpoint as a plain π0 of lerobot's.

    The weights are linked where the disk allows it; adapters are added to the weights in float32.

    Args:
        name: what the processors call the folder of the tokenizer.

    Raises:
        RecapError: lerobot has no words for these sizes, or the checkpoint cannot be read.
    """
    config = read_config(source, adapter)
    plain = config.plain()
    if plain is None:
        raise RecapError(
            f"{source}: lerobot's π0 has one size, and this is another. Fix: leave it as it is, and where recap is "
            f"installed run lerobot-eval --env.discover_packages_path=recap.policies --policy.path={source} …"
        )
    export_processors(adapter, source, config, out, indicator, name, Pi0NewLineProcessor())
    plain.device, plain.use_peft = config.device, False
    plain.freeze_vision_encoder = plain.train_expert_only = False
    plain.save_pretrained(out)
    if has_adapters(source):
        config.dtype = "float32"
        save_file(lora.merged(adapter.load(config, source, None)), out / WEIGHTS, metadata={"format": "pt"})
    else:
        export_weights(source / WEIGHTS, out / WEIGHTS)
