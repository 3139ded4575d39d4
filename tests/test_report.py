"""The report: summary.json against numbers counted by hand, the table, report.html, and runs that lack pieces."""

from __future__ import annotations

import json
import os
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from report_run import TASKS, evaluate, gate, make_run, outcomes, printed
from scipy.stats import binomtest

from recap.report import build_summary, write_html, write_summary
from recap.report.__main__ import main
from recap.report.html.compare import config_table, read_runs, rows_of
from recap.report.verdict import alarm
from recap.utils.errors import RecapError

BEFORE, MIDDLE, AFTER = outcomes("1100000010"), outcomes("1110000000"), outcomes("1011111100")
ABLATIONS = {
    "negative_prompt": outcomes("0" * 10),
    "labels_on_demonstrations": outcomes("1011110000"),
    "continued_sft": outcomes("1100000000"),
}


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("outputs") / "demo", [BEFORE, MIDDLE, AFTER], ABLATIONS)


# ---------------------------------------------------------------------------------------------------- summary.json
def test_summary_numbers(run_dir: Path) -> None:
    summary = build_summary(run_dir)
    assert list(summary) == [
        *("name", "seed", "worse", "best", "advice", "policies", "ablations", "comparisons", "forgetting", "ladder"),
        *("controls", "choices", "gate", "advantage", "settings", "wall_seconds"),
    ]
    assert (summary["name"], summary["seed"]) == ("demo", 3)
    assert [p["eval"]["successes"] for p in summary["policies"]] == [3, 3, 7]
    assert [p["stage"] for p in summary["policies"]] == ["sft", "finetune", "finetune"]
    assert [p["data"]["rollouts"] for p in summary["policies"]] == [0, 12, 24]
    last = summary["policies"][2]
    assert last["checkpoint"] == "iter_02/policy/checkpoints/last"
    assert last["eval"] == {
        "episodes": 10,
        "successes": 7,
        "success_rate": 0.7,
        "ci95": pytest.approx([0.3968, 0.8922], abs=1e-4),  # Wilson's interval of 7 of 10
        "mean_steps_to_success": pytest.approx((37 + 39 + 37 + 38 + 39 + 37 + 38) / 7),
        "successes_per_hour": pytest.approx(7 * 36000 / (265 + 150)),
        "per_task": {TASKS[1]: {"episodes": 5, "successes": 3}, TASKS[0]: {"episodes": 5, "successes": 4}},
        "timeouts": 3,
        "prompt": "positive",
        "beta": 1.0,
        "outcomes": "iter_02/eval/result.json",
    }
    assert last["data"] == {"demonstrations": 15, "rollouts": 24}
    assert summary["wall_seconds"]["sft"] == 70.1
    assert list(summary["wall_seconds"])[:5] == ["demonstrations", "value", "sft", "sft/eval", "iter_01/rollout"]


def test_comparisons_pair_by_pair(run_dir: Path) -> None:
    found = {(c["before"], c["after"]): (c["fixed"], c["broke"]) for c in build_summary(run_dir)["comparisons"]}
    assert found == {
        (0, 1): (1, 1),
        (1, 2): (5, 1),
        (0, 2): (6, 2),
        ("labels_on_demonstrations", 2): (2, 0),
        ("continued_sft", 2): (6, 1),
        ("negative_prompt", 2): (7, 0),
    }
    p = next(c["mcnemar_p"] for c in build_summary(run_dir)["comparisons"] if c["before"] == "negative_prompt")
    assert p == pytest.approx(2 / 2**7)


