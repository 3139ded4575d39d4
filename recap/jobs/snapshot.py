"""The code as it is at submission, inside the run directory: jobs start from there, whatever is edited meanwhile."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import sys
from pathlib import Path

from recap.storage.manifest import COMMIT, git_commit
from recap.utils.files import remove

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("recap", "conf")
SITE = ("conf", "site")  # what a cluster's user writes, secrets too; jobs are given their configuration
CACHE = "__pycache__"


def snapshot(run: Path) -> Path:
    """`<run>/code/<hash of the contents>`, absolute; made unless it is there.

    What is there is compared file by file, since jobs will run it and a run directory may be somebody else's. It is
    made anew where it differs.
    """
    contents = _contents()
    digest = hashlib.sha256(contents[Path(COMMIT)])
    for name, content in contents.items():
        digest.update(f"\n{name} {len(content)}\n".encode() + content)
    code = (run / "code" / digest.hexdigest()[:12]).absolute()
    if _holds(code, contents):
        return code
    temporary = code.with_name(f".{code.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    for name, content in contents.items():
        (temporary / name).parent.mkdir(parents=True, exist_ok=True)
        (temporary / name).write_bytes(content)
    _clear(code)
    try:
        temporary.rename(code)
    except OSError:  # somebody else was faster
        shutil.rmtree(temporary)
        if not _holds(code, contents):
            raise
    return code


def _contents() -> dict[Path, bytes]:
    """{name: content} of all that is code, and of the file that names its commit."""
    found = sorted(path for part in PARTS for path in (ROOT / part).rglob("*") if not path.name.startswith("."))
    files = [path for path in (*found, *sorted(ROOT.glob("*.py"))) if path.is_file() and CACHE not in path.parts]
    contents = {path.relative_to(ROOT): path.read_bytes() for path in files}
    contents = {name: content for name, content in contents.items() if name.parts[:2] != SITE}
    return {**contents, Path(COMMIT): (git_commit() or "").encode()}


def _holds(code: Path, contents: dict[Path, bytes]) -> bool:
    """Whether these files are there and no others. What Python compiled of them goes: it would run unseen."""
    if code.is_symlink() or not code.is_dir():
        return False
    found = [*code.rglob("*")]
    files = {
        path.relative_to(code): path
        for path in found
        if path.is_symlink() or not (path.is_dir() or CACHE in path.relative_to(code).parts)
    }
    same = files.keys() == contents.keys() and all(
        path.is_file() and not path.is_symlink() and path.read_bytes() == contents[name] for name, path in files.items()
    )
    if same:
        for path in found:
            if path.name == CACHE:
                shutil.rmtree(path, onexc=_in_use)
    return same


def _in_use(_: object, __: str, error: BaseException) -> None:
    """A job that runs from there may just be writing it anew."""
    if not (isinstance(error, FileNotFoundError) or getattr(error, "errno", None) == errno.ENOTEMPTY):
        raise error


def _clear(code: Path) -> None:
    """Makes room where something else lies in the place of the code, and says so."""
    if not code.is_symlink() and not code.exists():
        return
    print(f"warning: {code} is not the code that its name says; it is made anew", file=sys.stderr, flush=True)
    if code.is_symlink() or not code.is_dir():
        code.unlink()
        return
    remove(code)
