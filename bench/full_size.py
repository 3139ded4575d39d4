"""Full-size π0 and value function on one GPU, ours and lerobot's: one call of a few minutes, random weights, no disk.

python bench/full_size.py FOLDER                         a GPU of 80 GB; FOLDER/full_size.json and full_size.md
python bench/full_size.py FOLDER acting training value   only these parts, in this order
python bench/full_size.py FOLDER small                   the same code with small networks, on a processor
python bench/full_size.py FOLDER seconds=250             begins nothing new after so many

Each row names its limit: the useful arithmetic, each product once and nothing computed twice, at the rate that this
card multiplies matrices of 8192 x 8192. A part that fails says so, and the others still run.
"""

from __future__ import annotations

import gc
import statistics
import sys
import traceback
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import flop as work
import measure
import numpy as np
import stock_lerobot
import torch
import yaml
from hydra import compose, initialize_config_dir
from lerobot.policies.pi0 import PI0Config as TheirConfig
from lerobot.policies.pi0 import modeling_pi0
from measure import DEVICE, GB, Table, profiled, timed

from recap.config import TrainJob, plain, typed
from recap.data.tensors import tensors
from recap.policies.adapter import Adapter, features
from recap.policies.checkpoint import Checkpoint
from recap.policies.pi0.adapter import PI0Adapter
from recap.policies.pi0.config import PI0Config
from recap.policies.prompt import BUILTIN
from recap.policies.sizes import Precision, Trained
from recap.policies.value.adapter import ValueAdapter
from recap.policies.value.config import ValueConfig
from recap.policies.weights import stored
from recap.training.config import Optimizer, Sharding
from recap.training.distributed import make_accelerator, prepare
from recap.training.feed import ahead
from recap.training.optim import make_optimizer

ROOT = Path(__file__).resolve().parents[1]
CAMERAS = ("observation.images.image", "observation.images.image2")
PRECISION = Precision.bfloat16 if DEVICE == "cuda" else Precision.float32  # a processor only emulates bfloat16
STATS = {key: {"mean": np.zeros(n), "std": np.ones(n)} for key, n in (("observation.state", 8), ("action", 7))}


def free() -> None:
    gc.collect()
    torch.compiler.reset()
    if DEVICE == "cuda":
        torch.cuda.empty_cache()


# ---------------------------------------------------------------------------------------------------- networks, data
def raw(batch: int, chunk: int) -> dict[str, Any]:
    """What a data set gives."""
    rng = np.random.default_rng(0)
    frames: dict[str, Any] = {key: rng.integers(0, 256, (batch, 256, 256, 3), dtype=np.uint8) for key in CAMERAS}
    frames |= {"observation.state": np.zeros((batch, 8), np.float32)}
    frames |= {"task": ["put both moka pots on the stove"] * batch}
    frames |= {"action": rng.random((batch, chunk, 7), dtype=np.float32), "indicator": [True] * batch}
    return frames | {"action_is_pad": np.zeros((batch, chunk), bool), "return_bin": np.zeros(batch, np.int64)}


def fresh(adapter: Adapter, size: Any, *, learns: bool) -> Checkpoint:
    """Random weights, made on the device, in the types that `load_weights` gives them."""
    torch.manual_seed(0)
    spec = adapter.features(features(dict.fromkeys(CAMERAS, (256, 256)), 8, 7))
    config = adapter.on(adapter.config(size, spec), DEVICE, PRECISION)
    if DEVICE == "cuda":  # as many as the published ones, whose tokenizers are gated
        config.vocab_size = type(config)().vocab_size
    config.freeze_vision_encoder = getattr(size, "trainable", None) is Trained.frozen_vision
    with torch.device(DEVICE):
        policy: Any = adapter.model(config)
    if not learns:
        policy.requires_grad_(requires_grad=False)
    for name, parameter in policy.named_parameters():
        parameter.data = parameter.data.to(stored(policy, name, parameter, learns=parameter.requires_grad))
    return Checkpoint.new(adapter, policy, STATS)


