"""A stage of a run: where it lies, what it reads, which part of the configuration decides its result, what it does.

Each kind of stage is one class in one file of this folder; `recap.pipeline.graph` says which stages a run has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from recap.config import Config, plain
from recap.method.config import SourceKind
from recap.rollout.config import Prompt
from recap.storage.manifest import finished
from recap.training.config import IndicatorMode, PolicyTrainConfig
from recap.utils.ranks import WHOLE, Share

DEMONSTRATIONS = "demonstrations"
Inputs = Mapping[str, Path]  # role -> directory of a finished stage
Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One planned stage. Fields of a subclass are settings that decide its result beside the configuration.

    `cfg`: the configuration of the run, or of the ablation that it belongs to. `path`: its directory below the run
    directory. `inputs`: role -> path of the stage that it reads. Absolute paths were named on the command line: a
    result directory elsewhere, a checkpoint folder instead of a stage.
    """

    kind: ClassVar[str]  # its name in paths, resources, W&B and messages
    asks_as: ClassVar[str | None] = None  # whose resources its job asks for; None: those of its own name
    keys: ClassVar[tuple[str, ...]] = ()  # nodes of the configuration that decide its result
    simulates: ClassVar[bool] = False  # starts environments
    acts: ClassVar[bool] = False  # runs a policy in them
    trains: ClassVar[bool] = False
    reads_data: ClassVar[bool] = False
    computes: ClassVar[bool] = False  # runs networks, on `device`
    shardable: ClassVar[bool] = False  # several jobs can share its work
    resumes: ClassVar[bool] = False  # continues a half-filled directory instead of starting over

    cfg: Config
    path: str
    inputs: dict[str, str]
    ablation: str | None = None

    @property
    def out(self) -> Path:
        return Path(self.cfg.output) / self.path

    @property
    def read(self) -> dict[str, Path]:
        """role -> directory."""
        return {role: Path(self.cfg.output) / path for role, path in self.inputs.items()}

    @property
    def reads_corrections(self) -> bool:
        """Whether an operator may act in some frames of its data; where not, no key about them decides its result."""
        sources = self.cfg.data.sources.values()
        marked = any(one.interventions is not None or one.kind is SourceKind.correction for one in sources)
        rollouts = any(role.startswith("rollouts_") for role in self.inputs)
        return marked or (rollouts and self.cfg.rollout.corrections.share > 0)

    def prefix(self, values: dict[str, Any]) -> dict[str, Any]:
        """`advantage.correction_prefix`, where it is set and decides the result. values: as `refined` takes them."""
        return {k: v for k, v in values["advantage"].items() if k == "correction_prefix" and self.reads_corrections}

    @property
    def finished(self) -> bool:
        return finished(self.out)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """The resolved values that decide the result, as in the stage's config.yaml."""
        values = plain(self.cfg)
        used: dict[str, Any] = {"stage": self.kind, **self._settings(), "seed": self.cfg.seed}
        used |= {f"input_{role}": path for role, path in self.inputs.items() if Path(path).is_absolute()}
        used |= {key: values[key] for key in self.keys}
        used.get("data", {}).pop("rollouts", None)
        used.get("workers", {}).pop("num_workers", None)  # how many processes simulate does not show in the result
        return self.refined(used, values)

    def refined(self, used: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
        """What a subclass adds to its identity, or leaves out. values: the whole configuration, plain."""
        return used

    def run(self, say: Say, share: Share = WHOLE) -> None:
        """Fills `out`. Called again on a half-filled directory, it continues there if it `resumes`.

        say: prints a line and logs it. share: the part of the work to do, where the stage is `shardable`.
        """
        raise NotImplementedError

    def progress(self) -> tuple[int, int] | None:
        """(done, total) of a stage that runs in another process."""
        return None

    def _settings(self) -> dict[str, Any]:
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in {f.name for f in fields(Stage)}}
        return {key: plain(value) for key, value in own.items() if value is not None}


def iteration_dir(iteration: int) -> str:
    return f"iter_{iteration:02d}"


def prompt_for(wanted: Prompt, training: PolicyTrainConfig) -> Prompt:
    """A policy trained without the indicator is not prompted with it."""
    return Prompt.none if training.indicator is IndicatorMode.ignore else wanted
