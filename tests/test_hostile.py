"""Files of strangers: none of these attempts runs code or leads elsewhere, wherever a checkpoint is read."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hostile_helpers import Runs, edit, refused
from lerobot.policies.factory import make_pre_post_processors
from policy_helpers import new_pi0, take_for_full_size
from safetensors.torch import load_file, save_file
from tiny_run import run

from recap.export import export, push
from recap.pipeline.commands import checkpoint_folder
from recap.policies.checkpoint import Checkpoint
from recap.policies.folder import ADAPTER_CONFIG, CONFIG, POSTPROCESSOR, PREPROCESSOR, WEIGHTS
from recap.policies.pi0.adapter import PI0Adapter
from recap.policies.pi0.config import TARGETS, PI0Config
from recap.policies.pi0.modeling_pi0 import RecapPI0Config, RecapPI0Policy
from recap.policies.prompt import builtin_tokenizer, load_tokenizer
from recap.utils.errors import RecapError

EVIL = "evil_module_of_a_stranger"
Attempt = Callable[[Path, Path], object]  # (checkpoint folder, marker): writes what makes the marker if it runs


def code(folder: Path, marker: Path) -> None:
    """A module that makes the marker when it is imported; the folder is on Python's path, as a current one is."""
    text = f"import os\nos.mkdir({str(marker)!r})\nclass Tokenizer:\n    pass\n"
    (folder / f"{EVIL}.py").write_text(text)


def step(file: str, **entry: Any) -> Attempt:
    """Another step; MARKER and FOLDER stand for the marker and the checkpoint folder."""

    def attempt(folder: Path, marker: Path) -> None:
        code(folder, marker)
        text = json.dumps(entry).replace("MARKER", str(marker)).replace("FOLDER", str(folder))
        edit(folder / file, lambda content: content["steps"].insert(0, json.loads(text)))

    return attempt


def argument(**config: Any) -> Attempt:
    """An argument more for the step that makes tokens."""

    def attempt(folder: Path, marker: Path) -> None:
        edit(folder / PREPROCESSOR, lambda content: content["steps"][2]["config"].update(config))

    return attempt


def state_file(name: str) -> Attempt:
    def attempt(folder: Path, marker: Path) -> None:
        save_file({"x": torch.zeros(1)}, folder.parent / "outside.safetensors")
        path = name.replace("OUTSIDE", str(folder.parent))
        edit(folder / PREPROCESSOR, lambda content: content["steps"][-1].update(state_file=path))

    return attempt


def tokenizer_with_code(file: str, to: str = ".") -> Attempt:
    """A tokenizer whose class is in a file beside it; `to`: where, seen from the checkpoint."""

    def attempt(folder: Path, marker: Path) -> None:
        there = folder / to
        there.mkdir(exist_ok=True)
        code(there, marker)
        builtin_tokenizer().save_pretrained(there)
        content = {"auto_map": {"AutoTokenizer": [None, f"{EVIL}.Tokenizer"]}, "tokenizer_class": "Tokenizer"}
        if (there / file).is_file():
            content = {**json.loads((there / file).read_text()), **content}
        (there / file).write_text(json.dumps(content))

    return attempt


def elsewhere(folder: Path, marker: Path) -> None:
    """lerobot's step with the tokenizer of another folder, which brings code."""
    tokenizer_with_code("tokenizer_config.json", "../tokenizer")(folder, marker)
    config = {"tokenizer_name": str(folder.parent / "tokenizer"), "max_length": 40}
    entry = {"registry_name": "tokenizer_processor", "config": config}
    edit(folder / PREPROCESSOR, lambda content: content["steps"].insert(2, entry))


def pickled(name: str, *, instead: bool) -> Attempt:
    def attempt(folder: Path, marker: Path) -> None:
        (folder / name).write_bytes(pickle.dumps(Runs(marker)))
        if instead:
            (folder / WEIGHTS).unlink()

    return attempt


def adapters(**changes: Any) -> Attempt:
    def attempt(folder: Path, marker: Path) -> None:
        code(folder, marker)
        base = shutil.copytree(folder, folder.parent / "base")
        state = load_file(folder / WEIGHTS)
        save_file(state, folder / "adapter_model.safetensors")
        plain = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": TARGETS}
        plain["base_model_name_or_path"] = str(base)
        (folder / ADAPTER_CONFIG).write_text(json.dumps({**plain, **changes}))

    return attempt


