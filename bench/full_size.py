"""Full-size π0 and value function on one GPU: memory and seconds of a training step and of a chunk of actions.

python bench/full_size.py FOLDER          9 GB in FOLDER, a GPU of 80 GB, minutes; the tables of docs/full_size.md
python bench/full_size.py FOLDER training lerobot value compiled    only these parts of it
python bench/full_size.py FOLDER small    the same code with small networks, on a processor

Random weights, two cameras, batches that start as arrays on the processor as a data set gives them. lerobot's own class
comes after ours with the same weights and inputs, in bfloat16 with gradient checkpointing as its documentation has it;
its weights are then bfloat16 too, while ours that learn are float32.
"""

from __future__ import annotations

import gc
import importlib.util
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from hydra import compose, initialize_config_dir
from lerobot.policies.pi0 import PI0Config as TheirConfig
from lerobot.policies.pi0 import modeling_pi0
from safetensors.torch import load_file

from recap.config import TrainJob, plain, typed
from recap.data.tensors import tensors
from recap.policies.adapter import features
from recap.policies.checkpoint import Checkpoint
from recap.policies.pi0.adapter import PI0Adapter
from recap.policies.pi0.config import PI0Config
from recap.policies.prompt import BUILTIN
from recap.policies.sizes import Precision, Trained
from recap.policies.value.adapter import ValueAdapter
from recap.policies.value.config import ValueConfig
from recap.policies.value.modeling_value import RecapValuePolicy
from recap.training.config import Optimizer, Sharding
from recap.training.distributed import make_accelerator, prepare
from recap.training.optim import make_optimizer

ROOT = Path(__file__).resolve().parents[1]
CAMERAS = ("observation.images.image", "observation.images.image2")
WARM, STEPS = 3, 8
PRECISION = {"cuda": Precision.bfloat16, "cpu": Precision.float32}  # a processor only emulates bfloat16
TRAININGS = [
    (Trained.all, Optimizer.adamw, 32),
    (Trained.all, Optimizer.adamw, 16),
    (Trained.all, Optimizer.adamw8bit, 32),
    (Trained.frozen_vision, Optimizer.adamw, 32),
    (Trained.expert, Optimizer.adamw, 32),
    (Trained.expert, Optimizer.adamw, 8),
    (Trained.lora, Optimizer.adamw, 32),
    (Trained.lora, Optimizer.adamw, 8),
]


def script(name: str) -> Any:
    """A program of this repository as a module."""
    path = ROOT / name
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def raw(batch: int, chunk: int) -> dict[str, Any]:
    """What a data set gives."""
    rng = np.random.default_rng(0)
    frames: dict[str, Any] = {key: rng.integers(0, 256, (batch, 256, 256, 3), dtype=np.uint8) for key in CAMERAS}
    frames |= {
        "observation.state": np.zeros((batch, 8), np.float32),
        "task": ["put both moka pots on the stove"] * batch,
    }
    frames |= {"action": rng.random((batch, chunk, 7), dtype=np.float32), "indicator": [True] * batch}
    return frames | {"action_is_pad": np.zeros((batch, chunk), bool), "return_bin": np.zeros(batch, np.int64)}


def measured(work: Callable[[], object], device: str) -> str:
    """Median seconds after a warm-up, and the most memory that tensors took; what failed, if it did."""
    synchronise = torch.cuda.synchronize if device == "cuda" else lambda: None
    seconds = []
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    try:
        for turn in range(WARM + STEPS):
            synchronise()
            began = time.perf_counter()
            work()
            synchronise()
            if turn >= WARM:
                seconds.append(time.perf_counter() - began)
    except torch.OutOfMemoryError:  # the other rows are still wanted
        return "does not fit |"
    peak = torch.cuda.max_memory_allocated() / 1e9 if device == "cuda" else 0.0
    return f"{statistics.median(seconds):.3f} s | {peak:.1f} GB"


def say(*cells: object) -> None:
    print("|", " | ".join(str(cell) for cell in cells), "|", flush=True)


def free() -> None:
    gc.collect()
    torch.cuda.empty_cache()


def training_step(policy: Any, batch: Callable[[], Any], device: str, optimizer: Optimizer) -> Callable[[], None]:
    """One step as `recap.training.loop.train` takes it."""
    config = replace(full().policy.sft, optimizer=optimizer)
    policy.run_with(gradient_checkpointing=True)
    policy.train()
    accelerator = make_accelerator(Sharding.none, device, config)
    model, optimiser = prepare(accelerator, Sharding.none, policy, lambda policy: make_optimizer(policy, config))
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def step() -> None:
        loss, _ = model(batch())
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(learned, config.grad_clip)
        optimiser.step()
        optimiser.zero_grad()

    return step


