"""The runs that a command line stands for, each composed, typed and checked before the first one starts."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override

from recap.config import Action, Config, ConfigError, LoopJob, keys, shared, typed
from recap.jobs.config import LauncherKind
from recap.jobs.job import automatic, launcher
from recap.storage.manifest import difference
from recap.tracking.mode import problem
from recap.utils import environment
from recap.utils.ranks import process

MOST_RUNS = 300  # of one command: each takes a third of a second to be checked before the first starts
MANY = 20  # runs from which on one sees how far that is


@dataclass(frozen=True)
class Run[C: Config]:
    """One run, and the swept values that make it one of several, as they were typed."""

    cfg: C
    swept: str

    def jobs(self) -> Iterator[C]:
        """In this process the iterations of a run follow each other; for jobs a run is one chain."""
        here = launcher(self.cfg) is LauncherKind.inline and self.cfg.action is Action.run
        if isinstance(self.cfg, LoopJob) and here:
            yield from (replace(self.cfg, iteration=k) for k in range(1, self.cfg.iterations + 1))
        else:
            yield self.cfg


def sweep[C: Config](arguments: list[str], schema: type[C], conf: Path, name: str) -> list[Run[C]]:
    """Every combination of the swept values is a run with a directory of its own.

    arguments: Hydra's overrides. conf: where `<name>.yaml` and the config groups are.

    Raises ConfigError, and what Hydra raises.
    """
    if wrong := [*environment.problems()]:
        raise ConfigError(wrong)
    with initialize_config_dir(str(conf), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        overrides = OverridesParser.create(config_loader=loader).parse_overrides(arguments)
        values = [_values(override) for override in overrides]
        if (count := math.prod(map(len, values))) > MOST_RUNS:
            many = ", ".join(o.input_line or "" for o in overrides if o.is_sweep_override())
            raise ConfigError([f"{many}: more than {MOST_RUNS} runs. Fix: fewer values in one command."])
        combinations = itertools.product(*values)
        trained = "policy=value" in itertools.chain(*values)  # of one run, both networks: policy=pi0,value
        runs: dict[str, Config] = {}
        found: list[Run[C]] = []
        for chosen in _shown(combinations, count) if count >= MANY else combinations:
            cfg = _composed(name, [*chosen], schema)
            swept = [value for override, value in zip(overrides, chosen, strict=True) if override.is_sweep_override()]
            roles = {value for value in swept if value.startswith("policy=")} if trained else set()
            if directory := ",".join(_tag(value) for value in swept if _separates(value) and value not in roles):
                cfg = replace(cfg, output=f"{cfg.output}/{directory}")
            same = runs.setdefault(cfg.output, cfg)
            if changed := difference(shared(same), shared(cfg)):
                raise ConfigError([f"output={cfg.output}: two runs ({changed[0]}) share it. Fix: give each a name=…"])
            found.append(Run(cfg, " ".join(swept)))
    if any(run.cfg.launcher.kind is LauncherKind.auto for run in found) and process().index == 0:
        kind, why = automatic()
        print(f"launcher=auto: {kind.name}, because {why}", flush=True)
    return found


def _composed[C: Config](name: str, overrides: list[str], schema: type[C]) -> C:
    composed = compose(name, overrides, return_hydra_config=True)
    cfg, size = typed(composed, schema), composed.hydra.runtime.choices.size
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
        fix = f"Fix: list the values: {override.key_or_group}=1,2,3"
        raise ConfigError([f"{override.input_line}: an interval has no end. {fix}"])
    values = itertools.islice(override.sweep_string_iterator(), MOST_RUNS + 1)
    return [f"{override.get_key_element()}={value}" for value in values]
