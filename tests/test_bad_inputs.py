"""What a user can get wrong, and what can break: one clear error on one screen, and nothing earlier is touched."""

from __future__ import annotations

import fcntl
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_run import ROOT, RUN, TINY, Outcome, read, run, snapshot, tiny

LAST = "checkpoints/last"
SFT, POLICY = f"{RUN}/sft/{LAST}", f"{RUN}/iter_01/policy/{LAST}"
FINETUNE = ("train", "policy=pi0", "data=moka+rollouts", "stage=finetune")
OWN_DATA = ("data.demonstrator=null", "+data.sources.mine.root=mine", "name=own")


def check(seen: Outcome, code: int, *says: str) -> None:
    """One error, on one screen, that says all this."""
    assert seen.code == code, seen.out + seen.err
    assert "Traceback" not in seen.err
    assert seen.err.count("error:") == 1, seen.err
    message = seen.err[seen.err.index("error:") :]
    assert len(message.strip().splitlines()) <= 20, message
    assert len(message) < 2000, message
    for text in says:
        assert text in message, message


# ---------------------------------------------------------------------------------------------------- what is typed
@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("loop experiment=demo", ["iterations: missing", "+iterations=2"]),
        ("loop experiment=demo +iterations=0", ["iterations=0", "at least 1"]),
        ("loop experiment=demo +iterations=two", ["iterations=two", "whole number"]),
        ("loop experiment=demo +iterations=1 +typo=1", ["typo=1", "no such key"]),
        ("loop experiment=demo +iterations=1 sede=1", ["sede=1", "seed"]),
        ("loop experiment=demo +iterations=1 policy.sft.learning_rat=1e-3", ["policy.sft.learning_rate"]),
        ("loop experiment=demo +iterations=1 policy.sft.steps=many", ["policy.sft.steps=many", "whole number"]),
        ("loop experiment=demo +iterations=1 advantage.threshold=tasks", ["threshold=tasks", "per_task, all"]),
        ("loop experiment=demo +iterations=1 advantage.positive_fraction=1.3", ["positive_fraction=1.3"]),
        ("loop experiment=demo +iterations=1 env=libero", ["env=libero", "data=libero"]),
        ("loop experiment=dmeo +iterations=1", ["experiment=dmeo", "demo"]),
        ("loop experiment=demo +iterations=1 rollout.episodes=0", ["rollout.episodes=0", "at least 1"]),
        ("loop experiment=demo +iterations=1 data.demonstrator.episodes=0", ["data.demonstrator.episodes=0"]),
        ("eval experiment=demo", ["checkpoint: missing", "checkpoint="]),
        ("eval experiment=demo checkpoint=x episodes=0", ["episodes=0", "at least 1"]),
        ("eval experiment=demo checkpoint=x policy=value", ["policy=value", "advantage.py"]),
        ("train experiment=demo stage=sft data=moka+rollouts", ["stage=sft", "stage=finetune"]),
        ("train experiment=demo device=tpu", ["device=tpu", "auto, cpu, cuda, mps"]),
        ("advantage experiment=demo advantage.n_step=0.5", ["advantage.n_step=0.5", "whole number"]),
    ],
)
def test_a_wrong_command_line_starts_nothing(command: str, says: list[str], tmp_path: Path) -> None:
    entry, *overrides = command.split(" ")
    check(run(entry, *overrides, cwd=tmp_path), 2, *says)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("command", "code", "says"),
    [
        (["loop.py", "experiment=demo", "+iterations=1", "policy.stf.steps=3"], 2, "policy.sft.steps"),
        (["eval.py", "experiment=demo", "checkpoint=outputs/none"], 1, "outputs/none: there is no such folder"),
    ],
)
def test_a_real_process_ends_in_one_error(command: list[str], code: int, says: str, tmp_path: Path) -> None:
    line = [sys.executable, str(ROOT / command[0]), *command[1:]]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    check(Outcome(done.returncode, done.stdout, done.stderr), code, says)
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------------------------------------- what is there
def refuses(work: Path, entry: str, *overrides: str, says: list[str], settings: list[str] | None = None) -> None:
    """The command fails as it should, and every file that was there is as it was."""
    before = snapshot(work)
    check(run(entry, *(TINY if settings is None else settings), *overrides, cwd=work), 1, *says)
    after = snapshot(work)
    assert {name: after.get(name) for name in before} == before
    made = {name for name in after.keys() - before.keys() if not name.endswith(("config.yaml", "log.txt"))}
    assert not [name for name in made if name.endswith("manifest.json")], "nothing passes for finished"


