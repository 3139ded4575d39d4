"""A run whose files were damaged or edited: the report names the file, and what is wrong in it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from report_run import make_run, outcomes

from recap.report import build_summary
from recap.report.__main__ import main
from recap.utils.errors import RecapError


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    wins = [outcomes("1100"), outcomes("1110")]
    return make_run(tmp_path_factory.mktemp("outputs") / "demo", wins, {}, rollouts=2, videos=0)


def replaced(content: Any, place: tuple[str | int, ...], value: object) -> Any:
    """The same JSON with something else at a place; nothing there for `...`."""
    if not place:
        return value
    head, *rest = place
    changed = list(content) if isinstance(content, list) else dict(content)
    if value is ... and not rest:
        del changed[head]
    else:
        changed[head] = replaced(changed[head], tuple(rest), value)
    return changed


@pytest.mark.parametrize(
    ("file", "place", "value", "says"),
    [
        ("iter_01/gate/gate.json", ("checks",), ..., "checks is missing"),
        ("iter_01/gate/gate.json", ("checks", 1, "limit"), 7, "checks[1].limit is 7 instead of text"),
        ("iter_01/gate/gate.json", ("checks", 0), "x", "checks[0] is 'x' instead of an object"),
        ("iter_01/gate/gate.json", ("passed",), float("nan"), "NaN is no number"),
        (
            "sft/eval/result.json",
            ("episodes", 3, "steps"),
            -1,
            "episodes[3].steps is -1 instead of a whole number from 0",
        ),
        ("sft/eval/result.json", ("fps",), 0, "fps is 0 instead of a number above 0"),
        ("sft/eval/result.json", ("episodes", 0, "success"), "yes", "success is 'yes' instead of true or false"),
        ("sft/eval/result.json", ("episodes", 0, "initial_state"), 999, "cannot be paired"),
        ("iter_01/rollout/dataset/meta/recap.json", ("episodes", 0, "task"), ..., "episodes[0].task is missing"),
        ("iter_01/rollout/dataset/meta/info.json", ("total_episodes",), "many", "total_episodes is 'many' instead of"),
        ("value/manifest.json", ("inputs",), {"data": {}}, "inputs.data.sha256 is missing"),
        ("value/manifest.json", (), [], "it is [] instead of an object"),
        ("iter_01/advantage/thresholds.json", ("n_step",), 1.5, "n_step=1.5 should be a valid integer"),
        (
            "iter_01/advantage/thresholds.json",
            ("achieved_positive",),
            None,
            "achieved_positive=None should be an object",
        ),
        ("config.yaml", (), "x", "it is 'x' instead of an object"),
        ("sft/eval/config.yaml", ("env",), 7, "env is 7 instead of an object"),
    ],
)
def test_a_damaged_file_is_named(
    run_dir: Path, capsys: pytest.CaptureFixture[str], file: str, place: tuple[str | int, ...], value: Any, says: str
) -> None:
    """One line with the file, what is wrong in it and what to do, whatever was damaged and however."""
    path = run_dir / file
    before = path.read_bytes()
    content = yaml.safe_load(before)  # of which JSON is a part
    path.write_text(json.dumps(replaced(content, place, value)))
    try:
        assert main([str(run_dir)]) == 1
    finally:
        path.write_bytes(before)
    (told,) = capsys.readouterr().err.splitlines()
    assert says in told
    assert str(path) in told


@pytest.mark.parametrize("damage", [b"", b'{"passed": ', b"\xff\xfe", None])
def test_what_is_no_json_at_all(run_dir: Path, tmp_path: Path, damage: bytes | None) -> None:
    stage = tmp_path / "run/iter_01/gate"
    shutil.copytree(run_dir / "sft", tmp_path / "run/sft")
    shutil.copytree(run_dir / "iter_01/gate", stage)
    (stage / "gate.json").unlink()
    if damage is None:
        (stage / "gate.json").mkdir()
    else:
        (stage / "gate.json").write_bytes(damage)
    with pytest.raises(RecapError, match=r"iter_01/gate/gate\.json") as seen:
        build_summary(tmp_path / "run")
    assert damage is None or f"delete the stage directory {stage} and run the loop again" in str(seen.value)
