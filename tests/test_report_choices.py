"""Which of several ways the episodes took: shares and successes counted by hand, and the labels where the ways part."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from report_run import FRAME, TASKS, WAYS, make_run, outcomes, picture, printed, record_ways

from recap.data.labels import Labels, read_labels
from recap.method.success import wilson
from recap.report import build_summary, write_html
from recap.report.html.rollouts import CHOSEN, last_rollouts, moments_of_choice
from recap.report.verdict import choice_verdict

SFT, RECAP, ALONE = outcomes("1100000010"), outcomes("1011111100"), outcomes("1100100010")


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose episodes record a choice, as an environment with one does."""
    run = make_run(tmp_path_factory.mktemp("outputs") / "demo", [SFT, RECAP], {"no_experience": ALONE})
    record_ways(run)
    return run


def counted(wins: list[bool], numbers: range, way: str) -> tuple[int, int]:
    """How many of these episodes took the way, and how many of them succeeded."""
    taken = [wins[number] for number in numbers if WAYS[number % len(WAYS)] == way]
    return len(taken), sum(taken)


def test_shares_and_successes_by_stage(run_dir: Path) -> None:
    """An episode's task is that of its number, even or odd."""
    found = build_summary(run_dir)["choices"]
    assert [choice["task"] for choice in found] == sorted(TASKS)
    evaluated = {"sft/eval": SFT, "iter_01/eval": RECAP, "ablations/no_experience/iter_01/eval": ALONE}
    for choice in found:
        assert choice["names"] == ["high", "low"]
        stages = {stage["node"]: stage for stage in choice["stages"]}
        assert list(stages) == ["sft/eval", "iter_01/rollout", "iter_01/eval", "ablations/no_experience/iter_01/eval"]
        numbers = range(TASKS.index(choice["task"]), 10, 2)
        for node, wins in evaluated.items():
            for way, taken in stages[node]["taken"].items():
                n, won = counted(wins, numbers, way)
                assert (taken["episodes"], taken["successes"]) == (n, won)
                assert (taken["share"], taken["success_rate"]) == (n / 5, won / n)
                assert (taken["share_ci95"], taken["ci95"]) == (list(wilson(n, 5)), list(wilson(won, n)))
            assert stages[node]["none"] == sum(WAYS[number % len(WAYS)] is None for number in numbers)
        rollouts = stages["iter_01/rollout"]
        assert rollouts["episodes"] == 6 == rollouts["none"] + sum(t["episodes"] for t in rollouts["taken"].values())


def test_what_the_last_policy_chooses_otherwise(run_dir: Path, tmp_path: Path) -> None:
    """By the paired test, on the same initial states; the two evaluations here chose alike at first."""
    (choice, _) = build_summary(run_dir)["choices"]
    assert choice["shift"]["before"] == "sft/eval"
    assert {way: (pair["fixed"], pair["broke"]) for way, pair in choice["shift"]["taken"].items()} == {
        "high": (0, 0),
        "low": (0, 0),
    }
    assert choice_verdict(choice)[0].startswith(
        "What the policy chooses did not change measurably from SFT to iteration 1"
    )
    copy = shutil.copytree(run_dir, tmp_path / "demo", symlinks=True)
    path = copy / "iter_01/eval/result.json"
    path.write_text(path.read_text().replace('"choice": "low"', '"choice": "high"'))
    moved = {c["task"]: c["shift"]["taken"] for c in build_summary(copy)["choices"]}
    for number, task in enumerate(TASKS):
        n = sum(WAYS[k % len(WAYS)] == "low" for k in range(number, 10, 2))
        assert [(pair["fixed"], pair["broke"]) for pair in moved[task].values()] == [(n, 0), (0, n)]
        assert [pair["lead"] for pair in moved[task].values()] == [n / 5, -n / 5]


