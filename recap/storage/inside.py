"""Nothing outside of a run directory is written or deleted, whatever links it holds: run directories are sent around.

Writers need no care of their own: before any work, everything that would lead them out, or keep them waiting, is
refused. How the directory itself is reached is its owner's choice: `outputs` may be a link to another disk.
"""

from __future__ import annotations

import errno
import os
import shlex
import stat
from collections.abc import Iterator
from pathlib import Path

from recap.utils.errors import RecapError, disk_error

SHOWN = 20  # of what is refused; one command removes them
SUBMITTED = ".submission_file_"  # submitit's links to its scripts, absolute, never written through: their names are new
WANDB = "wandb"  # in it, W&B makes a new folder for each of its runs, which holds a link to its log elsewhere
KINDS = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}


def stay_inside(directory: Path, key: str = "output") -> None:
    """Looks through a directory that is about to be written to; one that is not there yet is fine.

    key: the option that named it.

    Raises:
        RecapError: a link in it leads out, a pipe or a device lies in a file's place, a folder cannot be looked into,
            or the directory is reached through a link that leads nowhere.
    """
    _check_way(directory, key)
    found = [*_leading_out(directory)]
    if not found:
        return
    more = f"\n  … and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    shown = "\n  ".join(f"{path} {what}" for path, what in found[:SHOWN])
    names = shlex.join(str(path) for path, _ in found[:SHOWN])
    raise RecapError(
        f"{key}={directory}: nothing is written through what leads out of it:\n  {shown}{more}\n"
        f"Fix: rm {names}\n(which removes the links, not what they lead to), or choose another folder."
    )


def _check_way(directory: Path, key: str) -> None:
    """Raises RecapError for a link on the way to the directory that leads nowhere."""
    way = directory.absolute()
    for folder in [*reversed(way.parents), way]:
        try:
            folder.stat()
        except OSError as error:
            if not folder.is_symlink():
                return  # not there yet, or closed to this user, which the first write reports
            circle = error.errno == errno.ELOOP
            place = folder.parent / os.readlink(folder)
            fix = f"rm {shlex.quote(str(folder))}" if circle else f"mkdir -p {shlex.quote(str(place))}, mount its disk"
            raise RecapError(
                f"{key}={directory}: {folder} is a link that leads {'in a circle' if circle else f'to {place}'}"
                f"{'' if circle else ', which does not exist'}. Fix: {fix}, or choose {key}=<another folder>."
            ) from error


def _leading_out(directory: Path) -> Iterator[tuple[Path, str]]:
    """What must not be written to, and why, by name."""
    root, folders, wandb = directory.resolve(), [directory], directory / WANDB
    while folders:
        for entry in _entries(folders.pop()):
            path = Path(entry.path)
            if entry.is_dir(follow_symlinks=False):
                if path.parent != wandb:
                    folders.append(path)
            elif entry.is_symlink():
                place = Path(os.path.realpath(path))
                if not place.is_relative_to(root) and not entry.name.startswith(SUBMITTED):
                    yield path, f"is a link to {place}"
                elif place.is_symlink():  # as far as a circle can be followed
                    yield path, "is a link that leads in a circle"
            elif not entry.is_file(follow_symlinks=False) and (kind := _kind(path)):
                yield path, f"is {kind}"


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """In order; [] where there is no folder (any more): others may work beside this process."""
    try:
        with os.scandir(folder) as found:
            return sorted(found, key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise disk_error(error, folder, "cannot look into") or error from error


def _kind(path: Path) -> str | None:
    """None for what has gone meanwhile."""
    try:
        return KINDS.get(stat.S_IFMT(path.lstat().st_mode))
    except FileNotFoundError:
        return None
