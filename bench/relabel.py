"""Seconds and memory to label a data set like lerobot/libero anew from stored values: another N, ε or fraction.

python bench/relabel.py [frames]     one core, no network, no images read; prints one line of JSON
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hydra import compose, initialize_config_dir

FRAMES, EPISODES, TASKS, LONGEST = 273_465, 1693, 40, 520


def data_set(root: Path, frames: int) -> np.ndarray:
    """A LeRobot v3 data set without its images; the length of every episode."""
    rng = np.random.default_rng(0)
    episodes, usual = max(1, frames * EPISODES // FRAMES), FRAMES // EPISODES
    length = rng.integers(usual // 2, usual * 3 // 2, episodes).clip(2, LONGEST)
    episode, n = np.repeat(np.arange(episodes), length), int(length.sum())
    success = rng.random(episodes) < 0.8
    start = np.cumsum(length) - length
    vectors = {"observation.state": 8, "action": 7}
    columns = {
        "episode_index": episode,
        "frame_index": np.arange(n) - start[episode],
        "timestamp": ((np.arange(n) - start[episode]) / 20).astype(np.float32),
        "index": np.arange(n),
        "task_index": episode % TASKS,
        "next.success": (success[episode]) & (np.arange(n) == (start + length - 1)[episode]),
    }
    for name, size in vectors.items():
        columns[name] = pa.FixedSizeListArray.from_arrays(pa.array(rng.random(n * size, np.float32)), size)
    features = {key: {"dtype": "float32", "shape": [size]} for key, size in vectors.items()}
    features |= {"observation.images.image": {"dtype": "image", "shape": [256, 256, 3]}}
    features |= {"next.success": {"dtype": "bool", "shape": [1]}}
    info = {"codebase_version": "v3.0", "fps": 20, "features": features, "total_frames": n, "total_episodes": episodes}
    for folder in ("meta/episodes/chunk-000", "data/chunk-000"):
        (root / folder).mkdir(parents=True)
    (root / "meta/info.json").write_text(json.dumps(info))
    pq.write_table(pa.table({"task": [f"task {k}" for k in range(TASKS)], "task_index": range(TASKS)}),
                   root / "meta/tasks.parquet")  # fmt: skip
    listed = {"episode_index": np.arange(episodes), "length": length}
    listed |= {"dataset_from_index": start, "dataset_to_index": start + length}
    pq.write_table(pa.table(listed), root / "meta/episodes/chunk-000/file-000.parquet")
    pq.write_table(pa.table(columns), root / "data/chunk-000/file-000.parquet")
    return length


def main() -> None:
    from recap.config import AdvantageJob, StageKind, typed
    from recap.stages.advantage import advantage

    frames = int(sys.argv[1]) if len(sys.argv) > 1 else FRAMES
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        length = data_set(root / "data", frames)
        (root / "value_inference").mkdir()
        rng = np.random.default_rng(1)
        value = np.concatenate([np.linspace(-0.4, -0.01, n) + 0.02 * rng.standard_normal(n) for n in length])
        np.save(root / "value_inference/libero.npy", value[None].clip(-1, 0))
        (root / "value_inference/normalizers.json").write_text(json.dumps({f"task {k}": 1600 for k in range(TASKS)}))
        with initialize_config_dir(str(Path(__file__).resolve().parents[1] / "conf"), version_base="1.3"):
            composed = compose("advantage", ["experiment=libero_moka", f"data.sources.libero.root={root / 'data'}"])
        cfg = typed(composed, AdvantageJob)
        (root / "out").mkdir()
        began = time.perf_counter()
        advantage(
            cfg, {"value_inference": root / "value_inference"}, root / "out", lambda _: None, stage=StageKind.finetune
        )
        seconds, status = time.perf_counter() - began, Path("/proc/self/status").read_text()
        most = float(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e6
        print(json.dumps({"frames": int(length.sum()), "seconds": seconds, "MB": most}))


if __name__ == "__main__":
    main()