def lerobots_step(policy: Any, batch: Any, device: str) -> Callable[[], None]:
    """One step as lerobot-train takes it."""
    policy.train()
    optimiser = policy.config.get_optimizer_preset().build(policy.get_optim_params())

    def step() -> None:
        with half(device):
            loss, _ = policy.forward(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), policy.config.optimizer_grad_clip_norm)
        optimiser.step()
        optimiser.zero_grad()

    return step


def half(device: str) -> torch.autocast:
    return torch.autocast(device, torch.bfloat16, enabled=device == "cuda")


# ---------------------------------------------------------------------------------------------------- parts
def training(folder: Path, device: str, size: PI0Config) -> None:
    """Of every choice, from arrays on the processor on."""
    print("\n| policy.trainable | optimizer | batch | a step | memory |\n|---|---|---|---|---|")
    for trainable, optimizer, batch in TRAININGS:
        one_training(folder, device, size, trainable, optimizer, batch)
        free()


def one_training(
    folder: Path, device: str, size: PI0Config, trainable: Trained, optimizer: Optimizer, batch: int
) -> None:
    checkpoint = Checkpoint.load(folder, PI0Adapter(), device, PRECISION[device], replace(size, trainable=trainable))
    data = raw(batch, size.chunk_size)
    step = training_step(checkpoint.policy, lambda: checkpoint.prepare(tensors(data)), device, optimizer)
    say(trainable.name, optimizer.name, batch, measured(step, device))


def beside_lerobot(folder: Path, device: str, size: PI0Config, numbers: dict[str, Any] | None) -> None:
    """On the same batches, which are on the device already."""
    print("\n| | | a time | memory |\n|---|---|---|---|")
    noise = torch.randn(1, size.chunk_size, size.max_action_dim, generator=torch.Generator().manual_seed(1)).to(device)
    checkpoint = Checkpoint.load(folder, PI0Adapter(), device, PRECISION[device])
    checkpoint.set_prompt(indicator=True)
    batches = {batch: checkpoint.prepare(tensors(raw(batch, size.chunk_size))) for batch in (1, 16, 32)}
    mine = acting("ours", checkpoint.policy, batches, noise, device)
    checkpoint.set_prompt(indicator=True, beta=1.5)
    guided = checkpoint.prepare(tensors(raw(1, size.chunk_size)))
    spent = measured(lambda: checkpoint.policy.predict_action_chunk(guided), device)
    say("ours", "a chunk of actions, batch 1, β = 1.5", spent)
    del checkpoint
    free()
    policy = theirs(folder, device, size, numbers)
    with half(device):
        other = acting("lerobot", policy, batches, noise, device)
    difference = (mine - other).abs().float()
    say("difference of the actions", f"{difference.max():.4f} at most", f"{difference.mean():.5f} on average", "")
    say("lerobot", "a training step, batch 32", measured(lerobots_step(policy, batches[32], device), device))
    del policy
    free()
    checkpoint = Checkpoint.load(folder, PI0Adapter(), device, PRECISION[device], replace(size, trainable=Trained.all))
    step = training_step(checkpoint.policy, lambda: batches[32], device, Optimizer.adamw)
    say("ours", "a training step, batch 32", measured(step, device))


@torch.no_grad()
def acting(who: str, policy: Any, batches: dict[int, Any], noise: torch.Tensor, device: str) -> torch.Tensor:
    """Times it; the actions that it has from `noise`."""
    policy.eval()
    for batch in (1, 16):
        spent = measured(lambda batch=batch: policy.predict_action_chunk(batches[batch]), device)  # type: ignore[misc]
        say(who, f"a chunk of actions, batch {batch}", spent)
    given = {"noise": noise}
    if who == "ours":
        return policy.predict_action_chunk({**batches[1], **given})
    return policy.predict_action_chunk(batches[1], **given)


def theirs(folder: Path, device: str, size: PI0Config, numbers: dict[str, Any] | None) -> Any:
    """lerobot's class with the weights of a checkpoint of ours."""
    if numbers:
        script("bench/stock_lerobot.py").shrink(numbers, setattr)
    config = TheirConfig(
        **features(dict.fromkeys(CAMERAS, (256, 256)), 8, 7),
        chunk_size=size.chunk_size,
        n_action_steps=size.n_action_steps,
        device=device,
        dtype="bfloat16" if device == "cuda" else "float32",
        gradient_checkpointing=True,
        push_to_hub=False,
    )
    with torch.device(device):
        policy = modeling_pi0.PI0Policy(config)
    policy.load_state_dict(load_file(folder / "model.safetensors"), strict=True)
    return policy.to(device)


