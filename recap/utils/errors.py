"""The one exception that users see, and errors of the disk as that."""

from __future__ import annotations

import errno
import os
import re
import sys
from pathlib import Path

NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
NO_PERMISSION = {errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG}
BROKEN = {errno.EIO, errno.ENOENT, errno.ESTALE, errno.EMFILE, errno.ENFILE}


class RecapError(Exception):
    """A problem the user can fix; printed without a traceback.

    The message names the key, its value, the choices and the fix.
    """


def disk_error(error: BaseException, where: Path | str, problem: str = "cannot use") -> RecapError | None:
    """The message for an error of the disk; None for any other error.

    where: the file or folder, if the error itself names none. problem: what could not be done with it.
    """
    if isinstance(error, OSError) and error.filename is None and (lost := console_error(error.errno)):
        return lost
    number, said = getattr(error, "errno", None), re.search(r"\b(?:os error|errno) (\d+)", str(error))
    if number is None and said:  # safetensors and pyarrow put it into the text
        number = int(said[1])
    if number in NO_SPACE:
        fix = "Fix: free some space, or choose output=<a folder on another disk>. The same command again continues."
    elif number in NO_PERMISSION:
        fix = "Fix: make it writable, or choose output=<a folder that can be written>."
    elif number in BROKEN:
        fix = "Fix: check the disk and that nobody else moves files there. The same command again continues."
    else:
        return None
    return RecapError(f"{problem} {getattr(error, 'filename', None) or where}: {os.strerror(number)}. {fix}")


def console_error(number: int | None = None) -> RecapError | None:
    """Why standard output or standard error takes nothing more, and sends it nowhere from then on; None if both do.

    number: of an error that may be theirs: then an empty line tests them, since nothing may be waiting in them.
    """
    found = None
    for name, stream in (("standard output", sys.stdout), ("standard error", sys.stderr)):
        try:
            if stream is not None:
                stream.write("\n" if number in NO_SPACE | BROKEN else "")
                stream.flush()
        except BrokenPipeError:
            continue  # nobody reads on, which is no error
        except OSError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
            found = RecapError(
                f"cannot write to {name}: {error.strerror}. Fix: send it elsewhere. The same command again continues."
            )
    return found