def test_labels_where_the_ways_part(run_dir: Path) -> None:
    summary, labels = build_summary(run_dir), read_labels(run_dir / "iter_01/advantage/rollouts_01")
    for choice in summary["choices"]:
        (moments,) = choice["moments"]
        assert (moments["iteration"], moments["node"]) == (1, "iter_01/rollout")
        check_labels(moments, labels, 12, choice["task"])


def check_labels(moments: dict[str, Any], labels: Labels, episodes: int, task: str) -> None:
    """Against the labels of the frame of each of so many episodes."""
    for way, said in moments["taken"].items():
        numbers = [k for k in range(episodes) if WAYS[k % len(WAYS)] == way and TASKS[k % 2] == task]
        at = labels.lookup(numbers, [FRAME] * len(numbers))
        assert said["episodes"] == len(numbers)
        for key, column in (("value", "value"), ("advantage", "advantage"), ("positive", "indicator")):
            assert said[key] == pytest.approx(at[column].mean())
        assert said["ci95"][0] <= said["advantage"] <= said["ci95"][1]
    assert moments["p"] is None or 0 <= moments["p"] <= 1


def test_labels_of_the_demonstrations_where_the_ways_part(run_dir: Path, tmp_path: Path) -> None:
    """Before any experience and after it: whether it changed which way the labels prefer."""
    copy = shutil.copytree(run_dir, tmp_path / "demo", symlinks=True)
    labels = read_labels(copy / "iter_01/advantage/demonstrations")
    lengths = np.bincount(labels["episode_index"]).tolist()
    keys = ("episode_index", "task", "success", "steps")
    facts = [dict(zip(keys, (k, TASKS[k % 2], True, steps), strict=True)) for k, steps in enumerate(lengths)]
    (copy / "demonstrations/dataset/meta/recap.json").write_text(json.dumps({"episodes": facts}))
    record_ways(copy)
    shutil.copytree(copy / "iter_01/advantage", copy / "advantage")
    shutil.rmtree(copy / "advantage/rollouts_01")
    for choice in build_summary(copy)["choices"]:
        found = [(moments["iteration"], moments["node"]) for moments in choice["moments"]]
        assert found == [(0, "demonstrations"), (1, "demonstrations"), (1, "iter_01/rollout")]
        for moments in choice["moments"][:2]:
            check_labels(moments, labels, len(lengths), choice["task"])
        names = ["demonstrations, labelled in pre-training", "demonstrations, labelled in iteration 1"]
        sentences = choice_verdict(choice)[1:]
        assert all(name in sentence for name, sentence in zip(names, sentences, strict=False))


def test_which_way_the_labels_prefer() -> None:
    """A sentence that claims no more than the test does."""

    def said(p: float | None) -> str:
        way = {"episodes": 40, "value": -0.4, "advantage": 0.03, "ci95": [0.02, 0.04], "positive": 0.6}
        taken = {"large": way} | ({} if p is None else {"small": way | {"advantage": -0.03}})
        (sentence,) = choice_verdict(
            {"shift": None, "moments": [{"iteration": 2, "node": "iter_02/rollout", "taken": taken, "p": p}]}
        )
        return sentence.replace("\u00a0", " ")

    assert "large +0.030 [+0.020, +0.040], 60 % positive (n = 40); small −0.030" in said(0.001)
    assert said(0.001).endswith("the labels prefer large (p = 0.001).")
    assert said(0.2).endswith("the labels prefer neither (p = 0.2).")
    assert "prefer" not in said(None)


