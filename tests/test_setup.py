"""`make setup` finds a Python that fits where many do not: find-python of scripts/setup.sh on made-up machines."""

import configparser
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

DEAD_SHIM = "#!/bin/sh\necho 'pyenv: command not found' >&2\nexit 127\n"


def python(version: str) -> str:
    """A program that answers like the Python of that version when asked for it."""
    return f"#!/bin/sh\necho {version}\n"


class Machine:
    """A machine that has nothing but what a test puts there: its own PATH, home and copy of the script."""

    def __init__(self, root: Path, repository: Path) -> None:
        self.root = root
        (root / "bin").mkdir()
        (root / "repository" / "scripts").mkdir(parents=True)
        self.script = root / "repository" / "scripts" / "setup.sh"
        shutil.copy(repository / "scripts" / "setup.sh", self.script)
        for tool in ("dirname", "uname", "id"):
            (root / "bin" / tool).symlink_to(str(shutil.which(tool)))
        self.path = [root / "bin"]

    def add(self, place: str, text: str) -> Path:
        """An executable of that text at `place`, below the machine's root."""
        file = self.root / place
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        file.chmod(0o755)
        return file

    def find(self, **environment: str) -> subprocess.CompletedProcess[str]:
        clean = {"PATH": os.pathsep.join(map(str, self.path)), "HOME": str(self.root / "home"), **environment}
        command = ["/bin/sh", str(self.script), "find-python"]
        return subprocess.run(command, env=clean, capture_output=True, text=True, check=False, timeout=20)

    def found(self, **environment: str) -> str:
        result = self.find(**environment)
        assert result.returncode == 0, result.stderr
        return result.stdout.strip()


@pytest.fixture
def machine(tmp_path: Path, repository: Path) -> Machine:
    return Machine(tmp_path, repository)


def test_real_python_is_taken_from_path(machine: Machine) -> None:
    (machine.root / "bin" / "python3").symlink_to(sys.executable)
    assert machine.found() == str(machine.root / "bin" / "python3")


def test_versioned_name_goes_before_python3(machine: Machine) -> None:
    machine.add("bin/python3", python("3.13"))
    versioned = machine.add("bin/python3.12", python("3.12"))
    assert machine.found() == str(versioned)


def test_dead_shim_does_not_hide_the_real_one_behind_it(machine: Machine) -> None:
    machine.path.append(machine.root / "usr")
    machine.add("bin/python3.12", DEAD_SHIM)
    real = machine.add("usr/python3.12", python("3.12"))
    assert machine.found() == str(real)


@pytest.mark.parametrize("variable", ["HOME", "PYENV_ROOT"])
def test_pyenv_versions_are_found_where_python3_is_old(machine: Machine, variable: str) -> None:
    machine.add("bin/python3", python("3.11"))
    machine.add("bin/python3.13", DEAD_SHIM)
    folder = {"HOME": "home/.pyenv", "PYENV_ROOT": "my pyenv"}[variable]
    machine.add(f"{folder}/versions/3.11.7/bin/python", python("3.11"))
    wanted = machine.add(f"{folder}/versions/3.13.0/bin/python", python("3.13"))
    environment = {"PYENV_ROOT": str(machine.root / folder)} if variable == "PYENV_ROOT" else {}
    assert machine.found(**environment) == str(wanted)


def test_uv_is_asked_for_its_own_pythons(machine: Machine) -> None:
    machine.add("bin/python3", python("3.11"))
    managed = machine.add("managed/python3.13", python("3.13"))
    # Answers as uv does: nothing and a failure for 3.12, the path for 3.13.
    answer = f'case "$*" in *--version) ;; *"python find"*3.13) echo "{managed}" ;; *) exit 2 ;; esac'
    machine.add("bin/uv", f"#!/bin/sh\n{answer}\n")
    assert machine.found() == str(managed)
    assert machine.find(INSTALLER="pip").returncode == 1


def test_named_python_goes_before_all_and_is_never_replaced(machine: Machine) -> None:
    machine.add("bin/python3.12", python("3.12"))
    mine = machine.add("mine/python", python("3.13"))
    assert machine.found(PYTHON=str(mine)) == str(mine)
    old = machine.add("mine/old", python("3.11"))
    result = machine.find(PYTHON=str(old))
    assert result.returncode == 1
    assert f"PYTHON={old} is not Python 3.12 or 3.13 (3.11)" in result.stderr
    assert "does not run" in machine.find(PYTHON="/nowhere/python").stderr


@pytest.mark.parametrize("version", ["2.7", "3.11", "3.14"])
def test_without_a_suitable_python_the_error_names_what_is_there_and_the_fix(machine: Machine, version: str) -> None:
    old = machine.add("bin/python3", python(version))
    shim = machine.add("bin/python3.12", DEAD_SHIM)
    result = machine.find()
    assert result.returncode == 1
    assert not result.stdout
    assert f"{old}: {version}" in result.stderr
    assert f"{shim}: does not run" in result.stderr
    assert "apt-get install" in result.stderr
    assert "make setup PYTHON=" in result.stderr


def test_versions_looked_for_are_those_of_setup_cfg(machine: Machine, repository: Path) -> None:
    config = configparser.ConfigParser()
    config.read(repository / "setup.cfg")
    bounds = re.fullmatch(r">=3\.(\d+),<3\.(\d+)", config["options"]["python_requires"])
    assert bounds
    oldest, too_new = map(int, bounds.groups())
    for minor in range(oldest - 1, too_new + 1):
        machine.add("bin/python3", python(f"3.{minor}"))
        assert (machine.find().returncode == 0) == (oldest <= minor < too_new), f"3.{minor}"


def test_lock_pins_every_dependency_and_names_no_host(repository: Path) -> None:
    lock = (repository / "requirements.lock").read_text()
    pinned = {line.split("==")[0] for line in lock.splitlines()}
    config = configparser.ConfigParser()
    config.read(repository / "setup.cfg")
    extras = config["options.extras_require"]
    wanted = "\n".join([config["options"]["install_requires"], *extras.values()])
    names = {re.split(r"[\[<>=]", line)[0] for line in wanted.splitlines() if line and not line.startswith("#")}
    assert {"torch", "lerobot", "pytest"} <= names
    assert names <= pinned
    assert "://" not in lock
    assert "--" not in lock


def test_help_explains_every_target(repository: Path) -> None:
    targets = re.findall(r"^([a-z-]+):", (repository / "Makefile").read_text(), flags=re.MULTILINE)
    result = subprocess.run(["make", "help"], cwd=repository, capture_output=True, text=True, check=True)
    assert set(targets) <= set(re.findall(r"^  make ([a-z-]+) +\S", result.stdout, flags=re.MULTILINE))