def compiled(folder: Path, device: str, size: PI0Config) -> None:
    """What `policy.compile=true` gives."""
    print("\n| | | a time | memory |\n|---|---|---|---|")
    checkpoint = Checkpoint.load(folder, PI0Adapter(), device, PRECISION[device])
    checkpoint.policy.run_with(gradient_checkpointing=False, compiled=True)
    batches = {batch: checkpoint.prepare(tensors(raw(batch, size.chunk_size))) for batch in (1, 16)}
    noise = torch.zeros(1, size.chunk_size, size.max_action_dim, device=device)
    acting("ours", checkpoint.policy, batches, noise, device)


def value(device: str, size: ValueConfig) -> None:
    print("\n| value function | batch | a time | memory |\n|---|---|---|---|")
    for batch in (16, 32):
        one_value(device, size, batch)
        free()


def one_value(device: str, size: ValueConfig, batch: int) -> None:
    torch.manual_seed(0)
    spec = features(dict.fromkeys(CAMERAS, (256, 256)), 8, 7)
    stats = {"observation.state": {"mean": np.zeros(8), "std": np.ones(8)}}
    adapter = ValueAdapter()
    checkpoint = Checkpoint.new(adapter, adapter.build(size, spec, device, PRECISION[device]), stats)
    data = {key: part for key, part in raw(batch, 10).items() if key not in ("action", "action_is_pad", "indicator")}

    def prepared() -> Any:
        return checkpoint.prepare(tensors(data))

    say("training step", batch, measured(training_step(checkpoint.policy, prepared, device, Optimizer.adamw), device))
    policy = checkpoint.policy.eval()
    assert isinstance(policy, RecapValuePolicy)
    with torch.no_grad():
        say("values", batch, measured(lambda: policy.value(prepared()), device))


def main(folder: Path, parts: list[str]) -> None:
    conf = {"policy": "policy/pi0/full.yaml", "value": "size/full.yaml"}
    numbers = {role: yaml.safe_load((ROOT / "conf" / file).read_text()) for role, file in conf.items()}
    numbers["value"] = numbers["value"]["value"]
    if small := "small" in parts:
        shrink(numbers)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    print(torch.cuda.get_device_name() if device == "cuda" else "a processor", "torch", torch.__version__)
    pi0, of_value = sizes(numbers)
    weights = folder / "ours"
    if not weights.exists():
        script("bench/checkpoint_full_size.py").make(weights, numbers["policy"], CAMERAS, device)
    began = time.perf_counter()
    vocabulary = Checkpoint.load(weights, PI0Adapter(), device).policy.config.vocab_size
    print(f"loaded strictly in {time.perf_counter() - began:.1f} s")
    stock = {key: numbers["policy"][key] for key in ("vision", "vlm", "expert")} | {"vocab_size": vocabulary}
    works: dict[str, Callable[[], None]] = {
        "training": lambda: training(weights, device, pi0),
        "lerobot": lambda: beside_lerobot(weights, device, pi0, stock if small else None),
        "value": lambda: value(device, of_value),
        "compiled": lambda: compiled(weights, device, pi0),
    }
    for name, work in works.items():
        if name in parts or not set(parts) & set(works):
            free()
            work()


@cache
def full() -> TrainJob:
    """The configuration of full size."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return typed(compose("train"), TrainJob)


def sizes(numbers: dict[str, Any]) -> tuple[PI0Config, ValueConfig]:
    """Those of conf/size, with random weights and the tokenizer that needs no licence."""
    own = {"tokenizer": BUILTIN, "pretrained": None}
    value = plain(full().value) | numbers["value"] | own | {"pretrained_vision": None, "pretrained_text": None}
    return PI0Config(**plain(full().policy) | numbers["policy"] | own), ValueConfig(**value)


def shrink(numbers: dict[str, Any]) -> None:
    global WARM, STEPS
    bench = script("bench/pi0.py")
    numbers["policy"] |= {"vision": bench.VISION, "vlm": bench.VLM, "expert": bench.EXPERT}
    numbers["value"] |= {"vision": bench.VISION, "text": bench.VLM}
    WARM, STEPS, TRAININGS[:] = 0, 1, [(trainable, optimizer, 2) for trainable, optimizer, _ in TRAININGS]


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
