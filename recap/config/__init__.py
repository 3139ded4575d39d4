"""The command line's configuration: schema (all parts), load (typed, with errors), checks (between parts)."""

from recap.config.load import ConfigError, ablated, keys, leaves, plain, problems, shared, typed, unknown
from recap.config.schema import (
    Action,
    AdvantageJob,
    Config,
    EvalJob,
    LoopJob,
    StageKind,
    TrainJob,
)

__all__ = [
    "Action",
    "AdvantageJob",
    "Config",
    "ConfigError",
    "EvalJob",
    "LoopJob",
    "StageKind",
    "TrainJob",
    "ablated",
    "keys",
    "leaves",
    "plain",
    "problems",
    "shared",
    "typed",
    "unknown",
]