def test_pictures_show_the_frame_where_the_ways_part(run_dir: Path) -> None:
    rollouts = last_rollouts(run_dir, build_summary(run_dir))
    assert rollouts
    table = rollouts.table
    for number, task in enumerate(TASKS):
        for way, shown in moments_of_choice(rollouts, task).items():
            taken = [k for k in range(number, 12, 2) if WAYS[k % len(WAYS)] == way]
            unseen = [k for k in taken if k % 5 == 0]  # as report_run holds out
            assert [moment["episode"] for moment in shown] == [*unseen, *sorted({*taken} - {*unseen})][:CHOSEN]
            for moment in shown:
                rows = rollouts.rows(moment["episode"])
                assert moment["value"] == table["value"][rows[FRAME]]
                assert moment["positive"] == table["indicator"][rows[FRAME]]
                seen = np.asarray(Image.open(io.BytesIO(base64.b64decode(moment["images"][0])))).astype(float)
                time = FRAME / len(rows) * (1 if moment["success"] else 0.45)
                assert np.abs(seen - np.asarray(picture(time)).astype(float)).mean() < 8


@pytest.mark.parametrize("width", [80, 160])
def test_terminal_and_page_show_them(run_dir: Path, width: int) -> None:
    summary = build_summary(run_dir)
    text = printed(summary, width)
    assert re.search(r"rollouts of iteration 1 +6 +\d+ % +\d+ % +\d+ % +\d+ % +\d+ %", text)
    assert text.count("Mean advantage where the ways part") == 2
    page = write_html(run_dir, summary).read_text()
    figures = json.loads(page.partition('id="data">')[2].partition("</script>")[0])["figures"]
    assert {"shares-0", "successes-0", "shares-1", "successes-1"} <= set(figures)
    lines = [trace for trace in figures["shares-0"]["data"] if "lines" in trace["mode"]]
    sft, recap = (summary["choices"][0]["stages"][k]["taken"]["high"]["share"] for k in (0, 2))
    assert lines[0]["y"] == pytest.approx([100 * sft, 100 * recap])
    section = page.partition(f"<h2>Which way: {TASKS[1]}</h2>")[2].partition("</section>")[0]
    assert section.count("<figure") == len(moments_of(summary, run_dir, TASKS[1]))


def moments_of(summary: dict[str, Any], run: Path, task: str) -> list[dict[str, Any]]:
    rollouts = last_rollouts(run, summary)
    assert rollouts
    return [moment for shown in moments_of_choice(rollouts, task).values() for moment in shown]


def test_what_an_operator_finished_is_left_out(run_dir: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run_dir, tmp_path / "demo", symlinks=True)
    path = copy / "iter_01/rollout/dataset/meta/recap.json"
    content = json.loads(path.read_text())
    content["episodes"][0]["corrected_from"] = 3
    path.write_text(json.dumps(content))
    task, way = TASKS[0], str(WAYS[0])
    before, after = (next(c for c in build_summary(run)["choices"] if c["task"] == task) for run in (run_dir, copy))
    rollouts = [next(s for s in choice["stages"] if "rollout" in s["node"]) for choice in (before, after)]
    assert [stage["episodes"] for stage in rollouts] == [6, 5]
    assert rollouts[1]["taken"][way]["episodes"] == rollouts[0]["taken"][way]["episodes"] - 1
    assert after["moments"][0]["taken"][way]["episodes"] == before["moments"][0]["taken"][way]["episodes"] - 1


def test_runs_without_a_choice_show_nothing_of_it(run_dir: Path, tmp_path: Path) -> None:
    """Nor pictures where the frame was not recorded."""
    copy = shutil.copytree(run_dir, tmp_path / "demo", symlinks=True)
    recorded = copy / "iter_01/rollout/dataset/meta/recap.json"
    recorded.write_text(recorded.read_text().replace('"choice_frame": 7', '"choice_frame": null'))
    summary = build_summary(copy)
    assert [choice["moments"] for choice in summary["choices"]] == [[], []]
    page = write_html(copy, summary).read_text()
    assert "<h2>Which way" in page
    assert "Where the ways part" not in page
    for path in [*copy.rglob("result.json"), recorded]:
        path.write_text(re.sub(r'"choice": "\w+"', '"choice": null', path.read_text()))
    summary = build_summary(copy)
    assert summary["choices"] == []
    assert "Which way" not in write_html(copy, summary).read_text()
    assert "which way" not in printed(summary)