def training_step(checkpoint: Checkpoint, size: int, chunk: int, optimizer: Optimizer) -> Callable[[], None]:
    """One step as `recap.training.loop.train` takes it, from arrays on the processor on."""
    config = replace(full().policy.sft, optimizer=optimizer)
    policy = checkpoint.policy.train()
    accelerator = make_accelerator(Sharding.none, DEVICE, config)
    model, optimiser = prepare(accelerator, Sharding.none, policy, lambda policy: make_optimizer(policy, config))
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    data = raw(size, chunk)
    feed = ahead(lambda _: checkpoint.prepare(tensors(data, DEVICE)), range(1000), DEVICE)

    def step() -> None:
        loss, _ = model(next(feed))
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(learned, config.grad_clip)
        optimiser.step()
        optimiser.zero_grad()

    return step


def half() -> torch.autocast:
    return torch.autocast(DEVICE, torch.bfloat16, enabled=DEVICE == "cuda")


def text_length(checkpoint: Checkpoint) -> int:
    """Tokens of the prompt."""
    batch = checkpoint.prepare(tensors(raw(1, 1)))
    return int(batch["observation.language.attention_mask"].sum())


# ---------------------------------------------------------------------------------------------------- parts
def machine(table: Table) -> None:
    table.facts |= {"card": torch.cuda.get_device_name() if DEVICE == "cuda" else "a processor"}
    table.facts |= {"torch": torch.__version__}
    n, half_type = (8192, torch.bfloat16) if DEVICE == "cuda" else (512, torch.float32)
    a, b = (torch.randn(n, n, device=DEVICE, dtype=half_type) for _ in range(2))
    for name, products in (("FLOP/s", 10), ("FLOP/s sustained", 400)):  # the card slows down when it gets hot
        seconds, _ = timed(lambda: a @ b, 2, products if DEVICE == "cuda" else 2)
        table.facts[name] = 2 * n**3 / min(seconds)
    big = torch.empty(n * n * 16, device=DEVICE, dtype=torch.bfloat16)
    seconds, _ = timed(big.clone, 5)
    table.facts["bytes/s"] = 2 * big.nbytes / statistics.median(seconds)
    if DEVICE == "cuda":
        table.facts["GB"] = torch.cuda.mem_get_info()[1] / GB
    table.say(str(table.facts))
    table.write()


def acting(table: Table, size: PI0Config) -> None:
    """Chunks of actions, from a prepared batch on."""
    checkpoint = fresh(PI0Adapter(), size, learns=False)
    text = text_length(checkpoint)
    plain = chunks(checkpoint, size)
    given = checkpoint.prepare(tensors(raw(1, size.chunk_size), DEVICE))
    flop = work.chunk(size, len(CAMERAS), text, 1)
    spent = timed(lambda: checkpoint.policy.predict_action_chunk(given), 3)
    table.add("chunk, batch 1, β = 1, eager", *spent, flop, 1)
    checkpoint.policy.run_with(compiled=True)
    apart = (chunks(checkpoint, size) - plain).abs().float()
    table.facts["actions, eager and as graphs"] = f"{apart.max():.4f} at most, {apart.mean():.5f} on average apart"
    table.say(f"{table.facts['actions, eager and as graphs']}, standard deviation {plain.std():.2f}")
    for beta, batch in ((1.0, 1), (1.5, 1), (1.0, 32)):
        if table.over:
            return
        checkpoint.set_prompt(indicator=True, beta=beta)
        given = checkpoint.prepare(tensors(raw(batch, size.chunk_size), DEVICE))
        flop = work.chunk(size, len(CAMERAS), text, 1 if beta == 1.0 else 2)
        act = lambda given=given: checkpoint.policy.predict_action_chunk(given)  # noqa: E731
        table.add(f"chunk, batch {batch}, β = {beta:g}", *timed(act, 20), batch * flop, batch)
        if batch == 1:
            profiled(act, table.folder / f"chunk_{beta:g}.txt")


