"""The multirun of the entrypoints. Hydra finds plugins in this namespace package only, hence its place."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from recap.config import Action, Config, ConfigError, LauncherKind, LoopJob, difference, keys, shared, typed
from recap.launch import automatic, launcher
from recap.share import process


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
        self.schema: type[Config] = task_function.schema  # type: ignore[attr-defined]  # recap/cli.py puts it there
        self.launch = Plugins.instance().instantiate_launcher(hydra_context, task_function, config).launch

    def sweep(self, arguments: list[str]) -> Any:
        jobs = self.jobs(arguments)
        if self.automatic and process().index == 0:
            kind, why = automatic()
            print(f"launcher=auto: {kind.name}, because {why}", flush=True)
        results = self.launch(jobs, initial_job_idx=0)  # one after the other
        return [result.return_value for result in results]  # raises what a job raised

    def jobs(self, arguments: list[str]) -> list[list[str]]:
        """The overrides of every job, in order. Raises ConfigError."""
        overrides = OverridesParser.create(config_loader=self.context.config_loader).parse_overrides(arguments)
        jobs: list[list[str]] = []
        runs: dict[str, Config] = {}
        for chosen in itertools.product(*map(_values, overrides)):
            job = [*chosen]
            cfg = self.compose(job)
            swept = [value for override, value in zip(overrides, chosen, strict=True) if override.is_sweep_override()]
            if directory := ",".join(_tag(value) for value in swept if _separates(value)):
                cfg = replace(cfg, output=f"{cfg.output}/{directory}")
                job.append(f"++output={_quoted(cfg.output)}")
            same = runs.setdefault(cfg.output, cfg)
            if changed := difference(shared(same), shared(cfg)):
                raise ConfigError([f"output={cfg.output}: two runs ({changed[0]}) share it. Fix: give each a name=…"])
            self.automatic |= cfg.launcher.kind is LauncherKind.auto
            here = launcher(cfg) is LauncherKind.inline and cfg.action is Action.run
            if isinstance(cfg, LoopJob) and here:
                jobs += [[*job, f"++iteration={k}"] for k in range(1, cfg.iterations + 1)]
            else:
                jobs.append(job)
        return jobs

    def compose(self, overrides: list[str]) -> Config:
        composed = self.context.config_loader.load_sweep_config(self.master, overrides)
        cfg = typed(composed, self.schema)
        size = composed.hydra.runtime.choices.size
        if cfg.size != size:
            fix = f"Fix: `override /size: {cfg.size}` in the file's defaults"
            raise ConfigError([f"size={cfg.size}: a name only, the numbers are those of size={size}. {fix}"])
        if isinstance(cfg, LoopJob) and cfg.iteration is not None:
            raise ConfigError([f"iteration={cfg.iteration}: loop.py counts by itself. Fix: iterations={cfg.iteration}"])
        return cfg


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
    return [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]


def _quoted(value: str) -> str:
    return "'" + value.replace("'", r"\'") + "'"
