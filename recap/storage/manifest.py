"""The run directory: a manifest marks a stage as finished, config.yaml holds its values, a lock keeps others out.

A stage directory holds config.yaml (written first), its results, and manifest.json (written last, by rename). The
manifest lists every result with its size and SHA-256, so a damaged or exchanged file is found before a later stage
reads it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from recap.utils.errors import RecapError
from recap.utils.files import write_text
from recap.utils.ranks import Share, process
from recap.utils.shapes import COUNT, misfit

MANIFEST, CONFIG, LOCK, SHARES, COMMIT = "manifest.json", "config.yaml", ".lock", ".shares", "COMMIT"
JOB = "job"  # of a stage: what its jobs on a cluster read and write
INPUTS = ".inputs.json"  # of a stage that has begun: role -> digest of what it reads
PACKAGES = ("torch", "lerobot", "transformers", "accelerate", "mujoco", "numpy")
# How a stage went. These are no results: no stage reads them, and they differ between equal runs.
RECORDS = {MANIFEST, CONFIG, "log.txt", "metrics.jsonl", "episodes.jsonl", "first_batch", "tensorboard", JOB}
FOUND = (".safetensors", ".parquet", ".json")  # what readers find by its name's pattern, so that none may be added
SHAPE = {
    "inputs": {str: {"sha256": str}},
    "outputs": {str: {"bytes": COUNT, "sha256": str}},
    "links?": {str: str},
}  # of manifest.json
SMALL = 1_000_000  # bytes: up to here hashing costs next to nothing
LOCK_SECONDS = 2.0  # that a killed process may take to exit
JOB_LOCK_SECONDS = 300.0  # the same for the process of a job on a cluster, whose node may have been lost


def is_main_process() -> bool:
    """False in all but one of the processes that `accelerate launch`, torchrun or SLURM start together."""
    return process().index == 0


def in_job() -> bool:
    """Whether this process is a job on a cluster, with a network file system between it and others."""
    return os.environ.get("SUBMITIT_EXECUTOR") == "slurm"


def finished(stage: Path) -> bool:
    return (stage / MANIFEST).is_file()


# ---------------------------------------------------------------------------------------------------- identity
def check(directory: Path, config: dict[str, Any], start_new: str = "name=<another> starts a new run") -> bool:
    """Whether the directory is this configuration's already; False if it is nobody's. Writes nothing.

    start_new: what the message offers to somebody who wants the new values.

    Raises:
        RecapError: it belongs to another configuration; the message lists what differs.
    """
    path = directory / CONFIG
    if not path.is_file():
        return False
    try:
        old = yaml.safe_load(path.read_text(encoding="utf-8"))
        if not isinstance(old, dict):
            raise ValueError("it holds no keys")
    except (yaml.YAMLError, ValueError) as error:
        problem = str(error).splitlines()[0]
        raise RecapError(f"{path} cannot be read ({problem}). Fix: restore it, or delete {directory}.") from error
    refuse_earlier(directory, old)
    if changed := difference(old, config):
        shown = "\n  ".join(changed[:12]) + (f"\n  … and {len(changed) - 12} more" if len(changed) > 12 else "")
        raise RecapError(
            f"{directory} holds results of another configuration:\n  {shown}\n"
            f"Fix: {start_new}, the old values continue this one, or delete {directory}."
        )
    return True


def refuse_earlier(run_dir: Path, config: dict[str, Any]) -> None:
    """Raises RecapError for a run directory whose layout or keys are those of an earlier version."""
    controls = next(run_dir.glob("iter_*/controls"), None)
    old = f"{controls.relative_to(run_dir)}/" if controls else "pi0: in its config.yaml" if "pi0" in config else None
    if old is None:
        return
    manifests = (json.loads(path.read_text(encoding="utf-8")) for path in sorted(run_dir.glob(f"*/{MANIFEST}")))
    commit = next((found for one in manifests if (found := one.get("git_commit"))), None)
    fix = f"git checkout {commit.removesuffix('-dirty')} to read it" if commit else "check out the commit that made it"
    raise RecapError(f"{run_dir} was made by an earlier version ({old}). Fix: {fix}, or name=<another> for a new run.")


def difference(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """What changed between two plain configurations, one `key: old -> new` a line."""
    lines = []
    for key in [*old, *(k for k in new if k not in old)]:
        a, b = old.get(key, "(absent)"), new.get(key, "(absent)")
        if isinstance(a, dict) and isinstance(b, dict):
            lines += difference(a, b, f"{prefix}{key}.")
        elif a != b:
            lines.append(f"{prefix}{key}: {a} -> {b}")
    return lines


def claim(directory: Path, config: dict[str, Any]) -> None:
    """Makes the directory this configuration's. Raises RecapError as `check` does."""
    if not check(directory, config):
        directory.mkdir(parents=True, exist_ok=True)
        write_text(directory / CONFIG, yaml.safe_dump(config, sort_keys=False, allow_unicode=True))