def test_ablations_and_advantage(run_dir: Path) -> None:
    summary = build_summary(run_dir)
    assert [(a["name"], a["iteration"], a["trained"], a["eval"]["successes"]) for a in summary["ablations"]] == [
        ("continued_sft", 2, True, 2),
        ("labels_on_demonstrations", 2, True, 5),
        ("negative_prompt", 2, False, 0),
    ]
    assert [a["without_rollouts"] for a in summary["ablations"]] == [True, True, False]
    assert [(a["comparison"]["fixed"], a["comparison"]["broke"]) for a in summary["ablations"]] == [
        *((6, 1), (2, 0), (7, 0)),
    ]
    assert summary["ablations"][1]["comparison"]["lead"] == pytest.approx(0.2)
    for entry in summary["advantage"]:
        assert set(entry["epsilon"]) == set(TASKS)
        assert entry["wanted_positive"] == 0.3
        assert entry["achieved_positive"]["all"] == pytest.approx(0.3, abs=0.01)
        assert entry["achieved_positive"]["success"] > entry["achieved_positive"]["failure"]


def test_unfinished_stages_do_not_count(run_dir: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run_dir, tmp_path / "demo", symlinks=True)
    (copy / "iter_02" / "eval" / "manifest.json").unlink()
    summary = build_summary(copy)
    assert [p["eval"] is None for p in summary["policies"]] == [False, False, True]
    assert all(c["after"] == 1 for c in summary["comparisons"])


def test_worse_and_the_best_to_keep(tmp_path: Path) -> None:
    run = make_run(tmp_path / "demo", [BEFORE, AFTER, MIDDLE, BEFORE], {}, rollouts=2, videos=0)
    summary = write_summary(run)
    assert summary["best"] == {"iteration": 1, "checkpoint": "iter_01/policy/checkpoints/last"}
    assert (run / "best").resolve() == (run / "iter_01/policy/checkpoints/last").resolve()
    assert (summary["worse"]["iteration"], summary["worse"]["than"], summary["worse"]["sure"]) == (3, 1, False)
    assert {(c["before"], c["after"]) for c in summary["comparisons"]} == {(0, 1), (1, 2), (2, 3), (0, 3), (1, 3)}
    text = printed(summary, 100)
    assert text.index("may have got worse") < text.index("95 %")  # first of all
    assert text.index("What to try") > text.index("95 %")
    page = page_of(run)
    assert page.index('class="alarm"') < page.index('class="lead"') < page.index('class="advice"')
    (run / "iter_01/eval/manifest.json").unlink()
    write_summary(run)
    assert os.readlink(run / "best") == "iter_03/policy/checkpoints/last"  # the later one of equals


def test_what_is_called_best_by_others_is_left_alone(run_dir: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run_dir, tmp_path / "demo", ignore=shutil.ignore_patterns("best"))
    (copy / "best").mkdir()
    write_summary(copy)
    assert (copy / "best").is_dir()
    assert not (copy / "best").is_symlink()


def test_tasks_without_rollouts(run_dir: Path, tmp_path: Path) -> None:
    """Counted by hand: the odd episodes of BEFORE and AFTER are of the second task."""
    copy = shutil.copytree(run_dir, tmp_path / "demo", symlinks=True)
    for path in copy.glob("iter_*/rollout/dataset/meta/recap.json"):
        facts = json.loads(path.read_text())
        facts["episodes"] = [episode | {"task": TASKS[0]} for episode in facts["episodes"]]
        path.write_text(json.dumps(facts))
    lost = build_summary(copy)["forgetting"]
    fixed = sum(not b and a for b, a in list(zip(BEFORE, AFTER, strict=True))[1::2])
    broke = sum(b and not a for b, a in list(zip(BEFORE, AFTER, strict=True))[1::2])
    assert lost == {
        "tasks": [TASKS[1]],
        "before": 0,
        "after": 2,
        "episodes": 5,
        "lead": pytest.approx((fixed - broke) / 5),
        "fixed": fixed,
        "broke": broke,
        "mcnemar_p": pytest.approx(mcnemar_p(fixed, broke)),
    }
    page = page_of(copy)
    assert "not measurably forgotten" in page
    assert page.count(">no rollouts<") == 1
    assert build_summary(run_dir)["forgetting"] is None


def mcnemar_p(fixed: int, broke: int) -> float:
    return float(binomtest(fixed, fixed + broke).pvalue)