PREPARES = {"registry_name": "action_tokenizer_processor"}
PREPARES["config"] = {"action_tokenizer_name": "FOLDER", "trust_remote_code": True}  # type: ignore[assignment]
ATTEMPTS: dict[str, tuple[Attempt, str, str]] = {  # name -> (attempt, the file, what is not allowed)
    "a program": (
        step(PREPROCESSOR, **{"class": "subprocess.Popen", "config": {"args": ["mkdir", "MARKER"]}}),
        PREPROCESSOR,
        "a step of the class 'subprocess.Popen'",
    ),
    "a program behind the policy": (
        step(POSTPROCESSOR, **{"class": "os.mkdir", "config": {"path": "MARKER"}}),
        POSTPROCESSOR,
        "a step of the class 'os.mkdir'",
    ),
    "a module in the folder": (
        step(PREPROCESSOR, **{"class": f"{EVIL}.Tokenizer", "config": {}}),
        PREPROCESSOR,
        f"a step of the class '{EVIL}.Tokenizer'",
    ),
    "a step with remote code": (step(PREPROCESSOR, **PREPARES), PREPROCESSOR, "the step 'action_tokenizer_processor'"),
    "a class beside a name": (
        step(PREPROCESSOR, **{"registry_name": "to_batch_processor", "class": f"{EVIL}.Tokenizer"}),
        PREPROCESSOR,
        "'class' of the step 'to_batch_processor'",
    ),
    "an argument": (
        argument(tokenizer_name="/somewhere"),
        PREPROCESSOR,
        "the argument tokenizer_name='/somewhere' of the step 'recap_prompt'",
    ),
    "no list": (
        lambda folder, _: edit(folder / PREPROCESSOR, lambda content: content.update(steps={"class": "os.mkdir"})),
        PREPROCESSOR,
        "its processors cannot be read",
    ),
    "state above": (state_file("../outside.safetensors"), PREPROCESSOR, "the state_file '../outside.safetensors'"),
    "state elsewhere": (state_file("OUTSIDE/outside.safetensors"), PREPROCESSOR, "outside.safetensors' of the step"),
    "another folder's tokenizer": (elsewhere, PREPROCESSOR, "tokenizer_name='"),
    "a tokenizer with code": (tokenizer_with_code("tokenizer_config.json"), "tokenizer_config.json", "auto_map={"),
    "a configuration with code": (
        lambda folder, _: edit(folder / CONFIG, lambda content: content.update(auto_map={"AutoConfig": f"{EVIL}.C"})),
        CONFIG,
        "auto_map={",
    ),
    "trust": (
        lambda folder, _: edit(folder / CONFIG, lambda content: content.update(trust_remote_code=True)),
        CONFIG,
        "trust_remote_code=True",
    ),
    "nested without end": (
        lambda folder, _: (folder / CONFIG).write_text("[" * 200_000),
        CONFIG,
        "config.json is damaged (RecursionError",
    ),
    "weights as a pickle": (pickled("pytorch_model.bin", instead=True), "pytorch_model.bin", "is a pickle"),
    "adapters of a module": (
        adapters(megatron_config={"x": 1}, megatron_core=EVIL),
        ADAPTER_CONFIG,
        "megatron_config={'x': 1}",
    ),
    "adapters of a library": (
        adapters(auto_mapping={"base_model_class": "Tokenizer", "parent_library": EVIL}),
        ADAPTER_CONFIG,
        "auto_mapping={",
    ),
    "adapters of another kind": (adapters(peft_type="PROMPT_TUNING"), ADAPTER_CONFIG, "peft_type='PROMPT_TUNING'"),
    "a pattern that takes for ever": (adapters(target_modules="(.*a?)*$"), ADAPTER_CONFIG, "target_modules='(.*a?)*$'"),
    "a rank that takes all memory": (adapters(r=10**9), ADAPTER_CONFIG, "r=1000000000"),
    "weights of nobody": (adapters(base_model_name_or_path="/etc"), ADAPTER_CONFIG, "the weights in /etc, where no"),
}


def given(folder: Path) -> None:
    checkpoint_folder(str(folder), PI0Config)


def loaded(folder: Path) -> None:
    Checkpoint.load(folder, PI0Adapter(), "cpu")


def started(folder: Path) -> None:
    new_pi0(pretrained=str(folder))


def exported(folder: Path) -> None:
    export(folder, folder.parent / "exported")


def pushed(folder: Path) -> None:
    push(folder, "nobody/nothing")


DOORS = [given, loaded, started, exported, pushed, RecapPI0Policy.from_pretrained]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint") / "theirs"
    new_pi0(seed=3).save(folder)
    return folder


