"""A policy as stock lerobot runs it with nothing of ours installed, and the way to the hub.

python -m recap.export outputs/libero/iter_01/policy/checkpoints/last moka_pi0   # lerobot-eval --policy.path=moka_pi0 …
python -m recap.export outputs/libero/iter_01/policy/checkpoints/last --push USER/NAME
python -m recap.export outputs/libero/iter_01/rollout/dataset --push USER/NAME   # a data set, as it is
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from recap.policies.registry import NoPolicyError
from recap.rollout.config import Prompt
from recap.utils import home
from recap.utils.console import spell
from recap.utils.errors import RecapError
from recap.utils.files import follow_umask

if TYPE_CHECKING:
    from recap.policies.adapter import Adapter

INDICATOR = {Prompt.positive: True, Prompt.negative: False, Prompt.none: None}


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit code: 0, or 1 with one line on standard error for a problem the user can fix."""
    spell()
    parser = argparse.ArgumentParser(
        prog="python -m recap.export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=home.path, help="a checkpoint, or with --push also a data set")
    parser.add_argument("folder", type=home.path, nargs="?", help="where to write the policy; must not exist yet")
    parser.add_argument("--push", metavar="USER/NAME", help="upload it to this repository of the hub instead")
    parser.add_argument("--prompt", choices=[p.name for p in Prompt], default="positive", help="what it is always told")
    parser.add_argument("--type", metavar="PACKAGE", help="policy.type, if the policy is one of a package of yours")
    try:
        given = parser.parse_args(arguments)
        if (given.folder is None) == (given.push is None):
            parser.error("give either a folder or --push USER/NAME")
        if given.push is not None:
            print(push(given.source, given.push, Prompt[given.prompt], given.type))
        else:
            print(export(given.source, given.folder, Prompt[given.prompt], kind=given.type))
    except RecapError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def export(
    source: Path, out: Path, prompt: Prompt = Prompt.positive, name: str | None = None, kind: str | None = None
) -> Path:
    """Writes a checkpoint as a policy that lerobot runs without this package, and that says the indicator by itself.

    Args:
        name: what the processors call the folder; by default `out`, absolute. kind: the policy.type of a package of
            yours; None: the checkpoint is of a policy of this package.

    Raises:
        RecapError: lerobot has no words for this policy, or `out` exists, or the checkpoint cannot be read.
    """
    adapter = _adapter(source, kind)
    if out.exists():
        raise RecapError(f"{out} exists already. Fix: name a new folder.")
    temporary = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    adapter.export(source, temporary, INDICATOR[prompt], str(out.resolve()) if name is None else name)
    follow_umask(temporary)
    temporary.rename(out)
    return out


def push(source: Path, name: str, prompt: Prompt = Prompt.positive, kind: str | None = None) -> str:
    """Uploads a policy or a data set to the hub; the address.

    A policy of a size that lerobot has no words for is uploaded as it is, and needs recap to run.

    Raises:
        RecapError: it is no checkpoint, or holds links or what is not allowed; the hub refuses, or is not reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    if link := next((path for path in source.rglob("*") if path.is_symlink()), None):
        raise RecapError(
            f"--push {name}: {link} is a link, and what it leads to would be uploaded. "
            f"Fix: if you know all of it, cp -rL {source} copy && python -m recap.export copy --push {name}"
        )
    try:
        if (source / "meta/info.json").is_file():
            LeRobotDataset(name, root=source).push_to_hub()
            return f"https://huggingface.co/datasets/{name}"
        api = HfApi()
        with tempfile.TemporaryDirectory(dir=source.resolve().parent, prefix=".push.", suffix=".tmp") as folder:
            known = _adapter(source, kind).exports(source)
            upload = export(source, Path(folder) / "policy", prompt, name, kind) if known else source
            api.create_repo(name, exist_ok=True)
            api.upload_folder(repo_id=name, folder_path=upload, ignore_patterns=["training_state.pt", ".*"])
        return f"https://huggingface.co/{name}"
    except (HfHubHTTPError, OSError) as error:
        raise RecapError(
            f"--push {name}: {str(error).splitlines()[0]}. "
            "Fix: a network, and `hf auth login` with a token that may write."
        ) from error


def _adapter(source: Path, kind: str | None) -> Adapter:
    """Of the network that a checkpoint is of. Raises RecapError if it is no whole checkpoint of a known one."""
    from recap.policies.folder import CONFIG, held, type_of
    from recap.policies.registry import adapter_of, keys_of, reader_of

    named = f"checkpoint {source}"
    try:
        keys = keys_of(kind) if kind else reader_of(type_of(source, named) if (source / CONFIG).is_file() else "")
    except NoPolicyError as error:
        raise RecapError(f"--type {kind}: {error}") from None
    held(source, keys, named)
    return adapter_of(keys)


if __name__ == "__main__":
    sys.exit(main())