def cut(path: Path, keep: float = 0.5) -> None:
    data = path.resolve().read_bytes()
    path.resolve().write_bytes(data[: int(len(data) * keep)])


def flip(path: Path) -> None:
    """One bit in the middle, as a dying disk does."""
    data = bytearray(path.resolve().read_bytes())
    data[len(data) // 2] ^= 1
    path.resolve().write_bytes(bytes(data))


Damage = Callable[[Path], Any]


@pytest.mark.parametrize(
    ("file", "damage", "says"),
    [
        (f"sft/{LAST}/model.safetensors", cut, ["model.safetensors has", "bytes instead of", "stage=sft"]),
        (f"sft/{LAST}/model.safetensors", flip, ["model.safetensors was changed", "SHA-256"]),
        (f"sft/{LAST}/config.json", Path.unlink, ["config.json is missing", "stage=sft"]),
        (f"sft/{LAST}/policy_preprocessor.json", flip, ["policy_preprocessor.json was changed"]),
        ("sft/manifest.json", cut, ["sft/manifest.json is damaged", "delete outputs/demo_small/sft"]),
        ("sft/manifest.json", lambda path: path.write_text("[]"), ["sft/manifest.json is damaged"]),
        ("demonstrations/dataset/data/chunk-000/file-000.parquet", cut, ["file-000.parquet has", "bytes instead of"]),
        ("demonstrations/dataset/data/chunk-000/file-000.parquet", flip, ["file-000.parquet was changed"]),
        ("demonstrations/dataset/meta/info.json", Path.unlink, ["info.json is missing"]),
        ("iter_01/advantage/thresholds.json", Path.unlink, ["thresholds.json is missing", "python advantage.py"]),
        ("iter_01/advantage/demonstrations/advantages.parquet", cut, ["advantages.parquet has", "python advantage.py"]),
    ],
)
def test_damage_to_a_finished_stage_is_found_before_it_is_used(
    work: Path, file: str, damage: Damage, says: list[str]
) -> None:
    shutil.rmtree(work / RUN / "iter_01/policy")
    damage(work / RUN / file)
    refuses(work, *FINETUNE, says=says)


@pytest.mark.parametrize("file", ["iter_01/eval/result.json", f"value/{LAST}/model.safetensors", "value/manifest.json"])
def test_damage_is_found_even_when_nothing_is_to_do(work: Path, file: str) -> None:
    cut(work / RUN / file)
    refuses(work, "loop", "+iterations=1", says=[file.replace("last", "0000004"), "Fix"])


def test_a_damaged_run_configuration(work: Path) -> None:
    (work / RUN / "config.yaml").write_text("seed: [")
    refuses(work, "loop", "+iterations=1", says=["outputs/demo_small/config.yaml cannot be read"])


def test_an_unwritable_report(work: Path) -> None:
    (work / RUN / "report.html").unlink()
    (work / RUN / "report.html").mkdir()
    refuses(work, "loop", "+iterations=1", says=["cannot write", "report.html"])


def test_a_run_of_an_earlier_version(work: Path) -> None:
    """Its keys had other names, all over: it names what still continues it."""
    path, commit = work / RUN / "config.yaml", read(work / RUN / "sft/manifest.json")["git_commit"]
    path.write_text(path.read_text().replace("\npolicy:", "\npi0:"))
    version = f"git checkout {commit.removesuffix('-dirty')} to read it" if commit else "check out the commit"
    says = [f"{RUN} was made by an earlier version (pi0: in its config.yaml)", version, "name=<another>"]
    refuses(work, "loop", "+iterations=1", says=says)


def test_a_busy_run_directory(work: Path) -> None:
    shutil.rmtree(work / RUN / "iter_01/eval")
    (work / RUN / "iter_01/eval").mkdir()
    with (work / RUN / "iter_01/eval/.lock").open("w") as file:
        file.write("process 4711 on another machine")
        file.flush()
        fcntl.flock(file, fcntl.LOCK_EX)
        says = ["iter_01/eval is busy: process 4711 on another machine", "Fix: wait"]
        refuses(work, "loop", "+iterations=1", says=says)
    assert tiny("loop", "+iterations=1", cwd=work).code == 0


def test_a_missing_stage_names_its_command(work: Path) -> None:
    shutil.rmtree(work / RUN / "iter_01")
    says = ["iter_01/value_inference needs iter_01/value", "`python train.py policy=value stage=finetune iteration=1`"]
    refuses(work, "advantage", "data=moka+rollouts", says=says)
    says = ["iter_01/value needs iter_01/rollout", "`python eval.py record=true checkpoint=…/sft/checkpoints/last`"]
    refuses(work, "train", "policy=value", "data=moka+rollouts", "stage=finetune", says=says)


# ---------------------------------------------------------------------------------------------------- by hand
def edit(path: Path, change: Callable[[Any], Any]) -> None:
    content = read(path)
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (shutil.rmtree, ["checkpoint=mine: there is no such folder"]),
        (lambda f: (f / "model.safetensors").unlink(), ["checkpoint=mine: model.safetensors missing"]),
        (lambda f: cut(f / "model.safetensors"), ["mine/model.safetensors: truncated or damaged"]),
        (lambda f: (f / "config.json").write_text("{"), ["checkpoint=mine: config.json is damaged"]),
        (lambda f: edit(f / "config.json", lambda c: c.update(type="act")), ["is a 'act', not a 'recap_pi0'"]),
        (lambda f: edit(f / "config.json", lambda c: c.update(chunk_size="x")), ["mine: config.json cannot be read"]),
        (lambda f: edit(f / "config.json", lambda c: c["vlm"].update(width=32)), ["weights do not fit", "shape"]),
        (lambda f: (f / "policy_preprocessor.json").write_text("{"), ["mine: its processors cannot be read"]),
        (lambda f: (f / "policy_postprocessor.json").unlink(), ["mine: its processors cannot be read"]),
    ],
)
def test_a_bad_checkpoint(work: Path, damage: Damage, says: list[str]) -> None:
    shutil.copytree(work / SFT, work / "mine")
    damage(work / "mine")
    refuses(work, "eval", "checkpoint=mine", says=says)