def begin(stage: Path, inputs: dict[str, Path]) -> None:
    """Records what a stage reads. Raises RecapError if a half-made one was begun with other inputs."""
    path, digests = stage / INPUTS, {role: results_digest(place) for role, place in inputs.items()}
    try:
        before = dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        before = {}
    for role, digest in digests.items():
        if before.get(role, digest) != digest:
            raise RecapError(
                f"{stage} was begun with another {os.path.relpath(inputs[role], stage)} than there is now. "
                f"Fix: delete {stage} and run the command again."
            )
    if before != digests:
        write_text(path, json.dumps(digests, indent=1) + "\n")


# ---------------------------------------------------------------------------------------------------- manifests
def write_manifest(stage: Path, *, node: str, seed: int, inputs: dict[str, Path], began: float) -> None:
    """Marks a stage as finished.

    Args:
        inputs: role -> directory of a finished stage, or a checkpoint folder.
        began: time.time() at the start.
    """
    files, links = _results(stage)
    manifest = {
        "stage": node,
        "seed": seed,
        "inputs": {
            role: {"path": os.path.relpath(path, stage), "sha256": results_digest(path)}
            for role, path in inputs.items()
        },
        "outputs": {
            str(path.relative_to(stage)): {"bytes": path.stat().st_size, "sha256": sha256(path)} for path in files
        },
        "links": {str(path.relative_to(stage)): os.readlink(path) for path in links},
        "git_commit": git_commit(),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "host": socket.gethostname(),
        "started": began,
        "finished": time.time(),
        "wall_seconds": round(time.time() - began, 2),
    }
    write_text(stage / MANIFEST, json.dumps(manifest, indent=2) + "\n")


def own_files(stage: Path) -> list[Path]:
    """The results of a stage, without those of stages inside it (sft/eval), half-written ones and other names."""
    return _results(stage)[0]


def _results(stage: Path) -> tuple[list[Path], list[Path]]:
    """The files of `own_files`, and the links to folders among them, such as `last`."""
    files: list[Path] = []
    links: list[Path] = []
    for path in sorted(folder / name for folder, _, names in _walk(stage) for name in names):
        parts = path.relative_to(stage).parts
        if not any(part.startswith(".") for part in parts) and path.suffix != ".tmp" and parts[0] not in RECORDS:
            (links if path.is_symlink() and path.is_dir() else files).append(path)
    return files, links


def clear_leftovers(stage: Path) -> None:
    """Deletes what a killed process had not finished writing. Only under the stage's lock."""
    for folder, folders, files in [*_walk(stage)]:
        for name in [name for name in (*folders, *files) if name.endswith(".tmp")]:
            if name in folders:
                shutil.rmtree(folder / name, ignore_errors=True)
            else:
                (folder / name).unlink(missing_ok=True)


def _walk(stage: Path) -> Iterator[tuple[Path, list[str], list[str]]]:
    """os.walk that does not enter stages inside this one and what is half written; links to folders are among files."""
    for here, folders, files in os.walk(stage):
        folder = Path(here)
        links = [name for name in folders if (folder / name).is_symlink()]
        found = [name for name in folders if name not in links and not _is_stage(folder / name)]
        folders[:] = [name for name in found if not name.endswith(".tmp")]
        yield folder, found, files + links


def _is_stage(folder: Path) -> bool:
    """Also one still in a cluster's queue, which has only what its job will read."""
    return (folder / CONFIG).is_file() or (folder / JOB).is_dir()


def read_manifest(stage: Path) -> dict[str, Any]:
    """Raises RecapError when it cannot be read or is incomplete."""
    path = stage / MANIFEST
    again = f"Fix: restore it, or delete {stage} and run the command again."
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RecapError(f"{path} is damaged ({type(error).__name__}: {error}). {again}") from error
    if wrong := misfit(manifest, SHAPE):
        raise RecapError(f"{path} is damaged ({wrong}). {again}")
    return manifest


