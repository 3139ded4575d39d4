"""Rollouts on the real embedded environment: the same episodes whatever the pool, the batch or the interruptions."""

import os
import signal
import subprocess
import sys
import time
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from recap.data.lerobot_writer import finished
from recap.envs import EpisodeSpec
from recap.envs.config import DemonstratorConfig, EnvConfig, Images
from recap.envs.moka import scene
from recap.rollout.collect import EpisodeResult, Pool, demonstrate, read_journal, roll
from recap.rollout.rounds import _Half
from recap.rollout.worker import EnvFacts
from recap.utils.errors import RecapError

TASKS = ["turn on the stove", "put the moka pot on the stove"]
ENV = EnvConfig(type="moka", tasks=TASKS, image_size=32, recorded_images=Images.png, fps=10, max_steps=20)
MIXED = DemonstratorConfig(episodes=4, max_steps=60, slow=0.3, hesitate=0.3, miss=0.3, noise=0.3)
PLAN = [EpisodeSpec(i, TASKS[i % 4 == 3], initial_state=i, seed=100 + i) for i in range(9)]
CHUNK, EXECUTED = 8, 4
BUTTON = np.array([*(scene.STOVE_CENTER + scene.BUTTON), scene.BUTTON_TOP - 0.02])


def act(observation, noise_keys):
    """Toward the stove's button, with noise from the key and from every pixel: any difference in what is seen shows."""
    actions = np.zeros((len(noise_keys), CHUNK, 7), np.float32)
    for row, key in enumerate(noise_keys):
        images = [observation[f"observation.images.{name}"][row].tobytes() for name in ("image", "image2")]
        rng = np.random.default_rng([*key, *map(zlib.crc32, images), zlib.crc32(observation["task"][row].encode())])
        way = BUTTON - observation["observation.state"][row, :3]
        if np.hypot(*way[:2]) > 0.05:
            way[2] = max(way[2], 0.0)
        actions[row, :, :3] = np.clip(way / 0.028 / 4, -1, 1) + rng.normal(0, 0.3, (CHUNK, 3))
        actions[row, :, 6] = 1
    return actions