def test_checkpoints_of_the_wrong_kind(work: Path) -> None:
    value = f"{RUN}/iter_01/value"
    refuses(work, "eval", f"checkpoint={value}/{LAST}", says=["'recap_value', not a 'recap_pi0'", "policy"])
    refuses(work, "advantage", f"checkpoint={POLICY}", says=["'recap_pi0', not a 'recap_value'"])
    refuses(work, "eval", f"checkpoint={RUN}", says=["config.json and model.safetensors missing", "/checkpoints/"])


def test_not_the_environment_of_the_checkpoint(work: Path) -> None:
    """Another robot's policy: its state has a dimension less."""
    shutil.copytree(work / SFT, work / "mine")
    edit(work / "mine/config.json", lambda c: c["input_features"]["observation.state"].update(shape=[7]))
    refuses(work, "eval", "checkpoint=mine", says=["observation.state", "7", "8"])
    edit(work / "mine/config.json", lambda c: c["output_features"]["action"].update(shape=[6]))
    edit(work / "mine/config.json", lambda c: c["input_features"]["observation.state"].update(shape=[8]))
    refuses(work, "eval", "checkpoint=mine", "name=x", says=["action", "6", "7"])


# ---------------------------------------------------------------------------------------------------- data of one's own
def columns(change: Callable[[pa.Table], pa.Table]) -> Damage:
    """Rewrites the frames of a data set."""

    def damage(root: Path) -> None:
        path = root / "data/chunk-000/file-000.parquet"
        pq.write_table(change(pq.read_table(path, partitioning=None)), path)

    return damage


def vectors(key: str, change: Callable[[np.ndarray], np.ndarray]) -> Damage:
    """info.json tells their size."""

    def damage(root: Path) -> None:
        def replace(table: pa.Table) -> pa.Table:
            array = change(np.stack(table[key].to_pylist()).astype(np.float32))
            edit(root / "meta/info.json", lambda info: info["features"][key].update(shape=[array.shape[1]]))
            return table.set_column(table.column_names.index(key), key, pa.array(list(array)))

        columns(replace)(root)

    return damage


def nan(array: np.ndarray) -> np.ndarray:
    array[7, 2] = np.nan
    return array


def no_pixels(table: pa.Table) -> pa.Table:
    key = "observation.images.image"
    broken = [{"bytes": b"no PNG", "path": image["path"]} for image in table[key].to_pylist()]
    return table.set_column(table.column_names.index(key), key, pa.array(broken, table.schema.field(key).type))