def chunks(checkpoint: Checkpoint, size: PI0Config) -> torch.Tensor:
    """Actions from two different noises, one after the other, with and without guidance."""
    found = []
    for beta in (1.0, 1.5, 1.0, 1.5):
        checkpoint.set_prompt(indicator=True, beta=beta)
        noise = torch.randn(
            1, size.chunk_size, size.max_action_dim, generator=torch.Generator().manual_seed(len(found))
        )
        batch = raw(1, size.chunk_size) | {"noise": noise}
        found.append(checkpoint.policy.predict_action_chunk(checkpoint.prepare(tensors(batch, DEVICE))))
    checkpoint.set_prompt(indicator=True)
    return torch.stack(found)


def training(table: Table, size: PI0Config) -> None:
    """Steps of training at batch 32, by how much of the activations is kept."""
    for kept in (0.5, 1.0):
        if table.over:
            return
        one_training(table, size, kept)
        free()


def one_training(table: Table, size: PI0Config, kept: float) -> None:
    batch = 32 if DEVICE == "cuda" else 2
    checkpoint = fresh(PI0Adapter(), size, learns=True)
    checkpoint.policy.run_with(compiled=True, memory=kept)
    text = text_length(checkpoint)
    step = training_step(checkpoint, batch, size.chunk_size, Optimizer.adamw)
    flop = batch * work.training(size, len(CAMERAS), text)
    try:
        table.add(f"training, batch {batch}, {kept:g} of the activations kept", *timed(step, 3, 5), flop, batch)
        profiled(step, table.folder / f"training_{kept:g}.txt")
    except torch.OutOfMemoryError:
        table.say(f"training with {kept:g} of the activations: does not fit")


def value(table: Table, size: ValueConfig) -> None:
    """Values of batches that start as arrays on the processor, the next one on its way as this one is computed."""
    batch = 256 if DEVICE == "cuda" else 2
    checkpoint = fresh(ValueAdapter(), size, learns=False)
    checkpoint.policy.eval().run_with(compiled=True)
    flop = work.value(size, len(CAMERAS), text_length(checkpoint))
    data = {key: part for key, part in raw(batch, 10).items() if key not in ("action", "action_is_pad", "indicator")}
    given = checkpoint.prepare(tensors(data, DEVICE))
    with torch.no_grad():
        forward = lambda: checkpoint.policy.value(given)  # noqa: E731
        table.add(f"values, batch {batch}, prepared", *timed(forward, 3, 4), batch * flop, batch)
        profiled(forward, table.folder / "value.txt")
        feed = ahead(lambda _: checkpoint.prepare(tensors(data, DEVICE)), range(1000), DEVICE)
        table.add(
            f"values, batch {batch}, from arrays",
            *timed(lambda: checkpoint.policy.value(next(feed)), 3, 6),
            batch * flop,
            batch,
        )


def theirs(size: PI0Config) -> Any:
    """lerobot's class with random weights, as its documentation trains it."""
    config = TheirConfig(
        **features(dict.fromkeys(CAMERAS, (256, 256)), 8, 7),
        chunk_size=size.chunk_size,
        n_action_steps=size.n_action_steps,
        device=DEVICE,
        dtype="bfloat16" if DEVICE == "cuda" else "float32",
        gradient_checkpointing=True,
        push_to_hub=False,
    )
    with torch.device(DEVICE):
        return modeling_pi0.PI0Policy(config).to(DEVICE)


