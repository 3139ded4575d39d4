"""How an entrypoint meets Hydra: all runs are checked before the first starts, and errors fit on one screen.

Exit codes: 0 done, 1 a run failed, 2 the configuration is wrong (nothing was started), 130 interrupted.
"""

from __future__ import annotations

import inspect
import os
import re
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import hydra
import yaml
from hydra._internal.utils import get_args_parser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException

from recap import tracking
from recap.cli.sweep import Run, sweep
from recap.config import Config, LoopJob, keys, unknown
from recap.jobs.chain import Chain
from recap.policies.registry import unusable
from recap.utils import home
from recap.utils.console import spell
from recap.utils.errors import RecapError, console_error, disk_error
from recap.utils.nearest import nearest

HYDRAS = ("help", "hydra_help", "cfg", "info", "shell_completion")  # options that Hydra itself answers
GROUPS = ("policy", "stage", "size", "env", "data", "ablation", "launcher", "site", "tracking", "experiment")


def entrypoint[C: Config](schema: type[C]) -> Callable[[Callable[[C], Chain | None]], Callable[[], None]]:
    """Decorates `main(cfg)` of <name>.py, configured by conf/<name>.yaml beside it; cfg is a checked `schema`.

    main does the work, or returns it as a chain of jobs; the chains of a sweep are submitted side by side.
    """

    def decorate(function: Callable[[C], Chain | None]) -> Callable[[], None]:
        file = Path(inspect.getfile(function)).resolve()
        return lambda: sys.exit(_written(_run(function, schema, file.parent / "conf", file.stem)))

    return decorate


