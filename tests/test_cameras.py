"""Which cameras of a data set are read: those in colour, or those that are chosen; none is dropped without a word."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_helpers import CAMERAS, make_episode
from policy_helpers import new_value
from tiny_run import run

from recap.data.cameras import image_shapes
from recap.data.config import DataConfig, SourceConfig
from recap.data.frames import Frames, load_frames
from recap.data.lerobot_reader import DataSetFiles
from recap.data.lerobot_writer import Episode, assemble, write_episode
from recap.data.mixture import Mixture
from recap.data.sources import load_source
from recap.method.config import SourceKind
from recap.stages.train import check_fit
from recap.utils.errors import RecapError

COLOUR, OTHER = CAMERAS
DEPTH = "observation.images.depth"
SFT = ("train", "experiment=demo_small", "data.demonstrator=null")


def record(folder: Path, fps: int = 10, keys: tuple[str, ...] = CAMERAS, size: int = 64) -> Path:
    """Two episodes as the embedded task shows them."""
    for index in range(2):
        episode = make_episode(index, 6, size=size, source="demonstration")
        images = {key: next(iter(episode.images.values())) for key in keys}
        write_episode(folder / "episodes", Episode(**{**vars(episode), "images": images}))
    return assemble(folder / "episodes", folder / "dataset", fps=fps, source="demonstration")


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("cameras")
    made = {"plain": record(folder / "plain"), "twenty": record(folder / "twenty", fps=20)}
    made["three"] = record(folder / "three", keys=(*CAMERAS, DEPTH))
    made["small"] = record(folder / "small", keys=(*CAMERAS, DEPTH), size=32)
    made["one"] = record(folder / "one", keys=(OTHER,))
    made["depth"] = Path(shutil.copytree(made["three"], folder / "depth"))
    edit(made["depth"], lambda f: f[DEPTH].update(shape=[64, 64, 1], info={"is_depth_map": True}))
    return made


def edit(root: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    info = json.loads((root / "meta/info.json").read_text())
    change(info["features"])
    (root / "meta/info.json").write_text(json.dumps(info))


def take(root: Path, name: str = "mine", cameras: list[str] | None = None, **data: Any) -> Frames:
    return load_source(DataConfig(sources={name: SourceConfig(root=str(root), cameras=cameras)}, **data), name)


def typed(error: str) -> list[str]:
    """The arguments that an error says to type, as a shell splits them."""
    return [word.rstrip(".") for word in shlex.split(error.replace("’", "")) if word.startswith("++")]


# ---------------------------------------------------------------------------------------------------- depth
@pytest.mark.parametrize(
    ("feature", "reason"),
    [
        ({"shape": [64, 64, 1], "info": {"is_depth_map": True}}, "a depth map"),
        ({"dtype": "video", "info": {"is_depth_map": True}}, "a depth map"),
        ({"dtype": "video", "info": {"video.is_depth_map": True}}, "a depth map"),
        ({"dtype": "video", "video_info": {"video.is_depth_map": True}}, "a depth map"),
        ({"shape": [64, 64, 1]}, "1 channel"),
        ({"shape": [1, 64, 64]}, "1 channel"),
        ({"shape": [64, 64, 4]}, "4 channels"),
        ({"shape": [4, 64, 64]}, "4 channels"),
        ({"shape": [64, 64]}, r"its shape is \[64, 64\]"),
    ],
)
def test_what_is_not_in_colour_is_said_and_left_out_by_what_is_typed(
    recorded: dict[str, Path], tmp_path: Path, feature: dict[str, Any], reason: str
) -> None:
    root = Path(shutil.copytree(recorded["three"], tmp_path / "copy"))
    edit(root, lambda features: features[DEPTH].update(feature))
    with pytest.raises(RecapError, match=rf"{DEPTH} \({reason}\): not read, only cameras in colour") as error:
        take(root)
    assert "copy the data set" not in str(error.value)
    (fix,) = typed(str(error.value))
    assert fix == f"++data.sources.mine.cameras=[{COLOUR},{OTHER}]"
    assert take(root, cameras=[OTHER, COLOUR]).cameras == CAMERAS, "in the order of the data set"
    with pytest.raises(RecapError, match=rf"{DEPTH} \({reason}\): not read.*cameras=\[{COLOUR}\]'"):
        take(root, cameras=[COLOUR, DEPTH])


def test_colour_is_known_by_its_channels(recorded: dict[str, Path]) -> None:
    files = DataSetFiles(recorded["plain"], "mine")
    files.features = {
        "first": {"dtype": "image", "shape": [3, 48, 64], "info": None},
        "last": {"dtype": "video", "shape": [48, 64, 3], "info": {"is_depth_map": False}},
        "state": {"dtype": "float32", "shape": [8]},
    }
    assert image_shapes(files, None) == {"first": (48, 64, 3), "last": (48, 64, 3)}
    files.features["first"]["shape"] = [1, 48, 64]
    del files.features["last"]
    with pytest.raises(RecapError, match=r"first \(1 channel\): not read.*it has no other camera"):
        image_shapes(files, None)
    del files.features["first"]
    with pytest.raises(RecapError, match=r"no camera; π0 needs one; its features are \['state'\]"):
        image_shapes(files, None)


@pytest.mark.parametrize("wrong", ["observation.images.imag2", "image2", "observation.state"])
def test_a_misspelt_camera_is_never_dropped(recorded: dict[str, Path], wrong: str) -> None:
    says = rf"no camera \['{wrong}'\], which data\.sources\.mine\.cameras names.*Nearest: "
    with pytest.raises(RecapError, match=says + (OTHER if "2" in wrong else "")):
        take(recorded["plain"], cameras=[COLOUR, wrong])


def test_each_error_names_what_makes_the_command_work(recorded: dict[str, Path], tmp_path: Path) -> None:
    """A depth camera in one source, another pace in the other: both are refused before any work."""
    roots = {"deep": recorded["depth"], "fast": recorded["twenty"]}
    command = [*SFT, *(f"+data.sources.{name}.root={root}" for name, root in roots.items())]
    command += ["policy.sft.steps=1", "policy.sft.warmup_steps=0", "policy.sft.batch_size=2"]
    for says, fix in (
        (f"{DEPTH} (a depth map): not read", f"++data.sources.deep.cameras=[{COLOUR},{OTHER}]"),
        (
            "do not mix: fps 10 and 20. Fix: data.action_freq=10 resamples both to one frame rate.",
            "data.action_freq=10",
        ),
    ):
        seen = run(*command, cwd=tmp_path)
        assert (seen.code, seen.err.count("error:")) == (1, 1), seen.err
        assert says in seen.err
        assert fix in seen.err
        assert not (tmp_path / "outputs").exists()
        command.append(fix)
    seen = run(*command, cwd=tmp_path)
    assert seen.code == 0, seen.err
    features = json.loads((tmp_path / "outputs/demo_small/sft/checkpoints/last/config.json").read_text())
    assert [key for key in features["input_features"] if "images" in key] == list(CAMERAS)


def test_the_cameras_of_the_environment(recorded: dict[str, Path], tmp_path: Path) -> None:
    source = f"+data.sources.mine.root={recorded['plain']}"
    seen = run("loop", *SFT[1:], "+iterations=1", source, f"++data.sources.mine.cameras=[{OTHER}]", cwd=tmp_path)
    assert seen.code == 1
    assert f"has cameras ['{OTHER}'], but env=moka has" in seen.err
    assert typed(seen.err[seen.err.index("error:") :]) == [f"++data.sources.mine.cameras=[{COLOUR},{OTHER}]"]


# ---------------------------------------------------------------------------------------------------- together
def test_cameras_that_all_sources_share(recorded: dict[str, Path]) -> None:
    first, three, one = (take(recorded[name], name) for name in ("plain", "three", "one"))
    with pytest.raises(RecapError, match=r"'plain' and 'three' do not mix: cameras") as error:
        Mixture([first, three, one], 1.0)
    assert typed(str(error.value)) == [f"++data.sources.{name}.cameras=[{OTHER}]" for name in ("plain", "three")]
    chosen = [take(recorded[name], name, [OTHER]) for name in ("plain", "three", "one")]
    batch = Mixture(chosen, 1.0).gather(Mixture(chosen, 1.0).pick(0, 0, 6))
    assert [key for key in batch if "images" in key] == [OTHER]
    with pytest.raises(RecapError, match=r"image sizes .*Fix: leave one of them out\.$"):
        Mixture([three, take(recorded["small"], "small")], 1.0)


def test_what_the_run_records_is_read_whole(recorded: dict[str, Path]) -> None:
    rollouts = load_frames(recorded["plain"], "rollouts_01", SourceKind.rollout)
    for source, chosen in (("three", None), ("plain", [COLOUR])):
        with pytest.raises(RecapError, match="do not mix: cameras") as error:
            Mixture([take(recorded[source], "mine", chosen), rollouts], 0.5)
        assert typed(str(error.value)) == [f"++data.sources.mine.cameras=[{COLOUR},{OTHER}]"]
    with pytest.raises(RecapError, match=r"cameras .*Fix: leave one of them out\.$"):
        Mixture([take(recorded["one"]), rollouts], 0.5)


def test_a_checkpoint_of_more_cameras(recorded: dict[str, Path]) -> None:
    checkpoint = new_value()
    check_fit(checkpoint, take(recorded["three"]))
    with pytest.raises(RecapError, match=rf"lacks camera {COLOUR} of the checkpoint") as error:
        check_fit(checkpoint, take(recorded["three"], "mine", [OTHER]))
    assert typed(str(error.value)) == [f"++data.sources.mine.cameras=[{COLOUR},{OTHER}]"]
    with pytest.raises(RecapError, match=r"lacks camera .* Fix: train from SFT on, or data of the same robot"):
        check_fit(checkpoint, take(recorded["one"]))


# ---------------------------------------------------------------------------------------------------- two paces
def test_two_paces_show_the_same_frames_at_one(recorded: dict[str, Path]) -> None:
    slow, fast = (take(recorded[name], name, action_freq=10) for name in ("plain", "twenty"))
    Mixture([slow, fast], 1.0)
    assert (slow.length.tolist(), fast.length.tolist()) == ([6, 6], [3, 3])
    assert np.array_equal(fast.action[:3], slow.action[0:6:2]), "every second frame"
