"""lerobot's own π0 and π0.5 with small numbers in the place of those in their code; also a program that runs a policy.

Given a job.json, in a process that cannot import recap, loads a checkpoint strictly, computes the
actions of a batch, and gives the checkpoint to lerobot-eval. Nothing here may import recap.
"""

from __future__ import annotations

import importlib.abc
import json
import resource
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any


def shrink(numbers: dict[str, Any], replace: Callable[[Any, str, Any], None], kind: str = "pi0") -> None:
    """numbers: {vision, vlm, expert: sizes, vocab_size}; replace: how an attribute of a module is set."""
    modeling = import_module(f"lerobot.policies.{kind}.modeling_{kind}")
    variants = {name: SimpleNamespace(**numbers[key]) for name, key in (("gemma_2b", "vlm"), ("gemma_300m", "expert"))}
    vision = numbers["vision"]

    def small(make: Callable[..., Any]) -> Callable[..., Any]:
        def build(config: Any) -> Any:
            getattr(config, "text_config", config).vocab_size = numbers["vocab_size"]
            if hasattr(config, "vision_config"):
                tower = config.vision_config
                tower.hidden_size, tower.intermediate_size = vision["width"], vision["mlp_dim"]
                tower.num_hidden_layers, tower.num_attention_heads = vision["depth"], vision["num_heads"]
                tower.patch_size, tower.projection_dim = vision["patch_size"], numbers["vlm"]["width"]
            return make(config=config)

        return build

    replace(modeling, "get_gemma_config", variants.__getitem__)
    for name in ("PaliGemmaForConditionalGenerationWithPiGemma", "PiGemmaForCausalLM"):
        replace(modeling, name, small(getattr(modeling, name)))


class NoRecap(importlib.abc.MetaPathFinder):
    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name.split(".", maxsplit=1)[0] == "recap":
            raise ModuleNotFoundError(f"{name}: not in this process")


def run(job: dict[str, Any]) -> None:
    """checkpoint, batch (a .pt file), actions (.pt to write), numbers or null, evaluate (arguments of lerobot-eval)."""
    sys.meta_path.insert(0, NoRecap())
    import torch
    from lerobot.configs import PreTrainedConfig
    from lerobot.policies.factory import get_policy_class, make_pre_post_processors
    from safetensors import safe_open

    path = job["checkpoint"]
    config = PreTrainedConfig.from_pretrained(path)
    if job["numbers"]:
        shrink(job["numbers"], setattr, config.type)
    torch.set_default_dtype(
        getattr(torch, getattr(config, "dtype", "float32"))
    )  # at full size there is no memory for float32
    policy = get_policy_class(config.type)(config)
    torch.set_default_dtype(torch.float32)
    for name, part in policy.model.named_children():
        if not name.endswith("_with_expert"):
            part.float()  # as lerobot has it in either type
    own = policy.state_dict()
    with safe_open(Path(path) / "model.safetensors", "pt") as file:
        assert own.keys() == set(file.keys())
        for name, weight in own.items():
            value = file.get_tensor(name)
            assert value.shape == weight.shape, name
            weight.copy_(value)
    before, after = make_pre_post_processors(
        config, path, preprocessor_overrides={"device_processor": {"device": config.device}}
    )
    batch = torch.load(job["batch"], weights_only=True)
    inputs = before({key: value for key, value in batch.items() if key != "noise"})
    began = time.perf_counter()
    actions = after(policy.predict_action_chunk(inputs, noise=batch["noise"]))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"{time.perf_counter() - began:.0f} s for a chunk of actions, {memory:.1f} GB at most")
    print("stock lerobot:", config.type, tuple(actions.shape))
    torch.save({"actions": actions, "tokens": inputs["observation.language.tokens"]}, job["actions"])
    if job["evaluate"]:
        from lerobot.scripts.lerobot_eval import main

        sys.argv = ["lerobot-eval", f"--policy.path={path}", *job["evaluate"]]
        main()
    assert not [name for name in sys.modules if name.split(".", maxsplit=1)[0] == "recap"]


if __name__ == "__main__":
    run(json.loads(Path(sys.argv[1]).read_text()))