@pytest.fixture
def theirs(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A good checkpoint, to be spoilt; Python finds modules in it, as with `python -m` in a folder."""
    folder = Path(shutil.copytree(saved, tmp_path / "theirs"))
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    return folder


@pytest.mark.parametrize("name", ATTEMPTS)
def test_a_checkpoint_runs_nothing(name: str, theirs: Path, tmp_path: Path) -> None:
    attempt, file, says = ATTEMPTS[name]
    marker = tmp_path / "marker"
    attempt(theirs, marker)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    for door in DOORS:
        with pytest.raises(RecapError) as caught:
            door(theirs)
        refused(caught.value, str(theirs), file, says)
        assert not marker.exists(), door
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before, "nothing was written anywhere"


@pytest.mark.parametrize("name", ["a program behind the policy", "a module in the folder"])
def test_the_attempts_are_real(name: str, theirs: Path, tmp_path: Path) -> None:
    """lerobot itself does what they ask for, so that the test above could fail."""
    ATTEMPTS[name][0](theirs, tmp_path / "marker")
    with suppress(Exception):
        make_pre_post_processors(RecapPI0Config(), str(theirs))
    assert (tmp_path / "marker").is_dir()


def test_eval_says_so_on_one_screen(theirs: Path, tmp_path: Path) -> None:
    attempt, file, says = ATTEMPTS["a program"]
    attempt(theirs, tmp_path / "marker")
    done = run("eval", "experiment=demo_small", "launcher=inline", f"checkpoint={theirs}", cwd=tmp_path)
    assert done.code == 1
    assert "Traceback" not in done.err
    assert f": {theirs / file}: {says}, which is not allowed in a checkpoint. Fix: ask for" in done.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["theirs"]


@pytest.mark.parametrize("name", [WEIGHTS, "policy_preprocessor_step_2_recap_prompt.safetensors"])
def test_a_pickle_under_another_name(name: str, theirs: Path, tmp_path: Path) -> None:
    assert (theirs / name).is_file()
    pickled(name, instead=False)(theirs, tmp_path / "marker")
    with pytest.raises(RecapError) as caught:
        loaded(theirs)
    refused(caught.value, str(theirs))
    assert not (tmp_path / "marker").exists()


def test_a_tokenizer_in_a_state_has_no_other_arguments(theirs: Path) -> None:
    """The file of the step that makes tokens brings keywords for transformers; only names of tokens are taken."""
    file = theirs / "policy_preprocessor_step_2_recap_prompt.safetensors"
    text, names = json.loads(bytes(load_file(file)["tokenizer"].numpy()))
    assert names["pad_token"] == "<pad>"
    more = {**names, "tokenizer_file": "/nowhere", "gguf_file": "/nowhere", "auto_map": {}, "unk_token": ["a"]}
    text = json.dumps([text, more]).encode()
    save_file({"tokenizer": torch.frombuffer(bytearray(text), dtype=torch.uint8)}, file)
    tokenizer = Checkpoint.load(theirs, PI0Adapter(), "cpu").preprocess.steps[2].input_tokenizer
    assert (tokenizer.pad_token, tokenizer.unk_token) == ("<pad>", None)
    assert not {"tokenizer_file", "gguf_file", "auto_map"} & {*tokenizer.init_kwargs}


def test_a_tokenizer_by_name_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`policy.tokenizer=<a folder>`; and with nobody at the keyboard, nobody is asked."""
    monkeypatch.setattr("builtins.input", lambda _: "y")
    tokenizer_with_code("tokenizer_config.json", "tokenizer")(tmp_path, tmp_path / "marker")
    with pytest.raises(RecapError, match=r"tokenizer_config\.json: auto_map=.* not allowed .* Fix: remove auto_map"):
        load_tokenizer(str(tmp_path / "tokenizer"))
    assert not (tmp_path / "marker").exists()
    for name in ("tokenizer_config.json", CONFIG):  # the advice works
        if (tmp_path / "tokenizer" / name).is_file():
            edit(tmp_path / "tokenizer" / name, lambda content: content.pop("auto_map", None))
    assert load_tokenizer(str(tmp_path / "tokenizer"))("put")["input_ids"] == builtin_tokenizer()("put")["input_ids"]


def test_nothing_private_is_exported_through_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saved: Path
) -> None:
    ours = new_pi0(seed=3)
    take_for_full_size(ours, monkeypatch)
    theirs = Path(shutil.copytree(saved, tmp_path / "theirs"))
    secret = tmp_path / "id_ed25519"
    secret.write_text("private")
    (theirs / WEIGHTS).unlink()
    (theirs / WEIGHTS).symlink_to(secret)
    with pytest.raises(RecapError, match=rf"{theirs / WEIGHTS}: truncated or damaged"):
        export(theirs, tmp_path / "exported")
    assert not (tmp_path / "exported").exists()
    with pytest.raises(
        RecapError, match=rf"{theirs / WEIGHTS} is a link, and what it leads to would be uploaded\. Fix"
    ):
        push(theirs, "nobody/nothing")