def test_what_an_ablation_changed(run_dir: Path, tmp_path: Path) -> None:
    """By the configurations of its stages, whatever the keys: an ablation may be any set of overrides."""
    copy = shutil.copytree(run_dir, tmp_path / "demo", symlinks=True)
    config = "role: policy\npolicy: {{indicator_dropout: {0}, finetune: {{indicator: {1}}}}}\n"
    (copy / "config.yaml").write_text(yaml.safe_dump(yaml.safe_load(config.format(0.3, "use")) | {"eval": {"beta": 1}}))
    (copy / "iter_02/policy/config.yaml").write_text(config.format(0.3, "use"))
    own = copy / "ablations/continued_sft/iter_02"
    (own / "policy/config.yaml").write_text(config.format(0.3, "ignore"))
    mine = shutil.copytree(own, copy / "ablations/mine/iter_02")
    (mine / "policy/config.yaml").write_text(config.format(0.1, "use"))
    (mine / "eval/config.yaml").write_text("stage: evaluate\nprompt: positive\nbeta: 2\nenv: {max_steps: 50}\n")
    (copy / "iter_02/eval/config.yaml").write_text("stage: evaluate\nprompt: positive\nbeta: 1\nenv: {max_steps: 50}\n")
    changes = {ablation["name"]: ablation["changes"] for ablation in build_summary(copy)["ablations"]}
    assert changes["mine"] == {"policy.indicator_dropout": 0.1, "eval.beta": 2}
    assert changes["continued_sft"] == {"policy.finetune.indicator": "ignore", "eval.beta": "–"}
    assert changes["negative_prompt"] == {"eval.prompt": "negative", "eval.beta": "–"}
    table = page_of(copy).partition("<h2>Differences of configuration</h2>")[2].partition("</section>")[0]
    assert "<td>use</td><td>ignore</td>" in table
    assert "Ablation: mine" in table


def test_an_ablation_of_another_iteration(run_dir: Path, tmp_path: Path) -> None:
    """It is compared with RECAP's policy of its own iteration: its last one, or SFT where it changes that alone."""
    copy = shutil.copytree(run_dir, tmp_path / "demo", symlinks=True)
    for place, wins in (("early/iter_01", AFTER), ("early/sft", BEFORE), ("pretrained/sft", AFTER)):
        evaluate(copy / "ablations" / place / "eval", wins, 40)
    summary = build_summary(copy)
    found = {ablation["name"]: ablation for ablation in summary["ablations"]}
    assert [(found[name]["iteration"], found[name]["eval"]["successes"]) for name in ("early", "pretrained")] == [
        *((1, 7), (0, 7)),
    ]
    pairs = {(pair["before"], pair["after"]): pair for pair in summary["comparisons"]}
    assert (pairs["early", 1]["fixed"], pairs["early", 1]["broke"]) == (1, 5)
    assert (pairs["pretrained", 0]["fixed"], pairs["pretrained", 0]["broke"]) == (2, 6)
    assert "early (iteration 1)" in printed(summary)
    assert "Ablations of SFT" in page_of(copy)


@pytest.mark.parametrize("old", ["controls", "keys"])
def test_a_run_of_an_earlier_version(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], old: str
) -> None:
    copy = shutil.copytree(run_dir, tmp_path / "demo", symlinks=True)
    if old == "controls":
        (copy / "iter_02/controls").mkdir()
    else:
        (copy / "config.yaml").write_text("name: demo\npi0: {size: tiny}\n")
    assert main([str(copy)]) == 1
    (told,) = capsys.readouterr().err.splitlines()
    assert "made by an earlier version" in told
    assert "git checkout 0123abc" in told


