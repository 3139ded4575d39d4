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
import importlib.util
import json
import statistics
import sys
import time
import traceback
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
from torch._inductor.choices import InductorChoices
from torch._inductor.runtime.hints import ReductionHint
from torch.profiler import ProfilerActivity, profile

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
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PRECISION = Precision.bfloat16 if DEVICE == "cuda" else Precision.float32  # a processor only emulates bfloat16
STATS = {key: {"mean": np.zeros(n), "std": np.ones(n)} for key, n in (("observation.state", 8), ("action", 7))}
GB = 1e9
SCALE = 1  # turns of a measurement, of those wanted


class Table:
    """What was measured, on the screen and in FOLDER after each row."""

    def __init__(self, folder: Path, seconds: float) -> None:
        self.folder, self.until = folder, time.perf_counter() + seconds
        self.facts: dict[str, Any] = {}
        self.rows: list[dict[str, Any]] = []
        self.began = time.perf_counter()

    def say(self, text: str) -> None:
        print(f"{time.perf_counter() - self.began:4.0f} s  {text}", flush=True)

    def add(self, what: str, seconds: list[float], gb: float, flop: float = 0.0, count: int = 1) -> None:
        """flop: useful arithmetic of one turn. count: samples in it."""
        median = statistics.median(seconds)
        limit = flop / self.facts["FLOP/s"] if "FLOP/s" in self.facts else 0.0
        row = {"what": what, "ms": median * 1e3, "fastest": min(seconds) * 1e3, "slowest": max(seconds) * 1e3}
        row |= {"samples/s": count / median, "share of the limit": limit / median, "GB": gb}
        self.rows.append(row)
        self.say(" ".join(f"{key} {value:.3g}," if key != "what" else f"{value}:" for key, value in row.items()))
        self.write()

    def write(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        found = json.dumps({"facts": self.facts, "rows": self.rows}, indent=2)
        (self.folder / "full_size.json").write_text(found + "\n")
        lines = ["| | ms | from – to | samples/s | of the limit | GB |", "|---|---|---|---|---|---|"]
        for row in self.rows:
            share = f"{row['share of the limit']:.0%}" if row["share of the limit"] else ""
            between = f"{row['fastest']:.1f} – {row['slowest']:.1f}"
            cells = (row["what"], f"{row['ms']:.1f}", between, f"{row['samples/s']:.1f}", share, f"{row['GB']:.1f}")
            lines.append(f"| {' | '.join(cells)} |")
        facts = ", ".join(f"{key} {value}" for key, value in self.facts.items())
        (self.folder / "full_size.md").write_text(f"{facts}\n\n" + "\n".join(lines) + "\n")

    @property
    def over(self) -> bool:
        return time.perf_counter() > self.until


def timed(work: Callable[[], object], turns: int = 6, together: int = 1) -> tuple[list[float], float]:
    """Seconds of a call, for each turn of `together` calls, and the most memory that tensors took, in GB.

    The device is not waited for within a turn, as in a training.
    """
    wait = torch.cuda.synchronize if DEVICE == "cuda" else lambda: None
    began = time.perf_counter()
    work()
    wait()
    print(f"        first {time.perf_counter() - began:.2f} s", flush=True)
    work()
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(max(2, turns * SCALE)):
        wait()
        began = time.perf_counter()
        for _ in range(together):
            work()
        wait()
        seconds.append((time.perf_counter() - began) / together)
    return seconds, torch.cuda.max_memory_allocated() / GB if DEVICE == "cuda" else 0.0


def profiled(work: Callable[[], object], file: Path) -> None:
    """What takes the device's time in one turn, by kernel."""
    if DEVICE != "cuda":
        return
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        work()
        torch.cuda.synchronize()
    kernels = [one for one in found.key_averages() if one.device_type == torch.autograd.DeviceType.CUDA]
    kernels.sort(key=lambda one: -one.self_device_time_total)
    total = sum(one.self_device_time_total for one in kernels)
    lines = [f"{total / 1e3:.2f} ms in {sum(one.count for one in kernels)} kernels"]
    for one in kernels[:70]:
        spent = one.self_device_time_total
        lines.append(
            f"{spent / 1e3:9.3f} ms {spent / total:6.1%} {one.count:5d} x {spent / one.count:9.1f} us  {one.key[:150]}"
        )
    file.write_text("\n".join(lines) + "\n")
    print("\n".join(lines[:16]), flush=True)


def free() -> None:
    gc.collect()
    torch._dynamo.reset()
    if DEVICE == "cuda":
        torch.cuda.empty_cache()


# ---------------------------------------------------------------------------------------------------- arithmetic
def gemma_flop(size: Any, tokens: int, seen: int, layers: int) -> float:
    """Forward, of `tokens` that each see `seen` keys."""
    inner = size.num_heads * size.head_dim
    weights = size.width * (2 * inner + 2 * size.num_kv_heads * size.head_dim + 3 * size.mlp_dim)
    return layers * tokens * (2.0 * weights + 4 * seen * inner)


def vision_flop(size: Any, image_size: int, out: int) -> float:
    patches, width = (image_size // size.patch_size) ** 2, size.width
    layer = 2 * (4 * width**2 + 2 * width * size.mlp_dim) + 4 * patches * width
    return len(CAMERAS) * patches * (size.depth * layer + 2 * width * (3 * size.patch_size**2 + out))


def prefix_flop(size: PI0Config, text: int) -> float:
    tokens = len(CAMERAS) * (size.image_size // size.vision.patch_size) ** 2 + text
    last = 4 * tokens * size.vlm.width * size.vlm.num_kv_heads * size.vlm.head_dim
    prefix = gemma_flop(size.vlm, tokens, tokens, size.vlm.depth - 1) + last
    return vision_flop(size.vision, size.image_size, size.vlm.width) + prefix


def flow_flop(size: PI0Config, text: int) -> float:
    tokens = len(CAMERAS) * (size.image_size // size.vision.patch_size) ** 2 + text
    return gemma_flop(size.expert, 1 + size.chunk_size, tokens + 1 + size.chunk_size, size.expert.depth)


def value_flop(size: ValueConfig, text: int) -> float:
    tokens = len(CAMERAS) * (size.image_size // size.vision.patch_size) ** 2 + text + 1
    # causal: half of what stands there is seen
    seen = gemma_flop(size.text, tokens, tokens // 2, size.text.depth)
    return vision_flop(size.vision, size.image_size, size.text.width) + seen


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
    seconds, _ = timed(lambda: big.clone(), 5)
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
    flop = prefix_flop(size, text) + size.num_inference_steps * flow_flop(size, text)
    spent = timed(lambda: checkpoint.policy.predict_action_chunk(given), 3)
    table.add("chunk, batch 1, β = 1, eager", *spent, flop, 1)
    checkpoint.policy.run_with(compiled=True)
    apart = (chunks(checkpoint, size) - plain).abs().float()
    table.facts["actions, eager and as graphs"] = f"{apart.max():.4f} at most, {apart.mean():.5f} on average apart"
    table.say(f"{table.facts['actions, eager and as graphs']}, standard deviation {plain.std():.2f}")
    for beta, batch in ((1.0, 1), (1.5, 1), (1.0, 32)):
        if table.over:
            return
        checkpoint.set_prompt(True, beta)
        given = checkpoint.prepare(tensors(raw(batch, size.chunk_size), DEVICE))
        halves = 1 if beta == 1.0 else 2
        vision = vision_flop(size.vision, size.image_size, size.vlm.width)
        flop = (
            halves * (prefix_flop(size, text) + size.num_inference_steps * flow_flop(size, text))
            - (halves - 1) * vision
        )
        act = lambda given=given: checkpoint.policy.predict_action_chunk(given)  # noqa: E731
        table.add(f"chunk, batch {batch}, β = {beta:g}", *timed(act, 20), batch * flop, batch)
        if batch == 1:
            profiled(act, table.folder / f"chunk_{beta:g}.txt")


def chunks(checkpoint: Checkpoint, size: PI0Config) -> torch.Tensor:
    """Actions from two different noises, one after the other, with and without guidance."""
    found = []
    for beta in (1.0, 1.5, 1.0, 1.5):
        checkpoint.set_prompt(True, beta)
        noise = torch.randn(
            1, size.chunk_size, size.max_action_dim, generator=torch.Generator().manual_seed(len(found))
        )
        batch = raw(1, size.chunk_size) | {"noise": noise}
        found.append(checkpoint.policy.predict_action_chunk(checkpoint.prepare(tensors(batch, DEVICE))))
    checkpoint.set_prompt(True)
    return torch.stack(found)


def training(table: Table, size: PI0Config) -> None:
    """Steps of training at batch 32, by how much of the activations is kept."""
    for kept in (0.5, 1.0) if table.facts.get("GB", 0) > 120 else (0.5,):
        one_training(table, size, kept)
        free()
        if table.over:
            return


def one_training(table: Table, size: PI0Config, kept: float, note: str = "") -> None:
    batch = 32 if DEVICE == "cuda" else 2
    checkpoint = fresh(PI0Adapter(), size, learns=True)
    checkpoint.policy.run_with(compiled=True, memory=kept)
    text = text_length(checkpoint)
    step = training_step(checkpoint, batch, size.chunk_size, Optimizer.adamw)
    flop = 3 * batch * (prefix_flop(size, text) + size.flow_samples * flow_flop(size, text))
    try:
        table.add(f"training, batch {batch}, {kept:g} of the activations kept{note}", *timed(step, 3, 5), flop, batch)
        profiled(step, table.folder / f"training_{kept:g}{'_try' if note else ''}.txt")
    except torch.OutOfMemoryError:
        table.say(f"training with {kept:g} of the activations: does not fit")


def value(table: Table, size: ValueConfig) -> None:
    """Values of batches that start as arrays on the processor, the next one on its way as this one is computed."""
    batch = 256 if DEVICE == "cuda" else 2
    checkpoint = fresh(ValueAdapter(), size, learns=False)
    checkpoint.policy.eval().run_with(compiled=True)
    flop = value_flop(size, text_length(checkpoint))
    data = {key: part for key, part in raw(batch, 10).items() if key not in ("action", "action_is_pad", "indicator")}
    given = checkpoint.prepare(tensors(data, DEVICE))
    with torch.no_grad():
        forward = lambda: checkpoint.policy.value(given)  # noqa: E731
        table.add(f"values, batch {batch}, prepared", *timed(forward, 3, 4), batch * flop, batch)
        profiled(forward, table.folder / "value.txt")
        feed = ahead(lambda _: checkpoint.prepare(tensors(data, DEVICE)), range(1000), DEVICE)
        table.add(
            f"values, batch {batch}", *timed(lambda: checkpoint.policy.value(next(feed)), 3, 6), batch * flop, batch
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
    flop = prefix_flop(size, text) + size.num_inference_steps * flow_flop(size, text)
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

    flop = 3 * many * (prefix_flop(size, text) + size.flow_samples * flow_flop(size, text))
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
    flop = 3 * batch * (prefix_flop(size, text) + size.flow_samples * flow_flop(size, text))
    step = training_step(checkpoint, batch, size.chunk_size, Optimizer.adamw)
    table.add(f"training, batch {batch}, eager, gradient checkpointing", *timed(step, 2, 2), flop, batch)


def cheap(table: Table, size: PI0Config) -> None:
    """Only what costs next to nothing is computed again."""
    if table.facts.get("GB", 0) > 100:
        one_training(table, size, 0.9)


def persistent(table: Table, size: PI0Config) -> None:
    """A try: inductor reduces rows of up to 2048 numbers in one pass, also where there are many rows."""
    theirs = InductorChoices.should_use_persistent_reduction

    def ours(features: Any, cooperative: bool) -> bool:
        along = features.get_reduction_hint() in (ReductionHint.INNER, ReductionHint.DEFAULT)
        short = features.reduction_numel.is_number and int(features.reduction_numel) <= 2048
        return bool(along and short) or theirs(features, cooperative)

    InductorChoices.should_use_persistent_reduction = staticmethod(ours)
    torch._inductor.config.fx_graph_cache = torch._functorch.config.enable_autograd_cache = False
    one_training(table, size, 0.5, " (reductions in one pass)")


def main(folder: Path, arguments: list[str]) -> None:
    limit = [float(one.removeprefix("seconds=")) for one in arguments if one.startswith("seconds=")]
    table = Table(folder, limit[0] if limit else 3600.0)
    conf = {"policy": "policy/pi0/full.yaml", "value": "size/full.yaml"}
    numbers = {role: yaml.safe_load((ROOT / "conf" / file).read_text()) for role, file in conf.items()}
    numbers["value"] = numbers["value"]["value"]
    if "small" in arguments:
        shrink(numbers)
    pi0, of_value = sizes(numbers)
    works: dict[str, Callable[[], None]] = {
        "acting": lambda: acting(table, pi0),
        "training": lambda: training(table, pi0),
        "value": lambda: value(table, of_value),
        "lerobot": lambda: lerobot(table, pi0),
        "cheap": lambda: cheap(table, pi0),
        "eager": lambda: eager(table, pi0),
        "persistent": lambda: persistent(table, pi0),
    }
    machine(table)
    for name in [one for one in arguments if one in works] or works:
        if table.over:
            table.say(f"{name}: no time left")
            continue
        table.say(name)
        try:
            works[name]()
        except Exception:  # the other parts are still wanted
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
    global SCALE
    vlm = {"width": 32, "depth": 2, "mlp_dim": 64, "num_heads": 8, "num_kv_heads": 1, "head_dim": 8}
    vision = {"width": 32, "depth": 2, "mlp_dim": 64, "num_heads": 2, "patch_size": 14}
    small = {"vision": vision, "vlm": vlm, "expert": vlm | {"width": 16}}
    numbers["policy"] |= small | {"image_size": 28}
    numbers["value"] |= {"vision": vision, "text": vlm, "image_size": 28}
    script("bench/stock_lerobot.py").shrink(small | {"vocab_size": 4096}, setattr)
    SCALE = 0


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


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
