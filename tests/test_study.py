"""docs/results.md from finished runs: every number against one counted by hand."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml
from PIL import Image
from report_run import make_run, outcomes
from test_ladder import run as ladder

from recap.report import build_summary, write_summary
from recap.study import main, write_results
from recap.utils.errors import RecapError

SFT = [outcomes("1100000010"), outcomes("1000000000")]
LAST = [outcomes("1011111100"), outcomes("1110000000")]
ALONE = [outcomes("1011110000"), outcomes("1111000000")]
BOTH = ["put the moka pot on the stove", "put both moka pots on the stove"]  # as report_run has them, in turn


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seeds of two tasks, of the second of which no rollouts were collected."""
    study = tmp_path_factory.mktemp("made") / "study"
    for seed, (sft, last, alone) in enumerate(zip(SFT, LAST, ALONE, strict=True), 1):
        run = make_run(study / f"seed={seed}", [sft, last], {"labels_on_demonstrations": alone, "positive_only": alone})
        config = {"name": "study", "env": {"tasks": BOTH, "fps": 10}, "rollout": {"tasks": BOTH[:1]}}
        (run / "config.yaml").write_text(yaml.safe_dump(config))
        write_summary(run, build_summary(run))
    return study


@pytest.fixture(scope="module")
def docs(study: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    docs = tmp_path_factory.mktemp("docs")
    write_results([study], docs)
    return docs


@pytest.fixture(scope="module")
def page(docs: Path) -> str:
    return (docs / "results.md").read_text()


def test_what_is_written(docs: Path) -> None:
    names = ["study.png", "study_seed_1.json", "study_seed_2.json"]
    assert sorted(path.name for path in (docs / "results").iterdir()) == names
    solved = json.loads((docs / "results/study_seed_1.json").read_text())["solved"]
    assert solved["SFT"] == "1100000010"
    assert solved["RECAP, iteration 1"] == "1011111100"
    with Image.open(docs / "results/study.png") as image:
        assert image.width > 500
        assert len(image.convert("RGB").getcolors(1 << 20) or []) > 50, "something is drawn"


def test_other_experiments_stay_on_the_page(docs: Path, study: Path, tmp_path: Path) -> None:
    shutil.copytree(docs, tmp_path / "docs")
    alone = (docs / "results.md").read_text()
    other = study.rename(study.with_name("another"))
    write_results([other], tmp_path / "docs")
    page = (tmp_path / "docs/results.md").read_text()
    assert page.count("# Results on") == 1
    assert page.index("# `experiment=another`") < page.index("# `experiment=study`")
    assert page.endswith(alone[alone.index("# `experiment=study`") :])
    other.rename(study)
    write_results([study], tmp_path / "docs")
    assert (tmp_path / "docs/results.md").read_text() == page, "the same runs say the same, once"


def test_rates_of_each_seed_and_of_all(page: str) -> None:
    assert "2 seeds, 10 held-out initial states a seed" in page
    assert "Code: 0123abc." in page
    assert "| SFT | 30% | 10% | **20.0%** [8.1%, 41.6%] |" in page  # Wilson of 4 in 20
    assert "| RECAP, iteration 1 | 70% | 30% | **50.0%** [29.9%, 70.1%] |" in page


def test_leads_are_paired(page: str) -> None:
    # 6 fixed and 2 broke in seed 1, 2 fixed in seed 2: p = 2 · (1 + 10 + 45) / 1024. Two seeds: 20 and 40 are the ends.
    assert "## RECAP, iteration 1 against each policy, paired" in page
    assert "| SFT | +40, +20 | +30.0 [+20.0, +40.0] | 8 | 2 | 0.11 |" in page
    # 2 fixed in seed 1, 1 broke in seed 2: p = 2 · (1 + 3) / 8.
    assert "| same labels, demonstrations only | +20, -10 | +5.0 [-10.0, +20.0] | 2 | 1 | 1 |" in page


def test_the_steps_of_the_ladder(page: str) -> None:
    # seed 1: 5 against 3 of 10, 4 fixed and 2 broke; seed 2: 4 against 1, 3 fixed: p = 2 · (1 + 9 + 36) / 512.
    assert "## Step by step from SFT, paired" in page
    step = "more training, labels and experience through V"
    assert f"| same labels, demonstrations only | {step} | +20, +30 | +25.0 | 7 | 2 | 0.18 |" in page
    assert "| RECAP, iteration 1 | experience as data | +20, -10 | +5.0 | 2 | 1 | 1 |" in page


def test_corrections_are_held_against_demonstrations(tmp_path: Path) -> None:
    corrected = ladder(tmp_path / "study/seed=1", 30, corrections=36, as_many_demonstrations=31)
    (corrected / "config.yaml").write_text(yaml.safe_dump({"env": {"tasks": BOTH, "fps": 10}, "rollout": {}}))
    write_summary(corrected, build_summary(corrected))
    write_results([tmp_path / "study"], tmp_path / "docs")
    page = (tmp_path / "docs/results.md").read_text()
    assert "| RECAP + corrections | corrections | +15 | +15.0 | 6 | 0 | 0.031 |" in page
    assert "| RECAP + corrections | against RECAP + as many more demonstrations | +12 | +12.5 | 5 | 0 | 0.062 |" in page


def test_which_way(study: Path, tmp_path: Path) -> None:
    chose = shutil.copytree(study, tmp_path / "study")
    for run in chose.iterdir():
        path = run / "iter_01/eval/result.json"
        result = json.loads(path.read_text())
        for n, episode in enumerate(result["episodes"]):
            episode["choice"] = ("large", "small", None, "large")[n % 4]
        path.write_text(json.dumps(result))
    write_results([chose], tmp_path / "docs")
    page = (tmp_path / "docs/results.md").read_text()
    # large at 0, 3, 4, 7 and 8: it won 1, 1, 1, 1, 0 and 1, 0, 0, 0, 0; small at 1, 5 and 9: 0, 1, 0 and 1, 0, 0.
    assert "| policy | large: share, success of these | small: share, success of these | neither |" in page
    assert "| RECAP, iteration 1 | 50%, 50% | 30%, 33% | 20% |" in page
    assert "| SFT | 0%, – | 0%, – | 100% |" in page


def test_tasks_of_which_nothing_was_collected(page: str) -> None:
    assert "No rollouts were collected of: put both moka pots on the stove." in page
    # At odd positions SFT won 1 of 10 and the last iteration 4, of which 1 and 4 pairs differ: p = 2 · (1 + 5) / 32.
    assert "| SFT | 30.0% [11%, 60%] | 10.0% [2%, 40%] |" in page
    assert "fixed 4 and broke 1 initial states against SFT (p = 0.38): no loss is shown." in page


def test_a_folder_without_runs_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RecapError, match="make study"):
        write_results([tmp_path], tmp_path / "docs")
    assert main([str(tmp_path), str(tmp_path / "docs")]) == 1
    assert not (tmp_path / "docs").exists()
    assert "make study" in capsys.readouterr().err
