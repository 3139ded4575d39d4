"""Run directories of strangers: what they hold is read as numbers and as text."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import report_run
import torch
from hostile_helpers import Runs, edit, refused

from recap.policies.folder import OPTIMIZER
from recap.report import write_html, write_summary
from recap.stages.value_inference import _joined
from recap.storage.manifest import check
from recap.storage.readers import read_config
from recap.training.distributed import Store
from recap.utils.errors import RecapError


def test_a_report_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Words of a run are text on its page, wherever they stand."""
    evil = "</script></style><script>alert(1)</script>\"'><img src=x onerror=alert(1)>"
    monkeypatch.setattr(report_run, "TASKS", (evil, report_run.TASKS[1]))
    wins = report_run.outcomes("1100000010")
    directory = report_run.make_run(tmp_path / "demo", [wins], {})
    for path in directory.rglob("manifest.json"):
        edit(path, lambda manifest: manifest.update(git_commit=evil, host=evil, versions={"torch": evil}))
    page = write_html(directory, write_summary(directory)).read_text()
    assert "&lt;img src=x onerror=alert(1)&gt;" in page
    assert not re.search(r"<img src=x|<script>alert|</script></style>", page)


def test_a_training_is_continued_from_numbers_alone(tmp_path: Path) -> None:
    torch.save({"state": Runs(tmp_path / "marker")}, tmp_path / OPTIMIZER)
    model = torch.nn.Linear(1, 1)
    with pytest.raises(RecapError) as caught:
        Store(model, torch.optim.AdamW(model.parameters())).resume(tmp_path)
    refused(caught.value, str(tmp_path / OPTIMIZER), "holds posix.mkdir, where only numbers are allowed")
    assert not (tmp_path / "marker").exists()
    torch.load(tmp_path / OPTIMIZER, weights_only=False)
    assert (tmp_path / "marker").is_dir(), "the attempt is real"


def test_values_are_numbers_alone(tmp_path: Path) -> None:
    from data_helpers import EPISODES

    class Frames:
        name = "demonstrations"

        def __len__(self) -> int:
            return len(EPISODES)

    np.save(tmp_path / "demonstrations_000000000.npy", np.array([Runs(tmp_path / "marker")], object), allow_pickle=True)
    with pytest.raises(RecapError, match=r"cannot be read \(Object arrays cannot be loaded.*Fix: delete it"):
        _joined(tmp_path, Frames())  # type: ignore[arg-type]
    assert not (tmp_path / "marker").exists()


def test_a_configuration_makes_no_objects(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(f"a: !!python/object/apply:os.mkdir ['{tmp_path / 'marker'}']\n")
    with pytest.raises(RecapError) as caught:
        check(tmp_path, {"a": 1})
    refused(caught.value, "config.yaml cannot be read", "could not determine a constructor")
    assert not (tmp_path / "marker").exists()


def test_a_configuration_of_a_run_is_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """OmegaConf would put the environment, and so keys, in the place of this."""
    monkeypatch.setenv("MY_KEY", "hunter2")
    text = "seed: ${oc.env:MY_KEY}\n_target_: os.system\ntracking: {project: '${oc.env:MY_KEY}'}\n"
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(RecapError) as caught:
        check(tmp_path, {"seed": 0, "tracking": {"project": "recap"}})
    refused(caught.value, "seed", "${oc.env:MY_KEY}")
    assert "hunter2" not in str(caught.value)
    with pytest.raises(RecapError, match=r"seed is '\$\{oc\.env:MY_KEY\}' instead of a whole number"):
        read_config(tmp_path)
    assert (tmp_path / "config.yaml").read_text() == text
