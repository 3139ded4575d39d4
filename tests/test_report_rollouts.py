"""What the report shows of rollouts: the right frames in the videos, episodes and moments that can be found by hand."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image
from report_run import FPS, label, labels, picture, record

from recap.report.html.rollouts import CACHE, MOMENTS, Rollouts, last_rollouts, moments, traces

WINS = [True, False, True, False, True, True, False, False]
SUMMARY: dict[str, Any] = {"advantage": [{"iteration": 1}]}
LOOK_AHEAD = 5  # of report_run.label


@pytest.fixture(scope="module", params=[None, FPS], ids=["png", "video"])
def found(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Rollouts]:
    """A run with labelled rollouts, its images in parquet or as videos."""
    run, rng = tmp_path_factory.mktemp("outputs") / "seed=3", np.random.default_rng(0)
    table = labels("rollouts_01", "rollout", WINS, rng)
    table["held_out"] = np.zeros(len(table["value"]), bool)
    record(run / "iter_01/rollout", table, rng, request.param)
    label(run / "iter_01/advantage", [labels("demonstrations", "demonstration", [True] * 3, rng), table])
    rollouts = last_rollouts(run, SUMMARY)
    assert rollouts
    return run, rollouts


def shown(time: float) -> np.ndarray:
    """Both cameras side by side at `time`, as report_run draws them."""
    return np.concatenate([np.asarray(picture(time))] * 2, axis=1).astype(float)


def test_each_video_shows_the_frames_whose_values_are_drawn(found: tuple[Path, Rollouts]) -> None:
    run, rollouts = found
    chosen = traces(run, rollouts)
    assert [trace["outcome"] for trace in chosen] == ["success", "failure", "success", "failure"]
    for trace in chosen:
        rows = rollouts.rows(trace["episode"])
        np.testing.assert_allclose(trace["value"], rollouts.table["value"][rows], atol=1e-4)
        with av.open(io.BytesIO(base64.b64decode(trace["video"]))) as film:
            frames = [frame.to_ndarray(format="rgb24").astype(float) for frame in film.decode(video=0)]
        assert len(frames) == len(trace["value"])
        assert frames[0].shape == (trace["shape"][1], trace["shape"][0], 3)
        speed = 1 if trace["outcome"] == "success" else 0.45
        for t in (0, len(frames) // 2, len(frames) - 1):
            distance = [np.abs(frame - shown(t / len(frames) * speed)).mean() for frame in frames]
            assert np.argmin(distance) == pytest.approx(t, abs=1 if speed == 1 else 3)  # a pixel's way
            assert distance[t] < 8


def test_videos_are_made_once(found: tuple[Path, Rollouts]) -> None:
    run, rollouts = found
    first = traces(run, rollouts)
    before = {path: path.stat().st_mtime_ns for path in (run / CACHE).iterdir()}
    assert len(before) == len(first)
    assert traces(run, rollouts) == first
    assert {path: path.stat().st_mtime_ns for path in (run / CACHE).iterdir()} == before


def test_typical_and_surprising_episodes(found: tuple[Path, Rollouts]) -> None:
    run, rollouts = found
    mean = {e: rollouts.table["value"][rollouts.rows(e)].mean() for e in range(len(WINS))}
    wins, losses = ([e for e in sorted(mean, key=mean.__getitem__) if WINS[e] is won] for won in (True, False))
    assert {trace["title"]: trace["episode"] for trace in traces(run, rollouts)} == {
        "Typical success": wins[1],  # the lower one of the two in the middle
        "Typical failure": losses[1],
        "Least expected success": wins[0],
        "Least expected failure": losses[-1],
    }


def test_moments_are_the_strongest_ones(found: tuple[Path, Rollouts]) -> None:
    _, rollouts = found
    table, by_hand = rollouts.table, []
    for episode in range(len(WINS)):
        advantage = table["advantage"][rollouts.rows(episode)][:-LOOK_AHEAD]  # the end is in view after that
        by_hand.append((advantage.max(), episode, int(advantage.argmax())))
    strongest = sorted(by_hand, reverse=True)[:MOMENTS]
    positive = moments(rollouts)["positive"]
    assert [(m["episode"], m["frame"]) for m in positive] == [(e, frame) for _, e, frame in strongest]
    assert [m["advantage"] for m in positive] == pytest.approx([advantage for advantage, _, _ in strongest])
    assert positive[0]["advantage"] > 0 > moments(rollouts)["negative"][0]["advantage"]
    best = positive[0]
    length, speed = len(rollouts.rows(best["episode"])), 1 if WINS[best["episode"]] else 0.45
    for image, frame in zip(best["images"], (best["frame"], best["frame"] + LOOK_AHEAD), strict=True):
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(image)))).astype(float)
        assert np.abs(pixels - np.asarray(picture(frame / length * speed)).astype(float)).mean() < 8
