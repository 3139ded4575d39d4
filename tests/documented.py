"""What README, docs/, comments, docstrings and messages say to type: commands as they stand there, and overrides."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# What CHANGELOG says of earlier versions is history.
PAGES = sorted({*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")} - {ROOT / "CHANGELOG.md"})
CODE = sorted({*ROOT.glob("*.py"), *(file for k in ("recap", "bench", "scripts") for file in (ROOT / k).rglob("*.py"))})
ENTRIES = ("train", "eval", "advantage", "loop")
# First words of what is a command where it stands between backticks; in a block of bash every line is one.
PROGRAMS = {"python", "make", "torchrun", "accelerate", "pytest", "wandb", "hf", "pip", "uv", "tensorboard", "sbatch"}
PROGRAMS |= {"cp", "git", "eval", "apt-get", "opentau-train", *(f"{entry}.py" for entry in ENTRIES)}
KEY = re.compile(r"\+{0,2}~?[a-z]\w*(?:\.[\w<>]+)*=\S*")
REMARK = re.compile(r"\s+#\s|\s{3,}")
# Of what a message says, the command: its prose goes on behind it.
SAID = re.compile(
    r"python \w+\.py(?: \+?[\w.]+=(?:\{.*?\}|[^\s`),{])+| -m\b| --cfg job)*"
    r"|python -m [\w.]+(?: --[\w-]+=\S+)*"
    r"|(?<=Fix: )make [a-z-]+(?=[,.]|$)"
)


@dataclass(frozen=True)
class Command:
    """One command line as it is documented, and where it stands first."""

    text: str
    where: str

    @property
    def page(self) -> str:
        return self.where.partition(":")[0]

    @property
    def words(self) -> list[str]:
        """The shell's words; what stands in angle brackets, for something of the reader's, is one of them."""
        held = re.sub(r"<[^>]*>", lambda found: shlex.quote(found[0]), self.text)
        return shlex.split(held)


@cache
def commands() -> list[Command]:
    """Every command that is documented anywhere, once."""
    found: dict[str, Command] = {}
    for text, where in [*_in_pages(), *_in_makefile(), *_in_yaml(), *_in_code()]:
        for part in re.split(r"\s+&&\s+", text):
            command = part.removesuffix(" …").strip()
            found.setdefault(command, Command(command, where))
    return list(found.values())


@cache
def overrides() -> dict[str, str]:
    """`key=value`, or several of them, between backticks and in the remarks of bash blocks -> where."""
    found: dict[str, str] = {}
    for page in PAGES:
        for number, line, bash in _lines(page):
            for code in [] if bash else re.findall(r"`([^`]+)`", line):
                if all(KEY.fullmatch(word) for word in code.split()):
                    found.setdefault(code, f"{page.name}:{number}")
            for word in " ".join(REMARK.split(line)[1:]).split() if bash else []:
                if KEY.fullmatch(word):
                    found.setdefault(word.rstrip(":;,."), f"{page.name}:{number}")
    return found


def _lines(page: Path) -> Iterator[tuple[int, str, bool]]:
    """(number, line, whether in a block of bash) of a page; other blocks are left out."""
    block = ""
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
        if line.startswith("```"):
            block = "" if block else line[3:] or "text"
        elif block in ("", "bash"):
            yield number, line, block == "bash"


def _in_pages() -> Iterator[tuple[str, str]]:
    for page in PAGES:
        for number, line, bash in _lines(page):
            for code in [REMARK.split(line)[0]] if bash else re.findall(r"`([^`]+)`", line):
                if code.strip() and (bash or _is_command(code)):
                    yield code.strip(), f"{page.relative_to(ROOT)}:{number}"


def _is_command(code: str) -> bool:
    program, _, rest = code.partition(" ")
    return (program in PROGRAMS or program.startswith(("lerobot-", "tests/"))) and bool(rest)


def _in_makefile() -> Iterator[tuple[str, str]]:
    """What `make demo`, `make study` and `make report` run of ours, with the Makefile's own values."""
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    values = dict(re.findall(r"^(\w+) [?:]= ?(.*)$", text, re.MULTILINE)) | {"PY": "python"}
    for number, line in enumerate(text.splitlines(), 1):
        if re.match(r"\t\$\(PY\) (\w+\.py|-m recap)", line):
            yield re.sub(r"\$\((\w+)\)", lambda found: values[found[1]], line).strip(), f"Makefile:{number}"


def _in_yaml() -> Iterator[tuple[str, str]]:
    """Comments that are a command as a whole."""
    for file in sorted((ROOT / "conf").rglob("*.yaml")):
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            if line.startswith("# python "):
                yield line[2:], f"{file.relative_to(ROOT)}:{number}"


def _in_code() -> Iterator[tuple[str, str]]:
    """Lines of docstrings that begin with a command, and what messages say to type."""
    for file in CODE:
        tree = ast.parse(file.read_text(encoding="utf-8"))
        where = str(file.relative_to(ROOT))
        parts = {id(value) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for value in node.values}
        for node in ast.walk(tree):
            text = "" if id(node) in parts else _said(node)
            for line in text.splitlines():
                begins = REMARK.split(line.strip())[0]
                found = [begins] if "\n" in text and _is_command(begins) else SAID.findall(line)
                yield from ((said.rstrip(".,;:"), f"{where}:{node.lineno}") for said in found)


def _said(node: ast.AST) -> str:
    """The text of a string; what is put into it is `{name}`."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(
            f"{{{ast.unparse(part.value)}}}" if isinstance(part, ast.FormattedValue) else part.value
            for part in node.values
        )
    return ""
