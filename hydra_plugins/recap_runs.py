"""The multirun of the entrypoints. Hydra finds plugins in this namespace package only, hence its place."""

from __future__ import annotations

import itertools
import math
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from recap.config import Action, Config, ConfigError, LoopJob, keys, shared, typed
from recap.jobs.config import LauncherKind
from recap.jobs.job import automatic, launcher
from recap.storage.manifest import difference
from recap.tracking.mode import problem
from recap.utils import environment
from recap.utils.ranks import process

MOST_RUNS = 300  # of one command: each takes a third of a second to be checked before the first starts
MANY = 20  # runs from which on one sees how far that is


class Run(NamedTuple):
    """One run: its directory and overrides, which of them were swept; iterations: in this process, None for one job."""

    output: str
    overrides: list[str]
    swept: list[str]
    iterations: int | None

    def jobs(self) -> Iterator[list[str]]:
        """The overrides of each job."""
        if self.iterations is None:
            yield self.overrides
        else:
            yield from ([*self.overrides, f"++iteration={k}"] for k in range(1, self.iterations + 1))


class Runs(Sweeper):
    """Hydra's multirun as a loop needs it.

    Every combination of the swept values is a run with a directory of its own, and all of them are composed, typed and
    checked before the first one starts. In this process the iterations of a run follow each other; for jobs a run is
    one chain.
    """

    automatic = False  # whether a run leaves the launcher to us

    def __init__(self, **_: Any):  # Hydra passes the options of its basic sweeper
        pass

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.context, self.master = hydra_context, config
        self.task: Any = task_function  # of recap/cli/entrypoint.py, which gives it these attributes
        self.schema: type[Config] = self.task.schema
        self.launch = Plugins.instance().instantiate_launcher(hydra_context, task_function, config).launch

    def sweep(self, arguments: list[str]) -> None:
        if wrong := [*environment.problems()]:
            raise ConfigError(wrong)
        runs = self.runs(arguments)
        if self.automatic and process().index == 0:
            kind, why = automatic()
            print(f"launcher=auto: {kind.name}, because {why}", flush=True)
        failed: set[str] = set()
        number = 0
        for run in runs:
            if run.output in failed:
                print(f"{run.output}: {' '.join(run.swept)} skipped, because an earlier one failed", file=sys.stderr)
                self.task.skipped = True
                continue
            for job in run.jobs():  # one after the other
                (done,) = self.launch([job], initial_job_idx=number)
                number += 1
                if not done.return_value:  # raises what a job raised
                    failed.add(run.output)
                    break

    def runs(self, arguments: list[str]) -> list[Run]:
        """Every run of the command line, in order, checked. Raises ConfigError."""
        overrides = OverridesParser.create(config_loader=self.context.config_loader).parse_overrides(arguments)
        runs: list[Run] = []
        seen: dict[str, Config] = {}
        values = [_values(override) for override in overrides]
        if (count := math.prod(map(len, values))) > MOST_RUNS:
            swept = ", ".join(o.input_line or "" for o in overrides if o.is_sweep_override())
            raise ConfigError([f"{swept}: more than {MOST_RUNS} runs. Fix: fewer values in one command."])
        combinations = itertools.product(*values)
        for chosen in _shown(combinations, count) if count >= MANY else combinations:
            job = [*chosen]
            cfg = self.compose(job)
            swept = [value for override, value in zip(overrides, chosen, strict=True) if override.is_sweep_override()]
            if directory := ",".join(_tag(value) for value in swept if _separates(value)):
                cfg = replace(cfg, output=f"{cfg.output}/{directory}")
                job.append(f"++output={_quoted(cfg.output)}")
            same = seen.setdefault(cfg.output, cfg)
            if changed := difference(shared(same), shared(cfg)):
                raise ConfigError([f"output={cfg.output}: two runs ({changed[0]}) share it. Fix: give each a name=…"])
            self.automatic |= cfg.launcher.kind is LauncherKind.auto
            here = launcher(cfg) is LauncherKind.inline and cfg.action is Action.run
            runs.append(Run(cfg.output, job, swept, cfg.iterations if isinstance(cfg, LoopJob) and here else None))
        return runs

    def compose(self, overrides: list[str]) -> Config:
        composed = self.context.config_loader.load_sweep_config(self.master, overrides)
        cfg = typed(composed, self.schema)
        size = composed.hydra.runtime.choices.size
        if cfg.size != size:
            fix = f"Fix: `override /size: {cfg.size}` in the file's defaults"
            raise ConfigError([f"size={cfg.size}: a name only, the numbers are those of size={size}. {fix}"])
        if isinstance(cfg, LoopJob) and cfg.iteration is not None:
            raise ConfigError([f"iteration={cfg.iteration}: loop.py counts by itself. Fix: iterations={cfg.iteration}"])
        if text := problem(cfg.tracking):
            raise ConfigError([text])
        return cfg


def _shown[T](items: Iterable[T], count: int) -> Iterator[T]:
    from recap.utils.progress import Progress

    with Progress("checking every run", count, quiet=process().index > 0) as bar:
        for item in items:
            yield item
            bar.advance()


def _separates(override: str) -> bool:
    """Whether two values of a key are two runs. Keys of one job alone (policy, stage, checkpoint) are not."""
    return override.lstrip("+").split("=")[0] in set(keys(Config)) - {"name", "output"}


def _tag(override: str) -> str:
    """A swept override as a part of a directory's name."""
    return re.sub(r"[^\w.=+-]+", "_", override.lstrip("+"))


def _values(override: Override) -> list[str]:
    """Every override that one of the command line stands for."""
    if not override.is_sweep_override():
        assert override.input_line is not None
        return [override.input_line]
    if not override.is_discrete_sweep():
        raise ConfigError(
            [f"{override.input_line}: an interval has no end. Fix: list the values: {override.key_or_group}=1,2,3"]
        )
    values = itertools.islice(override.sweep_string_iterator(), MOST_RUNS + 1)
    return [f"{override.get_key_element()}={value}" for value in values]


def _quoted(value: str) -> str:
    return "'" + value.replace("'", r"\'") + "'"