def lerobot(table: Table, size: PI0Config) -> None:
    """On prepared batches."""
    policy = theirs(size)
    batches = prepared(size)
    text = int(batches[1]["observation.language.attention_mask"].sum())
    flop = work.chunk(size, len(CAMERAS), text, 1)
    policy.eval()
    with half(), torch.no_grad():
        spent = timed(lambda: policy.predict_action_chunk(batches[1]), 5)
    table.add("lerobot: chunk, batch 1, β = 1", *spent, flop, 1)
    policy.train()
    optimiser = policy.config.get_optimizer_preset().build(policy.get_optim_params())
    many = max(batches)

    def step() -> None:
        with half():
            loss, _ = policy.forward(batches[many])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), policy.config.optimizer_grad_clip_norm)
        optimiser.step()
        optimiser.zero_grad()

    flop = many * work.training(size, len(CAMERAS), text)
    table.add(f"lerobot: training, batch {many}", *timed(step, 2, 2), flop, many)


def prepared(size: PI0Config) -> dict[int, Any]:
    """Batches on the device; a network of one layer each makes them."""
    one = {"depth": 1}
    small = replace(
        size, vision=replace(size.vision, **one), vlm=replace(size.vlm, **one), expert=replace(size.expert, **one)
    )
    checkpoint = fresh(PI0Adapter(), small, learns=False)
    many = 32 if DEVICE == "cuda" else 2
    return {batch: checkpoint.prepare(tensors(raw(batch, size.chunk_size), DEVICE)) for batch in (1, many)}


def eager(table: Table, size: PI0Config) -> None:
    """Ours without compiling."""
    checkpoint = fresh(PI0Adapter(), size, learns=True)
    checkpoint.policy.run_with(compiled=False, memory=0.0)
    batch = 32 if DEVICE == "cuda" else 2
    text = text_length(checkpoint)
    flop = batch * work.training(size, len(CAMERAS), text)
    step = training_step(checkpoint, batch, size.chunk_size, Optimizer.adamw)
    table.add(f"training, batch {batch}, eager, gradient checkpointing", *timed(step, 2, 2), flop, batch)


def main(folder: Path, arguments: list[str]) -> None:
    limit = [float(one.removeprefix("seconds=")) for one in arguments if one.startswith("seconds=")]
    table = Table(folder, limit[0] if limit else 3600.0)
    conf = {"policy": "policy/pi0/full.yaml", "value": "size/full.yaml"}
    numbers = {role: yaml.safe_load((ROOT / "conf" / file).read_text()) for role, file in conf.items()}
    numbers["value"] = numbers["value"]["value"]
    if "small" in arguments:
        shrink(numbers)
    pi0, of_value = sizes(numbers)
    parts: dict[str, Callable[[], None]] = {
        "acting": lambda: acting(table, pi0),
        "training": lambda: training(table, pi0),
        "value": lambda: value(table, of_value),
        "lerobot": lambda: lerobot(table, pi0),
        "eager": lambda: eager(table, pi0),
    }
    machine(table)
    for name in [one for one in arguments if one in parts] or parts:
        if table.over:
            table.say(f"{name}: no time left")
            continue
        table.say(name)
        try:
            parts[name]()
        except Exception:  # noqa: BLE001  the other parts are still wanted
            traceback.print_exc()
            table.facts[name] = f"failed: {traceback.format_exc(limit=-1)}"
        free()
    table.write()
    table.say("done")


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
    """Networks of a few thousand weights, and lerobot's class made of them."""
    vlm = {"width": 32, "depth": 2, "mlp_dim": 64, "num_heads": 8, "num_kv_heads": 1, "head_dim": 8}
    vision = {"width": 32, "depth": 2, "mlp_dim": 64, "num_heads": 2, "patch_size": 14}
    small = {"vision": vision, "vlm": vlm, "expert": vlm | {"width": 16}}
    numbers["policy"] |= small | {"image_size": 28}
    numbers["value"] |= {"vision": vision, "text": vlm, "image_size": 28}
    stock_lerobot.shrink(small | {"vocab_size": 4096}, setattr)
    measure.SCALE = 0


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
