"""The code as it is at submission, inside the run directory: jobs start from there, whatever is edited meanwhile."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

from recap.rundir import COMMIT, git_commit

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("recap", "hydra_plugins", "conf")


def snapshot(run: Path) -> Path:
    """`<run>/code/<hash of the contents>`, absolute; made unless it is there. Equal code is kept once."""
    files = sorted(
        path
        for part in PARTS
        for path in (ROOT / part).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and not path.name.startswith(".")
    )
    files += sorted(ROOT.glob("*.py"))
    digest = hashlib.sha256((git_commit() or "").encode())
    contents = {path.relative_to(ROOT): path.read_bytes() for path in files}
    for name, content in contents.items():
        digest.update(f"\n{name} {len(content)}\n".encode() + content)
    code = (run / "code" / digest.hexdigest()[:12]).absolute()
    if not code.is_dir():
        temporary = code.with_name(f".{code.name}.{os.getpid()}.tmp")
        shutil.rmtree(temporary, ignore_errors=True)
        for name, content in contents.items():
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            (temporary / name).write_bytes(content)
        (temporary / COMMIT).write_text(git_commit() or "", encoding="utf-8")
        try:
            temporary.rename(code)
        except OSError:  # somebody else was faster with the same
            shutil.rmtree(temporary)
    return code
