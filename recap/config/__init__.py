"""The command line's configuration: schema (all parts), load (typed, with errors), checks (between parts)."""

from recap.config.arms import relabels, with_arm
from recap.config.load import ConfigError, keys, leaves, plain, problems, shared, typed, unknown
from recap.config.schema import (
    Action,
    AdvantageJob,
    ArmConfig,
    Config,
    EvalJob,
    LoopJob,
    StageKind,
    TrainJob,
)

__all__ = [
    "Action",
    "AdvantageJob",
    "ArmConfig",
    "Config",
    "ConfigError",
    "EvalJob",
    "LoopJob",
    "StageKind",
    "TrainJob",
    "keys",
    "leaves",
    "plain",
    "problems",
    "relabels",
    "shared",
    "typed",
    "unknown",
    "with_arm",
]
