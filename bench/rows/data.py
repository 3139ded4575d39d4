"""Frames for a training and for a value pass: a data set of LIBERO's shape, its videos decoded, ours and lerobot's."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import av
import full_size
import numpy as np
import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from torch.utils.data import DataLoader

from recap.config import LoopJob
from recap.data.frames import Frames, load_frames
from recap.data.lerobot_writer import assemble
from recap.data.mixture import Mixture, Picked
from recap.data.tensors import tensors
from recap.envs import EpisodeSpec
from recap.envs.config import EnvConfig, Images
from recap.method.config import SourceKind
from recap.policies.batches import policy_batches
from recap.policies.checkpoint import Checkpoint
from recap.policies.pi0.adapter import PI0Adapter
from recap.policies.value.adapter import ValueAdapter
from recap.policies.value.batches import value_batches
from recap.rollout.collect import demonstrate
from recap.rollout.pool import Pool
from recap.stages.value_inference import values
from recap.training.optim import make_optimizer
from rows.networks import step
from rows.row import Bench, Figure, Row, rate

BATCH, CHUNK = 32, 10
LOOK_AHEAD, THEIR_BATCH = 50, 20  # of OpenTau's script and its example
LIBERO = {"crf": "30", "g": "2", "preset": "12"}  # how lerobot encodes AV1


def rows(bench: Bench, demo: LoopJob) -> Iterator[Row]:
    h264 = record(bench.folder / "h264", demo, 2 if bench.quick else 28, as_libero(demo.env))
    sets = {"H.264": h264, "AV1": as_av1(h264, bench.folder / "av1")}
    checkpoint = full_size.fresh(ValueAdapter(), demo.value, learns=False)
    checkpoint.policy.eval()
    facts = json.loads((h264 / "meta/info.json").read_text())
    bench.notes.append(
        f"data: {facts['total_episodes']} episodes, {facts['total_frames']} frames of two cameras, 256 × 256, "
        f"{facts['fps']} Hz; a frame is both pictures. One core: by CPU time, in one process without workers"
    )
    for codec, root in sets.items():
        yield from loader(root, codec, 2 if bench.quick else 8)
    for codec, root in sets.items():
        yield value_pass(checkpoint, root, codec)
    for codec, root in sets.items():
        yield value_training(root, codec, demo, 1 if bench.quick else 4)
    share = waiting(bench.folder / "small", demo, 5 if bench.quick else 100)
    yield Row("the demo's π0: share of a training that waits for its batches", "%", share, most=3)


# ---------------------------------------------------------------------------------------------------- data sets
def as_libero(env: EnvConfig) -> EnvConfig:
    return EnvConfig(**{**vars(env), "image_size": 256, "recorded_images": Images.video, "max_steps": 200})


def record(folder: Path, demo: LoopJob, episodes: int, env: EnvConfig) -> Path:
    """Demonstrations of the embedded task."""
    scripted = demo.data.demonstrator
    assert scripted
    task = demo.env.tasks[0]
    with Pool(env, 2, 2) as pool:
        plan = [EpisodeSpec(i, task, i, i) for i in range(episodes)]
        demonstrate(pool, plan, scripted, record=folder / "episodes", progress=None)
    return assemble(folder / "episodes", folder / "dataset", fps=env.fps, source="demonstration")


def as_av1(root: Path, out: Path) -> Path:
    """The same data set with its videos encoded as those of lerobot/libero are."""
    shutil.copytree(root, out)
    for path in out.rglob("*.mp4"):
        with av.open(str(root / path.relative_to(out))) as read, av.open(str(path), "w") as written:
            source = read.streams.video[0]
            stream: Any = written.add_stream("libsvtav1", rate=source.average_rate, options=LIBERO)
            stream.width, stream.height, stream.pix_fmt = source.width, source.height, "yuv420p"
            for frame in read.decode(source):
                written.mux(stream.encode(frame))
            written.mux(stream.encode())
    return out


def theirs(root: Path, **options: Any) -> LeRobotDataset:
    return LeRobotDataset(f"bench/{root.name}", root=root, **options)


# ---------------------------------------------------------------------------------------------------- rows
def loader(root: Path, codec: str, batches: int) -> Iterator[Row]:
    """Batches as a training takes them: bytes of pictures, state, chunks of actions."""
    frames = load_frames(root, "bench", SourceKind.demonstration)
    mixture = Mixture([frames], 1.0)
    steps = {"action": [k / frames.fps for k in range(CHUNK)]}
    peer = theirs(root, delta_timestamps=steps, return_uint8=True)
    batches = min(batches, len(frames) // BATCH)
    in_order = [Picked(np.zeros(BATCH, int), np.arange(BATCH) + k * BATCH) for k in range(batches)]
    at_random = [mixture.pick(0, k, BATCH) for k in range(batches)]
    limit = decoded_a_second(root)
    for how, picked in (("in order", in_order), ("at random", at_random)):
        loaded, frames_read = DataLoader(peer, BATCH, shuffle=picked is at_random), batches * BATCH
        ours = rate(partial(gathered, mixture, picked), frames_read, time.process_time)
        their = rate(partial(first, loaded, batches), frames_read, time.process_time)
        yield Row(f"loader, {codec}, {how}, one core", "frames/s", ours, their, goal=3, limit=limit)


def gathered(mixture: Mixture, picked: list[Picked]) -> None:
    for one in picked:
        mixture.gather(one, CHUNK)


def first(loaded: DataLoader, batches: int) -> None:
    for _ in zip(range(batches), loaded, strict=False):
        pass


def decoded_a_second(root: Path) -> float:
    """Frames, by PyAV in order, in planes of YUV, for each second of CPU."""
    began, pictures = time.process_time(), 0
    videos = sorted(root.rglob("*.mp4"))
    for path in videos:
        with av.open(str(path)) as container:
            container.streams.video[0].codec_context.thread_count = 1  # the least CPU time
            pictures += sum(1 for _ in container.decode(container.streams.video[0]))
    cameras = len({path.parent.parent.name for path in videos})
    return pictures / cameras / (time.process_time() - began)


def value_pass(checkpoint: Checkpoint, root: Path, codec: str) -> Row:
    """Values of all frames on two cores."""
    frames = load_frames(root, "bench", SourceKind.demonstration)
    limit = 2 / (1 / decoded_a_second(root) + 1 / networks_a_second(checkpoint, frames))
    peer = rate(opentau(checkpoint, root), len(frames))
    ours = rate(lambda: values(checkpoint, frames), len(frames))
    return Row(f"value pass with decoding, {codec}", "frames/s", ours, peer, "OpenTau's loop", goal=5, limit=limit)


def value_training(root: Path, codec: str, demo: LoopJob, steps: int) -> Row:
    """Steps of the value function on frames at random, pictures decoded: by our batches, and by lerobot's loader."""
    checkpoint = full_size.fresh(ValueAdapter(), demo.value, learns=True)
    optimizer = make_optimizer(checkpoint.policy, demo.value.sft)
    frames = load_frames(root, "bench", SourceKind.demonstration)
    bins = [np.zeros(len(frames), dtype=np.int64)]
    make, size = value_batches(Mixture([frames], 1.0), demo.value.sft, 0, bins), demo.value.sft.batch_size
    loaded = DataLoader(theirs(root, return_uint8=True), size, shuffle=True, num_workers=2)

    def train(batch: Any) -> None:
        step(checkpoint.policy, optimizer, checkpoint.prepare(batch))()

    def ours() -> None:
        for number in range(steps):
            train(tensors(make(number)))

    def their() -> None:
        for _, batch in zip(range(steps), loaded, strict=False):
            train(batch | {"return_bin": torch.zeros(size, dtype=torch.int64)})

    what = f"value training with decoding, {codec}, batch {size}"
    return Row(what, "samples/s", rate(ours, steps * size), rate(their, steps * size), goal=1)


