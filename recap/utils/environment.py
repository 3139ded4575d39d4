"""Checks before anything starts of environment variables that would stop a run late, or make it wait for ever."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

from recap.utils.errors import RecapError

# What torchrun, accelerate launch and our own jobs set for processes that they start together; all of it is needed.
TOGETHER = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
NUMBERS = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT", "MUJOCO_EGL_DEVICE_ID")
RENDERERS = ("egl", "osmesa", "glfw")
GPU = r"-?\d+|(GPU|MIG)-[\w/.-]+|NoDevFiles|all|none|void"
# What libraries below accept: name -> (pattern, in words, fix)
FORMS = {
    "OMP_NUM_THREADS": (r"\s*\d+(\s*,\s*\d+)*\s*", "a whole number", "OMP_NUM_THREADS=1, or unset it"),
    "CUDA_VISIBLE_DEVICES": (
        rf"((?:{GPU})(\s*,\s*(?:{GPU}))*)?",
        "numbers of GPUs with commas between them",
        "CUDA_VISIBLE_DEVICES=0, or unset it",
    ),
    "MUJOCO_GL": (
        rf"({'|'.join(RENDERERS)}|cgl|wgl)?",
        f"one of {', '.join(RENDERERS)}",
        "MUJOCO_GL=egl, or unset it: then one that works is found",
    ),
}


def number(name: str, default: int) -> int:
    """A variable that holds a whole number. Raises RecapError where it holds something else."""
    given = os.environ.get(name)
    try:
        return default if given is None else int(given)
    except ValueError:
        raise RecapError(f"{name}={given}: must be a whole number. Fix: unset {name}, or give it one.") from None


def problems() -> Iterator[str]:
    """What is wrong with the variables of this process, a line each with name, value and fix."""
    wrong = False
    for name in NUMBERS:
        try:
            number(name, 0)
        except RecapError as error:
            wrong = True
            yield str(error)
    if not wrong:
        yield from _together()
    for name, (pattern, words, fix) in FORMS.items():
        if (given := os.environ.get(name)) and not re.fullmatch(pattern, given, re.IGNORECASE):
            yield f"{name}={given}: must be {words}. Fix: {fix}."


def _together() -> Iterator[str]:
    """Whether this process was started together with others, or only looks so."""
    given = [name for name in TOGETHER[:3] if os.environ.get(name)]
    index, count = number("RANK", 0), number("WORLD_SIZE", 1)
    shown = ", ".join(f"{name}={os.environ[name]}" for name in given)
    if not 0 <= index < count:
        yield f"{shown}: RANK must be at least 0 and below WORLD_SIZE, which is {count}. {leave(count)}"
    elif (count > 1 or "LOCAL_RANK" in given) and (missing := [name for name in TOGETHER if not os.environ.get(name)]):
        yield f"{shown} without {', '.join(missing)}: it would wait for processes that nobody started. {leave(count)}"


def leave(count: int) -> str:
    """How to be one process again, and how to be several."""
    given = " ".join(name for name in TOGETHER if os.environ.get(name))
    return f"Fix: unset {given}; or start them together: torchrun --nproc-per-node={max(2, count)} <the command>."