def play(slots, processes, **options):
    options = {"progress": None, "act": act, "n_action_steps": EXECUTED, "plan": PLAN, "split": "evaluation"} | options
    with Pool(ENV, processes, slots) as pool:
        return roll(pool, **options)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def gone(pid: int, seconds: float = 10) -> bool:
    """Whether the process ends in time; a zombie has ended too."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            state = (
                Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] if sys.platform == "linux" else ""
            )
            os.kill(pid, 0)
        except (ProcessLookupError, FileNotFoundError):
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """The plan played once, in one process with four slots: (results, folder, videos)."""
    folder = tmp_path_factory.mktemp("recorded")
    results = play(4, 1, record=folder / "episodes", videos=folder / "videos", video_episodes=2)
    return results, folder / "episodes", folder / "videos"


def test_all_episodes_are_played_and_recorded_with_time_outs(recorded):
    results, folder, _ = recorded
    assert [(r.index, r.task, r.initial_state, r.seed) for r in results] == [
        (s.index, s.task, s.initial_state, s.seed) for s in PLAN
    ]
    assert {r.success for r in results} == {True, False}  # or the comparisons below would compare little
    assert all(r.steps == 20 for r in results if not r.success)
    facts = finished(folder)
    assert {i: (f["success"], f["steps"], f["split"], f["source"]) for i, f in facts.items()} == {
        r.index: (r.success, r.steps, "evaluation", "rollout") for r in results
    }


def test_other_slots_processes_and_an_interruption_give_the_same_files(recorded, tmp_path):
    results, folder, _ = recorded
    done, again = [], []

    def interrupt(result):
        done.append(result)
        if len(done) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        play(7, 2, record=tmp_path, on_done=interrupt)
    kept = finished(tmp_path)
    assert 3 <= len(kept) < len(PLAN)
    assert play(3, 1, record=tmp_path, on_done=again.append) == results
    assert sorted([*kept, *(r.index for r in again)]) == list(range(len(PLAN)))  # nothing lost, nothing played twice
    assert contents(tmp_path) == contents(folder)


def test_evaluation_renders_less_sees_the_same_and_resumes_after_a_torn_line(recorded, tmp_path):
    results, _, _ = recorded
    journal = tmp_path / "episodes.jsonl"
    shapes, idle = set(), []

    def watched(observation, noise_keys):
        shapes.add((observation["observation.state"].shape, observation["observation.images.image"].shape))
        rows = [row for row, key in enumerate(noise_keys) if key == (0, 0)]
        idle.extend(observation["observation.images.image2"][row].any() for row in rows)
        return act(observation, noise_keys)

    with Pool(ENV, 1, 4) as pool:
        assert roll(pool, PLAN, "evaluation", watched, EXECUTED, journal=journal, progress=None) == results
        whole = journal.read_bytes()
        journal.write_bytes(whole[:-9])  # killed while writing the last line
        assert len(read_journal(journal)) == len(PLAN) - 1
        again = []
        options = {"journal": journal, "on_done": again.append, "progress": None}
        assert roll(pool, PLAN, "evaluation", act, EXECUTED, **options) == results
    assert len(again) == 1
    assert journal.read_bytes().splitlines()[-1] == whole.splitlines()[-1]
    assert len(journal.read_bytes()) == len(whole)
    assert roll(Pool(ENV, 1, 1), PLAN, "evaluation", act, EXECUTED, journal=journal, progress=None) == results
    assert shapes == {((2, 8), (2, 32, 32, 3))}  # half of the slots, always
    assert idle
    assert not any(idle)


def test_videos_show_the_first_episodes_of_the_plan(recorded):
    import av

    results, _, videos = recorded
    names = [f"episode_{r.index:06d}_{'success' if r.success else 'failure'}.mp4" for r in results[:2]]
    assert sorted(path.name for path in videos.iterdir()) == names
    with av.open(str(videos / names[0])) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.width, stream.height) == ("h264", 512, 256)
        assert stream.average_rate == 10
        assert sum(1 for _ in container.decode(stream)) == results[0].steps + 1


def test_an_earlier_time_out_and_one_line_of_progress(capfd):
    assert [r.steps for r in play(2, 1, plan=PLAN[:2], max_steps=6, progress="evaluate")] == [6, 6]
    assert capfd.readouterr().err.splitlines()[-1].startswith("evaluate: 2/2  success 0% · ")


def test_demonstrations_succeed_resume_and_repeat(tmp_path):
    plan = PLAN[:4]
    with Pool(ENV, 2, 3) as pool:
        results = demonstrate(pool, plan, MIXED, record=tmp_path / "a", progress=None)
    assert all(r.success for r in results)
    assert max(r.steps for r in results) > ENV.max_steps  # the demonstrator has its own time-out
    assert {f["source"] for f in finished(tmp_path / "a").values()} == {"demonstration"}
    with Pool(ENV, 1, 1) as pool:
        demonstrate(pool, plan[:2], MIXED, record=tmp_path / "b", progress=None)
        new: list[EpisodeResult] = []
        assert demonstrate(pool, plan, MIXED, record=tmp_path / "b", on_done=new.append, progress=None) == results
        everything = demonstrate(pool, plan, MIXED, record=tmp_path / "c", keep_failures=True, progress=None)
    assert [r.index for r in new] == [2, 3]
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert [r.seed for r in everything] == [s.seed for s in plan]
    first_try = [r for r, s in zip(results, plan, strict=True) if r.seed == s.seed]
    assert first_try == [r for r in everything if r.success]
    assert len(first_try) < len(plan)  # at least one had to be tried again, or this test shows nothing


def test_a_killed_process_ends_the_roll_with_its_episodes_named():
    pids = []
    with Pool(ENV, 2, 4) as pool:

        def murder(observation, noise_keys):
            pids.extend(worker.process.pid for worker in pool.workers)
            os.kill(pids[1], signal.SIGKILL)
            return act(observation, noise_keys)

        with pytest.raises(RecapError, match=r"killed by SIGKILL.*episode 2 .*episode 3 .*run again"):
            roll(pool, PLAN, "evaluation", murder, EXECUTED, progress=None)
        with pytest.raises(RecapError, match="closed"):
            roll(pool, PLAN, "evaluation", act, EXECUTED, progress=None)
    assert all(gone(pid) for pid in pids)


def test_no_process_survives_its_parent(repository):
    """SIGKILL to the main process, while it thinks about actions."""
    script = f"""
import sys, time
sys.path[:0] = [{str(repository)!r}, {str(repository / "tests")!r}]
from test_rollout import *
with Pool(ENV, 1, 2) as pool:
    def act(observation, noise_keys):
        print(pool.workers[0].process.pid, flush=True)
        time.sleep(60)
    roll(pool, PLAN, "evaluation", act, EXECUTED, progress=None)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as main:
        pid = int(main.stdout.readline())
        assert not gone(pid, 0.2)
        main.kill()
    assert gone(pid)