def _run[C: Config](function: Callable[[C], Chain | None], schema: type[C], conf: Path, name: str) -> int:
    """Composes, checks and runs every job of the command line, and returns the exit code."""
    spell()
    argv, full_error = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra shall raise its errors instead of printing them and exiting
    try:
        sys.argv = [*argv[:1], *map(home.in_argument, argv[1:])]
        asked = get_args_parser().parse_args(sys.argv[1:])
        if any(getattr(asked, option) for option in HYDRAS):
            hydra.main(version_base="1.3", config_path=str(conf), config_name=name)(lambda _: None)()
            return 0
        beside = [f"hydra.searchpath=['file://{Path(asked.config_dir).absolute()}']"] if asked.config_dir else []
        runs = sweep([*beside, *asked.overrides], schema, conf, asked.config_name or name)
        return int(bool(_failed(runs, function, full_error == "1")))
    except (RecapError, HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        if full_error == "1":
            raise
        _say(f"bad configuration: {explain(error, schema)}")
        return 2
    except ValueError as error:
        if "--cfg" not in str(error):
            raise
        _say(str(error))  # Hydra's own options do not go together
        return 2
    except OSError as error:
        if (lost := console_error(error.errno)) is None:
            raise
        _say(str(lost))
        return 1
    except KeyboardInterrupt:
        _say("interrupted. The same command again continues.")
        return 130
    finally:
        sys.argv = argv
        tracking.close()
        os.environ.pop("HYDRA_FULL_ERROR")
        os.environ.update({} if full_error is None else {"HYDRA_FULL_ERROR": full_error})


def _failed[C: Config](runs: list[Run[C]], function: Callable[[C], Chain | None], traced: bool) -> set[str]:
    """Runs one job after the other; the directories of the runs that failed, whose later jobs are left out."""
    failed: set[str] = set()
    chains: list[Chain] = []
    skipped = False
    for run in runs:
        if run.cfg.output in failed:
            print(f"{run.cfg.output}: {run.swept} skipped, because an earlier one failed", file=sys.stderr)
            skipped = True
            continue
        for cfg in run.jobs():
            if not _did(cfg, function, chains, traced):
                failed.add(cfg.output)
                break
    if chains:
        failed |= _carry_out(chains, not failed)
    elif failed and (skipped or len({run.cfg.output for run in runs}) > 1):  # what failed first may be far above
        outputs = list(dict.fromkeys(run.cfg.output for run in runs))
        _say(f"{len(failed)} of {len(outputs)} runs failed: {', '.join(run for run in outputs if run in failed)}")
    return failed


def _did[C: Config](cfg: C, function: Callable[[C], Chain | None], chains: list[Chain], traced: bool) -> bool:
    """One job; whether it went well. It raises nothing, so that one failed run does not take the others with it."""
    try:
        if (chain := function(cfg)) is not None:
            chains.append(chain)
        return True
    except RecapError as error:
        if traced:
            traceback.print_exc()
        _say(f"{cfg.output}: {error}", _left_out(cfg))
    except BrokenPipeError:  # of `… | head`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise KeyboardInterrupt from None
    except OSError as error:
        refusal = disk_error(error, cfg.output)
        _say(f"{cfg.output}: {refusal}" if refusal else "", _left_out(cfg))
    except Exception:  # noqa: BLE001  a bug: its traceback is wanted, and so are the other runs
        _say("", _left_out(cfg))
    return False


def _written(code: int) -> int:
    """The exit code, when all that was printed has been written."""
    if lost := console_error():
        _say(str(lost))
    return code or int(lost is not None)


def _carry_out(chains: list[Chain], all_ready: bool) -> set[str]:
    """The directories of the runs that failed."""
    from recap.jobs.watch import carry_out, failure

    if not all_ready:
        print("nothing was submitted: every run of a sweep has to be ready first", file=sys.stderr)
        return set()
    try:
        broken = carry_out(chains)
    except RecapError as error:
        _say(str(error))
        return {chain.cfg.output for chain in chains}
    for chain in broken:
        _say(f"{chain.cfg.output}: {failure(chain)}")
    return {chain.cfg.output for chain in broken}


def _left_out(config: Config) -> str:
    """Which iterations of a run are left out because this one failed; "" for none."""
    if not isinstance(config, LoopJob) or config.iteration is None or config.iteration == config.iterations:
        return ""
    first, last = config.iteration + 1, config.iterations
    which = f"iteration {first}" if first == last else f"iterations {first} to {last}"
    return f"{config.output}: {which} skipped, because an earlier one failed"


def _say(message: str, before: str = "") -> None:
    """An error, the last thing on the console; "": the exception that is being handled, with its traceback."""
    with suppress(OSError):  # of a console that takes nothing more; the exit code says it too
        sys.stdout.flush()
    with suppress(OSError):
        if before:
            print(before, file=sys.stderr)
        if message:
            print(f"\nerror: {message}", file=sys.stderr, flush=True)
        else:
            traceback.print_exc()


# -------------------------------------------------------------------------------- Hydra's errors in our words
def explain(error: Exception, schema: type[Config]) -> str:
    """One message that names key, value, choices and nearest valid key for whatever composing raised."""
    text = str(error).strip()
    if isinstance(error, OverrideParseException):
        return (
            f"{error.override}: cannot be read. Write key=value, and quote spaces, commas and brackets twice: "
            f"""'env.tasks=["put the moka pot on the stove"]'"""
        )
    if isinstance(error, MissingConfigException):
        missing, options = _missing(text)
        if options and "/" in missing:
            group, _, choice = missing.rpartition("/")
            if group == "policy" and (why := unusable(choice)):
                return f"policy={choice}: {why}"
            return f"{group}={choice}: no such choice. Choose one of {', '.join(options)}. {nearest(choice, options)}"
        return text.splitlines()[0]
    if found := re.match(r"Could not override '([^']*)'", text):
        return f"{_given(found[1])}: {_unknown(found[1], schema)}"
    if found := re.match(r"Could not append to config. An item is already at '([^']*)'", text):
        return f"+{_given(found[1])}: the key exists already. Fix: {_given(found[1])}"
    twice = _added() if text.startswith("Error resolving interpolation") else None
    if found := re.match(r"Multiple values for (\S+)\.|force-add of config groups is not supported: '\+*(\w+)", text):
        twice = found[1] or found[2]
    if twice:
        return f"{_given(twice)}: is a choice that is there already. Fix: {_given(twice)}, without +"
    if isinstance(error, yaml.YAMLError):
        return f"not valid YAML: {text}"
    return "\n".join(filter(None, [text, str(error.__cause__ or "").split("\n")[0]]))


def _missing(text: str) -> tuple[str, list[str]]:
    """The file that Hydra did not find, and what there is in its group."""
    found = re.search(r"Could not (?:find|load) '([^']*)'", text)
    before = text.partition("\nConfig search path")[0]
    listed = re.search(r"Available options in [^\n]*\n((?:\s+\S+\n?)*)", before)
    return found[1] if found else "", listed[1].split() if listed else []


def _unknown(key: str, schema: type[Config]) -> str:
    if key in GROUPS:
        own = sorted(set(keys(schema)) - set(keys(Config)))
        return f"this command has no such choice. Of its own it has {', '.join(own)}"
    valid = keys(schema)
    if any(re.fullmatch(re.escape(known).replace("<name>", r"[^.]+"), key) for known in valid):
        return f"is not there yet. Fix: '+{_given(key)}'"  # of a name that was itself added with +, or of a policy
    return unknown(key, schema)


def _added() -> str | None:
    """A choice of the command line that was given with a +."""
    heads = [a.split("=")[0] for a in sys.argv[1:] if a.startswith("+")]
    return next((head.lstrip("+") for head in heads if head.lstrip("+") in GROUPS), None)


def _given(key: str) -> str:
    """`key=value` as it was typed, if it was."""
    return next((a.lstrip("+~") for a in sys.argv[1:] if a.lstrip("+~").split("=")[0] == key), key)
