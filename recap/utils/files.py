"""Files that appear whole under their name or not at all, and that are as readable as the umask says."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """A new name beside `path` to write to, which becomes `path` at the end: readers see the old file or the new one.

    Nothing stays of it when the block raises. A link that lies in its place, and leads elsewhere, is removed.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.unlink(missing_ok=True)
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str, mode: int = 0o666) -> None:
    """By rename. mode: as far as the umask allows it."""
    with appearing(path) as temporary:
        new = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with open(new, "w", encoding="utf-8") as file:
            file.write(text)


def remove(folder: Path) -> None:
    """Deletes a folder, so that whenever this is interrupted it is either there whole or not at all."""
    trash = folder.with_name(f".{folder.name}.{os.getpid()}.old.tmp")
    shutil.rmtree(trash, ignore_errors=True)
    folder.rename(trash)
    shutil.rmtree(trash)


def sync(path: Path) -> None:
    """What was written to a file or a folder is on the disk when this returns."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def follow_umask(folder: Path) -> None:
    """Files that a library kept to their owner become as readable as their folder, which was made by the umask.

    Files of several names are left as they are: the other names may be somebody else's.
    """
    for here, _, names in os.walk(folder):
        mode = Path(here).stat().st_mode & 0o666
        for path in (Path(here) / name for name in names):
            if not path.is_symlink() and path.stat().st_nlink == 1:
                path.chmod(mode)
