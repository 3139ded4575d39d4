"""A policy as stock lerobot runs it with nothing of ours installed, and the way to the hub.

python -m recap.export outputs/libero/iter_01/policy/checkpoints/last moka_pi0   # lerobot-eval --policy.path=moka_pi0 …
python -m recap.export outputs/libero/iter_01/policy/checkpoints/last --push USER/NAME
python -m recap.export outputs/libero/iter_01/rollout/dataset --push USER/NAME   # a data set, as it is
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from recap.policies.roles import Role
from recap.rollout.config import Prompt
from recap.utils import home
from recap.utils.console import spell
from recap.utils.errors import RecapError
from recap.utils.files import follow_umask

INDICATOR = {Prompt.positive: True, Prompt.negative: False, Prompt.none: None}
PROBES = (
    "put both moka pots on the stove",
    "turn on the stove and put the moka pot on it",
    "Pick up 3 cups, then stop.",
)


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
    try:
        given = parser.parse_args(arguments)
        if (given.folder is None) == (given.push is None):
            parser.error("give either a folder or --push USER/NAME")
        if given.push is not None:
            print(push(given.source, given.push, Prompt[given.prompt]))
        else:
            print(export(given.source, given.folder, Prompt[given.prompt]))
    except RecapError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def export(source: Path, out: Path, prompt: Prompt = Prompt.positive, name: str | None = None) -> Path:
    """Writes a checkpoint as a plain π0 of lerobot's, whose tokenizer appends the indicator by itself.

    The weights are linked where the disk allows it; adapters are added to the weights in float32.

    Args:
        name: what the processors call the folder of the tokenizer; by default `out`, absolute.

    Raises:
        RecapError: lerobot has no words for these sizes, or `out` exists, or the checkpoint cannot be read.
    """
    from lerobot.policies.pi0.processor_pi0 import Pi0NewLineProcessor
    from lerobot.processor import TokenizerProcessorStep

    from recap.policies import lora as adapters
    from recap.policies.checkpoint import loaded, read_config
    from recap.policies.folder import WEIGHTS, has_adapters
    from recap.policies.pi0.modeling_pi0 import RecapPI0Policy
    from recap.policies.processors import keep_usable, prompt_step, read_processors
    from recap.policies.weights import names_of

    config = read_config(source, RecapPI0Policy)
    plain = config.plain()
    if plain is None:
        raise RecapError(
            f"{source}: lerobot's π0 has one size, and this is another. Fix: leave it as it is, and where recap is "
            f"installed run lerobot-eval --env.discover_packages_path=recap.policies --policy.path={source} …"
        )
    if out.exists():
        raise RecapError(f"{out} exists already. Fix: name a new folder.")
    before, after = read_processors(source, config, "cpu")
    keep_usable((before, after))
    step = prompt_step(before)
    tokenizer = _baked(step.input_tokenizer, INDICATOR[prompt])
    temporary = out.with_name(f".{out.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    plain.device, plain.use_peft = config.device, False
    plain.freeze_vision_encoder = plain.train_expert_only = False
    plain.save_pretrained(temporary)
    tokenizer.save_pretrained(temporary)
    if has_adapters(source):
        from safetensors.torch import save_file

        config.dtype = "float32"
        policy = loaded(RecapPI0Policy, config, source, None)
        save_file(adapters.merged(policy), temporary / WEIGHTS, metadata={"format": "pt"})
    else:
        names_of(source / WEIGHTS)  # which opens it: another file under this name would go out with the policy
        _link(source / WEIGHTS, temporary / WEIGHTS)
    stock = TokenizerProcessorStep(tokenizer_name=str(temporary), max_length=step.max_length, padding_side="right")
    stock.tokenizer_name = str(out.resolve()) if name is None else name
    at = before.steps.index(step)
    before.steps = [*before.steps[:at], Pi0NewLineProcessor(), stock, *before.steps[at + 1 :]]
    before.save_pretrained(temporary)
    after.save_pretrained(temporary)
    follow_umask(temporary)
    temporary.rename(out)
    return out


def push(source: Path, name: str, prompt: Prompt = Prompt.positive) -> str:
    """Uploads a policy or a data set to the hub; the address.

    A policy of a size that lerobot has no words for is uploaded as it is, and needs recap to run.

    Raises:
        RecapError: it is no checkpoint, or holds links or what is not allowed; the hub refuses, or is not reached.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    from recap.policies.checkpoint import read_config
    from recap.policies.folder import TYPES, held
    from recap.policies.pi0.modeling_pi0 import RecapPI0Policy

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
            policy = held(source, None, f"checkpoint {source}").type in TYPES[Role.policy]
            known = policy and read_config(source, RecapPI0Policy).plain() is not None
            upload = export(source, Path(folder) / "policy", prompt, name) if known else source
            api.create_repo(name, exist_ok=True)
            api.upload_folder(repo_id=name, folder_path=upload, ignore_patterns=["training_state.pt", ".*"])
        return f"https://huggingface.co/{name}"
    except (HfHubHTTPError, OSError) as error:
        raise RecapError(
            f"--push {name}: {str(error).splitlines()[0]}. "
            "Fix: a network, and `hf auth login` with a token that may write."
        ) from error


def _baked(tokenizer: Any, indicator: bool | None) -> Any:
    """The tokenizer that says the indicator by itself, after it was seen to give the ids that training gave."""
    from recap.policies.prompt import prompt, with_indicator

    baked = with_indicator(tokenizer, indicator)
    for task in PROBES:
        if baked(prompt(task, None))["input_ids"] != tokenizer(prompt(task, indicator))["input_ids"]:
            raise RecapError(
                f"this tokenizer joins the instruction and the indicator into other tokens ({task!r}), so that nothing "
                "can be appended for it. Fix: use lerobot with recap installed."
            )
    return baked


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source.resolve(), target)
    except OSError:  # another disk
        shutil.copyfile(source, target)


if __name__ == "__main__":
    sys.exit(main())