def test_gate_that_stopped_the_run(run_dir: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run_dir, tmp_path / "demo", symlinks=True)
    shutil.rmtree(copy / "ablations")
    for stage in ("policy", "eval", "gate"):
        shutil.rmtree(copy / "iter_02" / stage)
    gate(copy / "iter_02" / "gate", ["rank", "outcome_auc"])
    summary = build_summary(copy)
    assert [(g["iteration"], g["passed"]) for g in summary["gate"]] == [(1, True), (2, False)]
    assert [finding["try"] for finding in summary["advice"]][:2] == [
        ["value.finetune.steps", "value.use_state"],
        ["rollout.episodes (more)"],
    ]
    said = alarm(summary)
    assert said
    assert said.startswith("The value gate stopped iteration 2 before a policy was trained: 2 of 3 checks")
    page = page_of(copy)
    shown = page.partition("<h2>Value gate</h2>")[2].partition("</section>")[0]
    assert (shown.count("✓"), shown.count("✗"), shown.count('class="gate"')) == (2, 2, 2)
    assert "stopped the run" in shown


@pytest.mark.parametrize("content", ["", '{"episodes": [', "[]", '{"episodes": [], "fps": 10}'])
def test_damaged_result_is_named(run_dir: Path, tmp_path: Path, content: str) -> None:
    copy = shutil.copytree(run_dir, tmp_path / "demo", symlinks=True)
    (copy / "sft" / "eval" / "result.json").write_text(content)
    with pytest.raises(RecapError, match=r"sft/eval"):
        build_summary(copy)


def test_nothing_to_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RecapError, match="does not exist"):
        build_summary(tmp_path / "typo")
    assert main([str(tmp_path)]) == 1
    assert "no finished stage" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------- table


@pytest.mark.parametrize("width", [80, 120, 160])
def test_table_fits_the_terminal(run_dir: Path, width: int) -> None:
    text = printed(build_summary(run_dir), width)
    row = next(line for line in text.splitlines() if line.startswith(" iteration 2"))
    assert all(number in row for number in ("7/10", "70 %", "40–89 %", "37.9", "607", "30 %"))
    assert "…" not in text  # nothing was cut
    assert re.search(r"\+ labels and experience +5/10 .*\+30 +0\.38 *\n +through V ", text)
    assert re.search(r"\+ experience as data +7/10 .*\+20 +0\.5", text)
    assert re.search(r"last policy, prompted negative +0/10 .*\+70 +0\.016", text)


# ---------------------------------------------------------------------------------------------------- report.html
class WellFormed(HTMLParser):
    """Checks that tags nest, and collects what the page would load."""

    VOID = frozenset({"meta", "link", "br", "wbr", "img", "input", "hr"})

    def __init__(self) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loads += [value or "" for key, value in attrs if key in {"src", "href", "poster", "data"}]
        if tag not in self.VOID:
            self.stack.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag


def data_of(page: str) -> dict[str, Any]:
    return json.loads(page.partition('id="data">')[2].partition("</script>")[0])


def page_of(run: Path) -> str:
    return write_html(run, write_summary(run)).read_text()


def test_page_is_well_formed_and_self_contained(run_dir: Path) -> None:
    page = page_of(run_dir)
    parser = WellFormed()
    parser.feed(page)
    assert parser.stack == []
    assert all(load.startswith(("data:", "#")) for load in parser.loads)
    assert not re.search(r"https?://", page)
    assert page.count('<video data-video="take') == 4  # two initial states, SFT and the last policy side by side
    headings = ["Success rate", "Pair by pair", "By task", "Value over time", "Strongest moments", "Advantages and ε"]
    headings += ["Value gate", "Videos", "Training loss", "Differences of configuration", "Provenance"]
    for heading in headings:
        assert f"<h2>{heading}</h2>" in page
    data = data_of(page)
    assert [name for name in data["figures"] if "advantage" not in name and "trace" not in name] == [
        *("success", "ablations", "loss-policy", "loss-value"),
    ]
    assert all(trace["value"] and len(trace["value"]) == len(trace["advantage"]) for trace in data["traces"])
    assert {name for name in data["videos"] if name.startswith("trace")} == {
        f"trace-{k}" for k in range(len(data["traces"]))
    }
    assert "&lt;b&gt;&amp;amp;&lt;/b&gt;" in page  # the configuration is text, not markup