def waiting(folder: Path, demo: LoopJob, steps: int) -> Figure:
    """Per cent of the time of a training on the embedded task's own frames that makes batches."""
    frames = load_frames(record(folder, demo, 4, demo.env), "bench", SourceKind.demonstration)
    checkpoint = full_size.fresh(PI0Adapter(), demo.policy, learns=True)
    optimizer = make_optimizer(checkpoint.policy, demo.policy.sft)
    make = policy_batches(Mixture([frames], 1.0), demo.policy, demo.policy.sft, 0, None)

    def figure() -> float:
        began, made = time.perf_counter(), 0.0
        for number in range(steps):
            start = time.perf_counter()
            batch = checkpoint.prepare(tensors(make(number)))
            made += time.perf_counter() - start
            step(checkpoint.policy, optimizer, batch)()
        return 100 * made / (time.perf_counter() - began)

    return figure


def networks_a_second(checkpoint: Checkpoint, frames: Frames) -> float:
    """Frames through the value function alone, for each second of CPU."""
    rows_ = np.arange(min(256, len(frames)))
    raw = Mixture([frames], 1.0).gather(Picked(np.zeros_like(rows_), rows_))
    batch = checkpoint.prepare(tensors(raw))
    with torch.no_grad():
        checkpoint.policy.value(batch)
        return rate(lambda: checkpoint.policy.value(batch), len(rows_), time.process_time)()


def opentau(checkpoint: Checkpoint, root: Path) -> Callable[[], list[float]]:
    """What OpenTau's get_advantage_and_percentiles.py does, by lerobot's loader and our value function.

    Rewritten, because it wants Python 3.10, an older transformers and data of format v2.1, and knows one size of value
    function, whose passes would hide the loader on a processor. As there: batches of 20, workers that decode both
    cameras frame by frame, values kept in a dict, and the whole data set read a second time to subtract them.
    """
    loaded = DataLoader(theirs(root), THEIR_BATCH, num_workers=2, prefetch_factor=2)
    columns = ("episode_index", "frame_index")

    def run() -> list[float]:
        values: dict[tuple[int, int], float] = {}
        with torch.inference_mode():
            for batch in loaded:
                found = checkpoint.policy.value(checkpoint.prepare(batch))
                for episode, frame, value in zip(*(batch[key] for key in columns), found, strict=True):
                    values[episode.item(), frame.item()] = value.item()
            advantages = []
            for batch in loaded:
                for episode, frame in zip(*(batch[key] for key in columns), strict=True):
                    place = episode.item(), frame.item()
                    later = values.get((place[0], place[1] + LOOK_AHEAD), 0.0)
                    advantages.append(later - values[place])
        return advantages

    return run