@pytest.mark.parametrize(
    ("actions", "executed", "message"),
    [
        (np.zeros((1, CHUNK, 6)), EXECUTED, "dimension 6, the environment takes 7"),
        (np.zeros((2, CHUNK, 7)), EXECUTED, r"shape \(2, 8, 7\), not \[1 slots"),
        (np.zeros((CHUNK, 7)), EXECUTED, r"shape \(8, 7\)"),
        (np.zeros((1, CHUNK, 7)), CHUNK + 1, "n_action_steps=9 .*choose 1 to 8"),
        (np.full((1, CHUNK, 7), np.inf), EXECUTED, r"infinite.*episode 2 \(task 'turn on the stove'.*chunk 5"),
    ],
)
def test_actions_that_do_not_fit_are_one_clear_error(actions, executed, message):
    pool = Pool(ENV, 1, 1)
    pool._facts = EnvFacts(fps=10, cameras=(), state_dim=8, action_dim=7)
    half = _Half(pool, [0], 1, act, executed, None, playing={0: PLAN[2]}, chunks={0: 5}, observations={0: {}})
    with pytest.raises(RecapError, match=message):
        half._checked(actions)


def test_while_one_half_acts_the_policy_computes_for_the_other():
    """Both halves have been asked before either is refilled, in batches of one size; a short queue is shared."""
    served = []

    def seen(observation, noise_keys):
        served.append([seed for seed, chunk in noise_keys if seed and chunk == 0])
        return act(observation, noise_keys)

    assert Pool(ENV, 3, 5).halves() == Pool(ENV, 1, 5).halves() == [[0, 2, 4], [1, 3]], "a batch is the same everywhere"
    assert Pool(ENV, 1, 1).halves() == [[0]]
    assert [Pool(ENV, 3, 6)._home(slot) for slot in range(6)] == [0, 1, 2, 1, 0, 1], "no process serves both"
    with Pool(ENV, 2, 5) as pool:
        results = roll(pool, PLAN[:3], "evaluation", seen, EXECUTED, progress=None)
    assert served[:2] == [[100, 101], [102]]
    assert {result.index for result in results} == {0, 1, 2}


def test_nan_actions_end_the_roll_with_the_episode_named():
    with pytest.raises(RecapError, match=r"NaN.*episode 0 \(task 'turn on the stove'.*chunk 0"):
        play(1, 1, act=lambda o, k: act(o, k) * np.nan)


@pytest.mark.parametrize(("plan", "message"), [([], "episodes=0"), ([PLAN[0], PLAN[0]], "index twice")])
def test_an_empty_or_doubled_plan_is_refused(plan, message):
    with pytest.raises(RecapError, match=message):
        roll(Pool(ENV, 1, 1), plan, "evaluation", act, EXECUTED, progress=None)


def test_an_episode_that_cannot_be_written_is_named(tmp_path):
    folder = tmp_path / "file"
    folder.write_text("not a folder")
    with pytest.raises(RecapError, match=r"episode 0 .*file"):
        play(1, 1, plan=PLAN[:1], record=folder)


def test_a_journal_that_cannot_be_written_is_one_clear_error(tmp_path):
    folder = tmp_path / "file"
    folder.write_text("not a folder")
    with pytest.raises(RecapError, match=r"episodes\.jsonl cannot be written"):
        roll(Pool(ENV, 1, 1), PLAN, "evaluation", act, EXECUTED, journal=folder / "episodes.jsonl", progress=None)


def test_an_environment_that_cannot_start_says_so():
    with pytest.raises(RecapError, match=r"could not be started.*env.fps=7"), Pool(replace(ENV, fps=7), 1, 1) as pool:
        roll(pool, PLAN, "evaluation", act, EXECUTED, progress=None)
    with pytest.raises(RecapError, match=r"workers\.num_envs=0"):
        Pool(ENV, 1, 0)


def test_files_of_another_plan_are_refused(recorded, tmp_path):
    _, folder, _ = recorded
    pool = Pool(ENV, 1, 1)  # never entered: this is found before any process starts
    other = [*PLAN[:-1], replace(PLAN[-1], seed=7)]
    with pytest.raises(RecapError, match=r"holds episode 8 .*seed 108.*this plan has episode 8 .*seed 7"):
        roll(pool, other, "evaluation", act, EXECUTED, record=folder, progress=None)
    with pytest.raises(RecapError, match="holds episode 8, which is not in this plan of 8"):
        roll(pool, PLAN[:-1], "evaluation", act, EXECUTED, record=folder, progress=None)
    journal = tmp_path / "episodes.jsonl"
    journal.write_text('{"index": 0\n{"index": 1}\n')
    with pytest.raises(RecapError, match=r"episodes.jsonl, line 1 cannot be read"):
        roll(pool, PLAN, "evaluation", act, EXECUTED, journal=journal, progress=None)


def test_simulation_processes_import_no_torch():
    parts = "recap.rollout.worker, recap.data.lerobot_writer, recap.envs.moka.env"
    code = f"import sys, {parts}; print('torch' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert answer.stdout == "False\n"