def test_page_without_the_optional_pieces(tmp_path: Path) -> None:
    bare = make_run(tmp_path / "bare", [BEFORE], {}, rollouts=2, videos=0)
    page = page_of(bare)
    WellFormed().feed(page)
    assert "Only SFT was evaluated" in page
    assert "<h2>Videos</h2>" not in page
    assert "<h2>Pair by pair</h2>" not in page
    for folder in ("sft/eval", "demonstrations"):
        shutil.rmtree(bare / folder)
    (bare / "config.yaml").unlink()
    assert "No policy has been evaluated yet" in page_of(bare)
    printed(build_summary(bare))


def test_page_without_frames_or_thresholds(run_dir: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run_dir, tmp_path / "demo", symlinks=True)
    shutil.rmtree(copy / "iter_02" / "rollout" / "dataset")
    page = page_of(copy)
    assert data_of(page)["traces"]
    assert "data-video" not in page.partition("<h2>Value over time</h2>")[2].partition("</section>")[0]
    assert "<h2>Strongest moments</h2>" not in page
    (copy / "iter_02" / "advantage" / "thresholds.json").unlink()
    with pytest.raises(RecapError, match=r"thresholds\.json"):
        build_summary(copy)


def test_runs_beside_each_other(run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "runs").mkdir()
    names = [tmp_path / "runs" / name for name in ("first", "second", "other_states")]
    make_run(names[0], [BEFORE, AFTER], {}, rollouts=2, videos=0)
    make_run(names[1], [BEFORE, MIDDLE], {}, rollouts=2, videos=0)
    make_run(names[2], [BEFORE[:8], AFTER[:8]], {}, rollouts=2, videos=0)
    config = names[1] / "config.yaml"
    config.write_text(config.read_text().replace("beta: 1.0", "beta: 1.5"))
    rows = {(row["run"], row["policy"]): row for row in rows_of(read_runs(names))}
    assert [row["eval"]["successes"] for row in rows.values()] == [3, 7, 3, 3, 2, 7]
    second = rows["second", "iteration 1"]
    fixed = sum(not a and m for a, m in zip(AFTER, MIDDLE, strict=True))
    broke = sum(a and not m for a, m in zip(AFTER, MIDDLE, strict=True))
    assert second["lead"] == pytest.approx(-0.4)
    p = pytest.approx(mcnemar_p(fixed, broke))
    assert second["paired"] == {"lead": pytest.approx(-0.4), "fixed": fixed, "broke": broke, "mcnemar_p": p}
    assert rows["second", "SFT"]["paired"] == {"lead": 0, "fixed": 0, "broke": 0, "mcnemar_p": 1.0}
    assert rows["other_states", "iteration 1"]["paired"] is None
    assert config_table(read_runs(names)) == [("rollout.beta", [1.0, 1.5, 1.0])]
    assert main([str(name) for name in names]) == 0
    printed = capsys.readouterr().out
    assert str(tmp_path / "runs" / "comparison.html") in printed
    assert re.search(r"rollout\.beta +1\.0 +1\.5 +1\.0", printed)
    page = (tmp_path / "runs" / "comparison.html").read_text()
    WellFormed().feed(page)
    assert len(data_of(page)["figures"]["runs"]["data"]) == 3
    assert main([str(names[0]), str(tmp_path / "typo")]) == 1
    assert "typo does not exist" in capsys.readouterr().err


def test_command_rebuilds_both(run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = shutil.copytree(run_dir, tmp_path / "demo", symlinks=True)
    assert main([str(copy)]) == 0
    assert json.loads((copy / "summary.json").read_text()) == build_summary(copy)
    assert (copy / "report.html").is_file()
    assert not list(copy.glob("*.tmp"))
    assert "iteration 2" in capsys.readouterr().out
