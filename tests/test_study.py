"""docs/results.md from finished runs: every number against one counted by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
from report_run import make_run, outcomes

from recap.errors import RecapError
from recap.report import build_summary, write_summary
from recap.study import main, write_results

SFT = [outcomes("1100000010"), outcomes("1000000000")]
LAST = [outcomes("1011111100"), outcomes("1110000000")]
CONTROL = [outcomes("1011110000"), outcomes("1111000000")]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    study, docs = tmp_path_factory.mktemp("study"), tmp_path_factory.mktemp("docs")
    for seed, (sft, last, control) in enumerate(zip(SFT, LAST, CONTROL, strict=True), 1):
        run = make_run(study / f"seed={seed}", [sft, last], {"labels_on_demonstrations": control})
        write_summary(run, build_summary(run))
    write_results(study, docs)
    assert sorted(path.name for path in (docs / "results").iterdir()) == ["seed_1.json", "seed_2.json"]
    return (docs / "results.md").read_text()


def test_rates_of_each_seed_and_of_all(page: str) -> None:
    assert "2 seeds" in page
    assert "10 held-out initial states a seed" in page
    assert "Code: 0123abc." in page
    assert "| SFT | 30% | 10% | **20.0%** [8.1%, 41.6%] |" in page  # Wilson of 4 in 20
    assert "| RECAP, iteration 1 | 70% | 30% | **50.0%** [29.9%, 70.1%] |" in page


def test_leads_are_paired(page: str) -> None:
    # 6 fixed and 2 broke in seed 1, 2 fixed in seed 2: p = 2 · (1 + 10 + 45) / 1024. Student: 30 ± 12.706 · 10.
    assert "| SFT | +40, +20 | +30.0 [-97.1, +157.1] | 8 | 2 | 0.11 |" in page
    # 2 fixed in seed 1, 1 broke in seed 2: p = 2 · (1 + 3) / 8.
    assert "| same labels, demonstrations only | +20, -10 | +5.0 [-185.6, +195.6] | 2 | 1 | 1 |" in page


def test_a_folder_without_runs_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RecapError, match="make study"):
        write_results(tmp_path, tmp_path / "docs")
    assert main([str(tmp_path), str(tmp_path / "docs")]) == 1
    assert not (tmp_path / "docs").exists()
    assert "make study" in capsys.readouterr().err