def verify(stage: Path, again: str = "the command", *, quick: bool = False) -> None:
    """Checks the results of a finished stage against its manifest.

    again: the command that makes the stage. quick: large files by their size only.

    Raises:
        RecapError: naming the first file that is missing, truncated or changed, or that a reader would find although
            the stage did not make it.
    """
    manifest = read_manifest(stage)
    listed = _listed(stage, manifest)
    for name, expected in listed.items():
        path = stage / name
        if not path.is_file():
            problem = "is missing"
        elif path.stat().st_size != expected["bytes"]:
            problem = f"has {path.stat().st_size} bytes instead of {expected['bytes']}"
        elif not (quick and expected["bytes"] > SMALL) and sha256(path) != expected["sha256"]:
            problem = "was changed (its SHA-256 differs)"
        else:
            continue
        raise RecapError(
            f"{path} {problem} since its stage finished. Fix: restore it, or delete {stage} and run {again} again."
        )
    folders = {Path(name).parts[0] for name in listed}
    for path in own_files(stage) if "links" in manifest else []:  # those of an older version do not list all
        inside = path.relative_to(stage)
        if path.suffix in FOUND and inside.parts[0] in folders and str(inside) not in listed:
            raise RecapError(f"{path} was put there after its stage finished. Fix: move it elsewhere.")


def _listed(stage: Path, manifest: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The manifest's outputs, and under a link's name where the link has been replaced since."""
    outputs: dict[str, dict[str, Any]] = manifest["outputs"]
    found = dict(outputs)
    for name, target in manifest.get("links", {}).items():
        if not (stage / name).is_symlink() or os.readlink(stage / name) != target:
            meant = os.path.normpath(os.path.join(os.path.dirname(name), target)) + "/"
            found |= {
                name + "/" + path.removeprefix(meant): outputs[path] for path in outputs if path.startswith(meant)
            }
    return found


def stage_of(path: Path) -> Path:
    """The stage that a checkpoint folder (<stage>/checkpoints/<step>) belongs to; a stage stands for itself."""
    return path.parent.parent if path.parent.name == "checkpoints" else path


def results_digest(path: Path) -> str:
    """SHA-256 over the results of a finished stage, or over the files of a checkpoint folder of none.

    Equal results have equal digests, whenever and wherever they were made.
    """
    stage = stage_of(path)
    if finished(stage):
        hashes = {name: expected["sha256"] for name, expected in read_manifest(stage)["outputs"].items()}
    else:
        hashes = {file.name: sha256(file) for file in sorted(path.iterdir()) if file.suffix in FOUND}
    return hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()


def sha256(path: Path) -> str:
    state = path.stat()
    # The time of the last change to the file's own record, since that of its contents can be set back.
    return _sha256(path.absolute(), state.st_size, state.st_ctime_ns, state.st_mtime_ns, state.st_ino)


@cache
def _sha256(path: Path, *_: int) -> str:
    """Once for each state of a file: every stage of a run verifies the same inputs."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@cache
def git_commit() -> str | None:
    """Of the code that runs, with `-dirty` if it has uncommitted changes; None outside a git checkout."""
    root = Path(__file__).resolve().parents[1]
    if (root.parent / COMMIT).is_file():  # a snapshot, which lies in somebody's checkout or in none
        return (root.parent / COMMIT).read_text(encoding="utf-8") or None
    try:
        run = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            capture_output=True,
            encoding="utf-8",
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return run.stdout.strip() or None if run.returncode == 0 else None


# ---------------------------------------------------------------------------------------------------- lock
@contextmanager
def lock(directory: Path, *, shared: bool = False) -> Iterator[None]:
    """One process at a time works in a directory, or several that share its work. The lock goes with the process.

    Raises:
        RecapError: another process holds it, naming which.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / LOCK).open("a+", encoding="utf-8") as file:
        deadline = time.monotonic() + (JOB_LOCK_SECONDS if in_job() else LOCK_SECONDS)
        while True:
            try:
                fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() < deadline:
                    time.sleep(0.05)
                    continue
                file.seek(0)
                raise RecapError(
                    f"{directory} is busy: {file.read().strip() or 'another process'} works in it. "
                    "Fix: wait for it, stop it, or choose another name=…"
                ) from None
        if not shared:
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
            file.flush()
        yield


def note_share(stage: Path, share: Share) -> bool:
    """Records in the stage that a share is done; True if all are, which at least one of the shares sees."""
    with (stage / SHARES).open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # a network file system reads anew after locking
        file.seek(0)
        done = {*file.read().split(), str(share)}
        file.write(f"\n{share}\n")
        file.flush()
        os.fsync(file.fileno())
    return all(str(Share(index, share.count)) in done for index in range(share.count))
