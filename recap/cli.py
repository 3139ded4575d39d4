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
from pathlib import Path

import hydra
import yaml
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from recap import tracking
from recap.chain import Chain
from recap.config import Config, ConfigError, keys, nearest, typed
from recap.errors import RecapError, disk_error

GROUPS = ("policy", "stage", "size", "env", "data", "launcher", "site", "tracking", "experiment")


def entrypoint[C: Config](schema: type[C]) -> Callable[[Callable[[C], Chain | None]], Callable[[], None]]:
    """Decorates `main(cfg)` of <name>.py, configured by conf/<name>.yaml beside it; cfg is a checked `schema`.

    main does the work, or returns it as a chain of jobs; those of all runs of a sweep are submitted side by side.
    """

    def decorate(function: Callable[[C], Chain | None]) -> Callable[[], None]:
        file = Path(inspect.getfile(function)).resolve()
        return lambda: sys.exit(_run(function, schema, file.parent / "conf", file.stem))

    return decorate


def _run[C: Config](function: Callable[[C], Chain | None], schema: type[C], conf: Path, name: str) -> int:
    """Composes, checks and runs every job of the command line, and returns the exit code."""
    failed: set[str] = set()
    chains: list[Chain] = []

    def job(cfg: DictConfig) -> None:
        """One job. It never raises, so that one failed run does not take the others with it."""
        config = typed(cfg, schema)
        if config.output in failed:
            print(
                f"{config.output}: iteration {getattr(config, 'iteration', '')} skipped, because an earlier one failed",
                file=sys.stderr,
            )
            return
        try:
            if (chain := function(config)) is not None:
                chains.append(chain)
        except RecapError as error:
            failed.add(config.output)
            _say(f"{config.output}: {error}")
        except BrokenPipeError:  # of `… | head`: nobody reads on
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise KeyboardInterrupt from None
        except OSError as error:
            failed.add(config.output)
            refusal = disk_error(error, config.output)
            if refusal:
                _say(f"{config.output}: {refusal}")
            else:
                traceback.print_exc()
        except Exception:  # noqa: BLE001  a bug: its traceback is wanted, and so are the other runs
            failed.add(config.output)
            traceback.print_exc()

    job.schema = schema  # type: ignore[attr-defined]  # for the sweeper: hydra_plugins/recap_runs.py
    full_error = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra shall raise its errors instead of printing them and exiting
    try:
        hydra.main(version_base="1.3", config_path=str(conf), config_name=name)(job)()
        if chains:
            failed |= _carry_out(chains, not failed)
    except (ConfigError, HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        if full_error == "1":
            raise
        _say(f"bad configuration: {explain(error, schema)}")
        return 2
    except ValueError as error:
        if "--cfg" not in str(error):
            raise
        _say(str(error))  # Hydra's own options do not go together
        return 2
    except KeyboardInterrupt:
        _say("interrupted. The same command again continues.")
        return 130
    finally:
        tracking.close()
        os.environ.pop("HYDRA_FULL_ERROR")
        os.environ.update({} if full_error is None else {"HYDRA_FULL_ERROR": full_error})
    return 1 if failed else 0


def _carry_out(chains: list[Chain], all_ready: bool) -> set[str]:
    """The directories of the runs that failed."""
    from recap.follow import carry_out, failure

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


def _say(message: str) -> None:
    sys.stdout.flush()
    print(f"\nerror: {message}", file=sys.stderr, flush=True)


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
            return f"{group}={choice}: no such choice. Choose one of {', '.join(options)}. {nearest(choice, options)}"
        return text.splitlines()[0]
    if found := re.match(r"Could not override '([^']*)'", text):
        return f"{_given(found[1])}: {_unknown(found[1], schema)}"
    if found := re.match(r"Could not append to config. An item is already at '([^']*)'", text):
        return f"+{_given(found[1])}: the key exists already. Fix: {_given(found[1])}"
    if found := re.match(r"Multiple values for (\S+)\.|force-add of config groups is not supported: '\+*(\w+)", text):
        key = found[1] or found[2]
        return f"{_given(key)}: is a choice that is there already. Fix: {_given(key)}, without +"
    if isinstance(error, yaml.YAMLError):
        return f"not valid YAML: {text}"
    return "\n".join(filter(None, [text, str(error.__cause__ or "").split("\n")[0]]))


def _missing(text: str) -> tuple[str, list[str]]:
    """The file that Hydra did not find, and what there is in its group."""
    found = re.search(r"Could not (?:find|load) '([^']*)'", text)
    listed = re.search(
        r"Available options in [^\n]*\n((?:\s+\S+\n?)*)", text.split("\nConfig search path", maxsplit=1)[0]
    )
    return found[1] if found else "", listed[1].split() if listed else []


def _unknown(key: str, schema: type[Config]) -> str:
    if key in GROUPS:
        own = sorted(set(keys(schema)) - set(keys(Config)))
        return f"this command has no such choice. Of its own it has {', '.join(own)}"
    return f"no such key. {nearest(key, [*keys(schema), 'experiment'])}"


def _given(key: str) -> str:
    """`key=value` as it was typed, if it was."""
    return next((a.lstrip("+~") for a in sys.argv[1:] if a.lstrip("+~").split("=")[0] == key), key)
