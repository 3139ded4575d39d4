"""Builds a small finished run directory with real files: parquet labels and images, mp4 videos, results, manifests."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw
from rich.console import Console

from recap.data.labels import Thresholds, write_labels, write_thresholds
from recap.data.lerobot_writer import Episode, assemble, write_episode
from recap.data.resample import Recording
from recap.envs import EpisodeSpec
from recap.method.advantage import indicator, percentiles, positive_shares, positive_shares_per_task
from recap.method.success import summarize
from recap.report import print_table

TASKS = ("put the moka pot on the stove", "put both moka pots on the stove")
FPS = 10
WAYS = ("high", None, "low", "high", "low", "low")  # that the episodes take, over and over
FRAME = 7  # at which every rollout sets out on its way
CONFIG = "policy: {{sft: {{indicator: ignore}}, finetune: {{indicator: {}, labels: {}}}}}\n"
SETTINGS = ("use", "iteration")  # what the policies are trained with: indicator and labels
ALONE = {  # the same of the ablations that see the demonstrations alone
    "continued_sft": ("ignore", "iteration"),
    "no_experience": ("use", "pretraining"),
    "labels_on_demonstrations": SETTINGS,
}


def outcomes(pattern: str) -> list[bool]:
    return [letter == "1" for letter in pattern]


def picture(time: float, size: int = 64) -> Image.Image:
    """A drawn scene at `time` in [0, 1]: a gripper brings a pot to a stove."""
    image = Image.new("RGB", (size, size), (201, 196, 186))
    draw, x = ImageDraw.Draw(image), size * (0.22 + 0.5 * time)
    draw.rectangle([0, size * 0.62, size, size], fill=(150, 122, 96))
    draw.ellipse([size * 0.6, size * 0.68, size * 0.92, size * 0.82], fill=(60, 60, 64))
    draw.rectangle([x - 5, size * 0.58, x + 5, size * 0.76], fill=(196, 72, 48))
    draw.rectangle([x - 8, size * 0.3, x + 8, size * 0.4], fill=(70, 84, 110))
    draw.line([x - 8, size * 0.4, x - 7, size * 0.6], fill=(70, 84, 110), width=3)
    draw.line([x + 8, size * 0.4, x + 7, size * 0.6], fill=(70, 84, 110), width=3)
    return image


def finish(stage: Path, seconds: float, **extra: object) -> None:
    stage.mkdir(parents=True, exist_ok=True)
    manifest = {
        "stage": stage.name,
        "seed": 3,
        "git_commit": "0123abc",
        "versions": {"torch": "2.11.0", "lerobot": "0.6.1"},
        "host": "bench",
        "started": "2026-05-01T10:00:00+00:00",
        "wall_seconds": seconds,
        "inputs": {},
        "outputs": {},
    }
    (stage / "manifest.json").write_text(json.dumps(manifest | extra))


def evaluate(stage: Path, wins: Sequence[bool], steps: int, videos: int = 0, prompt: str = "positive") -> None:
    stage.mkdir(parents=True, exist_ok=True)
    episodes = [
        {
            "index": i,
            "task": TASKS[i % 2],
            "initial_state": i,
            "seed": 100 + i,
            "success": bool(win),
            "steps": steps + i % 3 if win else 50,
        }
        for i, win in enumerate(wins)
    ]
    (stage / "config.yaml").write_text(f"stage: evaluate\nprompt: {prompt}\nenv: {{max_steps: 50}}\n")
    (stage / "result.json").write_text(
        json.dumps({"checkpoint": "…", "prompt": prompt, "beta": 1.0, **summarize(episodes, FPS)})
    )
    for episode in episodes[:videos]:
        end = 1.0 if episode["success"] else 0.4
        film(stage / "videos" / f"episode_{episode['index']:06d}_{'success' if end == 1 else 'failure'}.mp4", end)
    finish(stage, 6.5)


def film(path: Path, end: float) -> None:
    path.parent.mkdir(exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = 256, 128, "yuv420p"
        for t in np.linspace(0, end, 20):
            both = Image.new("RGB", (256, 128))
            both.paste(picture(t, 128), (0, 0))
            both.paste(picture(t, 128).transpose(Image.Transpose.FLIP_LEFT_RIGHT), (128, 0))
            container.mux(stream.encode(av.VideoFrame.from_image(both)))
        container.mux(stream.encode())


def train(stage: Path, seconds: float, rng: np.random.Generator, *inputs: str) -> None:
    stage.mkdir(parents=True, exist_ok=True)
    (stage / "checkpoints" / "last").mkdir(parents=True)
    steps = range(10, 1010, 10)
    lines = [
        json.dumps({"step": s, "loss": 1.9 * np.exp(-s / 120) + 0.12 + 0.02 * rng.random(), "lr": 1e-3}) for s in steps
    ]
    (stage / "metrics.jsonl").write_text("\n".join([*lines, '{"step": 1010, "lo']))  # the last line cut by a kill
    finish(stage, seconds, inputs={role: {"path": "…", "sha256": "0123456789"} for role in inputs})


def labels(
    name: str, source: str, wins: Sequence[bool], rng: np.random.Generator
) -> dict[str, np.ndarray | list[object]]:
    """Value traces that rise in a success and stall in a failure."""
    rows: dict[str, list] = {key: [] for key in ("episode_index", "frame_index", "value", "return", "success", "task")}
    for episode, win in enumerate(wins):
        length = int(rng.integers(30, 48)) if win else 50
        time = np.arange(length) / length
        goal = -0.45 * (1 - time) if win else -0.5 - 0.35 * np.clip(1.6 * time - 0.5, 0, 1)
        rows["value"].append(goal + 0.03 * np.cumsum(rng.normal(size=length)) / np.sqrt(1 + np.arange(length)))
        rows["return"].append(-(length - 1 - np.arange(length)) / 100 - (0 if win else 0.4))
        rows["frame_index"].append(np.arange(length))
        for key, value in (("episode_index", episode), ("success", win), ("task", TASKS[episode % 2])):
            rows[key].append(np.full(length, value))
    table = {key: np.concatenate(value) for key, value in rows.items()}
    n, mean = len(table["value"]), {True: 0.01, False: -0.03}
    table["advantage"] = rng.normal(0, 0.05, n) + np.array([mean[bool(s)] for s in table["success"]])
    held_out = table["episode_index"] % 5 == 0
    return table | {"dataset": np.full(n, name), "source": np.full(n, source), "held_out": held_out}


def label(stage: Path, tables: list[dict], positive_fraction: float = 0.3) -> None:
    column = {key: np.concatenate([table[key] for table in tables]) for key in tables[-1]}
    epsilon = {t: float(np.quantile(column["advantage"][column["task"] == t], 1 - positive_fraction)) for t in TASKS}
    groups = column["source"].tolist(), column["success"]
    flags = indicator(column["advantage"], column["task"].tolist(), epsilon, groups[0])
    for table, mine in zip(tables, np.split(flags, np.cumsum([len(t["value"]) for t in tables])[:-1]), strict=True):
        times = (table["frame_index"] / FPS).astype(np.float32)
        recording = Recording(table["episode_index"], times, np.arange(len(times)))
        write_labels(stage / str(table["dataset"][0]), {**table, "indicator": mine}, recording)
    shares = positive_shares(flags, *groups), positive_shares_per_task(flags, column["task"].tolist(), *groups)
    numbers = 5, dict.fromkeys(TASKS, 100.0), 50.0, percentiles(column["advantage"])
    write_thresholds(stage, Thresholds(epsilon, positive_fraction, *shares, *numbers))
    finish(stage, 4.0)


def record(stage: Path, table: dict, rng: np.random.Generator, film: float | None = None) -> None:
    """A rollout data set, by the recorder; film: images as videos of so many frames a second."""
    for episode in np.unique(table["episode_index"]):
        length = int((table["episode_index"] == episode).sum())
        win = bool(table["success"][table["episode_index"] == episode][0])
        seen = [np.asarray(picture(t / length * (1 if win else 0.45))) for t in range(length)]
        images = {key: np.stack(seen) for key in ("observation.images.image", "observation.images.image2")}
        spec = EpisodeSpec(index=int(episode), task=TASKS[episode % 2], initial_state=100 + int(episode), seed=7)
        numbers = (rng.normal(size=(length, size)).astype(np.float32) for size in (8, 7))
        write_episode(stage / "episodes", Episode(spec, "collection", "rollout", win, images, *numbers), film)
    assemble(stage / "episodes", stage / "dataset", fps=FPS, source="rollout")
    finish(stage, 12.0)


def gate(stage: Path, failed: Sequence[str], action: str = "stop") -> None:
    """What a value gate leaves behind: a manifest only where the run goes on."""
    checks = [
        ("rank", 0.71, "at least 0.3", "value.finetune.steps, value.use_state"),
        ("outcome_auc", 0.55, "at least 0.7", "rollout.episodes (more)"),
        ("saturated_values", None, "at most 5 %", "rollout.episodes"),
    ]
    keys = ("name", "value", "limit", "knob")
    found = [
        {**dict(zip(keys, check, strict=True)), "passed": check[0] not in failed, "text": f"what {check[0]} says"}
        for check in checks
    ]
    stage.mkdir(parents=True, exist_ok=True)
    (stage / "gate.json").write_text(json.dumps({"passed": not failed, "action": action, "checks": found}))
    picture(0.5).save(stage / "gate.png")
    if not failed or action == "warn":
        finish(stage, 0.4)


def make_run(
    root: Path, policies: list[list[bool]], ablations: dict[str, list[bool]], rollouts: int = 12, videos: int = 2
) -> Path:
    """A finished run: policies[0] is SFT, then one entry an iteration; each entry lists the evaluation's outcomes.

    ablations: by name, beside the last policy. `negative_prompt` trains nothing of its own; those in ALONE read no
    rollouts.
    """
    rng = np.random.default_rng(0)
    root.mkdir(parents=True)
    (root / "config.yaml").write_text(
        "name: demo\nseed: 3\nrollout:\n  beta: 1.0  # <b>&amp;</b>\n" + CONFIG.format(*SETTINGS)
    )
    (root / "demonstrations" / "dataset" / "meta").mkdir(parents=True)
    (root / "demonstrations" / "dataset" / "meta" / "info.json").write_text('{"total_episodes": 15, "fps": 10}')
    finish(root / "demonstrations", 9.0)
    train(root / "value", 21.0, rng)
    train(root / "sft", 70.1, rng)
    evaluate(root / "sft" / "eval", policies[0], 42, videos)
    tables = [labels("demonstrations", "demonstration", [True] * 15, rng)]
    for k, wins in enumerate(policies[1:], start=1):
        here = root / f"iter_{k:02d}"
        tables.append(labels(f"rollouts_{k:02d}", "rollout", rng.random(rollouts) < 0.5, rng))
        record(here / "rollout", tables[-1], rng)
        train(here / "value", 22.0, rng)
        gate(here / "gate", [])
        label(here / "advantage", tables)
        train(here / "policy", 61.0, rng, "demonstrations", *(f"rollouts_{n:02d}" for n in range(1, k + 1)))
        (here / "policy/config.yaml").write_text(CONFIG.format(*SETTINGS))
        evaluate(here / "eval", wins, 37, videos)
    last = f"iter_{len(policies) - 1:02d}"
    for name, wins in ablations.items():
        here, trained = root / "ablations" / name / last, name != "negative_prompt"
        if trained:
            train(here / "policy", 61.0, rng, "demonstrations", *([] if name in ALONE else ["rollouts_01"]))
            (here / "policy/config.yaml").write_text(CONFIG.format(*ALONE.get(name, SETTINGS)))
        evaluate(here / "eval", wins, 40, prompt="positive" if trained else "negative")
    return root


def record_ways(run: Path) -> None:
    """The episodes of a run record a choice, as those of an environment with one do."""
    for path in [*run.rglob("result.json"), *run.rglob("recap.json")]:
        content = json.loads(path.read_text())
        for number, episode in enumerate(content["episodes"]):
            episode["choice"] = WAYS[number % len(WAYS)]
            episode["choice_frame"] = FRAME if episode["choice"] else None
        path.write_text(json.dumps(content))


def printed(summary: dict, width: int = 80) -> str:
    """A summary as a terminal of this width shows it: whole, and no wider."""
    console = Console(width=width, record=True, file=io.StringIO())
    print_table(summary, console)
    text = console.export_text().replace("\u00a0", " ")
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    return text