def without_camera(root: Path) -> None:
    edit(root / "meta/info.json", lambda info: info["features"].pop("observation.images.image2"))


def without_action(root: Path) -> None:
    edit(root / "meta/info.json", lambda info: info["features"].pop("action"))


def old_version(root: Path) -> None:
    edit(root / "meta/info.json", lambda info: info.update(codebase_version="v2.1"))


def unknown_outcomes(root: Path) -> None:
    (root / "meta/recap.json").unlink()
    edit(root / "meta/info.json", lambda info: info["features"].pop("next.success"))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (shutil.rmtree, ["(mine): there is no such folder"]),
        (lambda root: (root / "meta/info.json").unlink(), ["no meta/info.json"]),
        (lambda root: (root / "meta/info.json").write_text('{"fps": '), ["meta/info.json is damaged"]),
        (lambda root: cut(root / "data/chunk-000/file-000.parquet"), ["file-000.parquet is damaged or truncated"]),
        (lambda root: shutil.rmtree(root / "data"), ["data set 'mine'", "holds no frames"]),
        (lambda root: (root / "meta/tasks.parquet").unlink(), ["meta/tasks.parquet"]),
        (old_version, ["v2.1", "convert"]),
        (vectors("observation.state", nan), ["observation.state is not finite in episode 0, frame 7"]),
        (vectors("action", nan), ["action is not finite in episode 0, frame 7"]),
        (columns(lambda table: table.slice(0, len(table) - 5)), ["frames, but meta/episodes says"]),
        (columns(lambda table: table.drop_columns(["action"])), ["has no column ['action']"]),
        (vectors("action", lambda array: array[:, :6]), ["action of dimension 6", "env=moka has 7"]),
        (vectors("observation.state", lambda array: array[:, :7]), ["observation.state of dimension 7"]),
        (without_action, ["no ['action']"]),
        (without_camera, ["cameras", "image2"]),
        (lambda root: edit(root / "meta/info.json", lambda info: info.update(fps=20)), ["fps 20"]),
        (unknown_outcomes, ["which episodes succeeded", "all_succeed=true"]),
    ],
)
def test_bad_data_stops_before_the_first_stage(work: Path, damage: Damage, says: list[str]) -> None:
    shutil.copytree(work / RUN / "demonstrations/dataset", work / "mine")
    damage(work / "mine")
    refuses(work, "loop", "+iterations=1", *OWN_DATA, says=says)
    assert not (work / "outputs/own").exists()


def test_broken_images(work: Path) -> None:
    shutil.copytree(work / RUN / "demonstrations/dataset", work / "mine")
    columns(no_pixels)(work / "mine")
    refuses(work, "train", *OWN_DATA, says=["image 0 cannot be decoded"])


# ---------------------------------------------------------------------------------------------------- training
@pytest.mark.parametrize("policy", ["pi0", "value"])
def test_a_loss_that_is_not_finite(work: Path, policy: str) -> None:
    role, stage = ("policy", "sft") if policy == "pi0" else ("value", "value")
    rate, own = f"{role}.sft.learning_rate=1e30", work / "outputs/diverges" / stage
    shutil.copytree(work / RUN / "demonstrations", own.parent / "demonstrations")
    refuses(work, "train", f"policy={policy}", "name=diverges", rate, says=["at step", "learning_rate (1e+30)"])
    assert "RecapError" in (own / "log.txt").read_text(), "the log has the traceback"


def test_a_device_that_is_not_there(work: Path) -> None:
    import torch

    device = "mps" if torch.cuda.is_available() else "cuda"
    refuses(work, "train", "name=elsewhere", f"device={device}", says=[f"device={device}", "Choices here: cpu"])


def test_weights_that_are_not_there(work: Path) -> None:
    (work / "empty").mkdir()
    says = ["policy.pretrained=empty: config.json and model.safetensors missing"]
    refuses(work, "train", "name=other", "policy.pretrained=empty", says=says)
    says = ["policy.pretrained=nobody/nothing: not on this machine", "hf download nobody/nothing"]
    refuses(work, "train", "name=other", "policy.pretrained=nobody/nothing", says=says)


def test_an_unknown_task(tmp_path: Path) -> None:
    says = ["make tea", "put the moka pot on the stove"]
    refuses(tmp_path, "loop", "+iterations=1", "env.tasks=['make tea']", says=says)
