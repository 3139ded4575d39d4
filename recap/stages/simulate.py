"""A policy in the environment: what the stages `rollout` and `eval` do."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from recap.config import Config
from recap.envs import EpisodeSpec
from recap.method.config import SourceKind
from recap.method.success import summarize
from recap.policies.actor import ActionChunks, Values
from recap.policies.adapter import cameras_of
from recap.policies.checkpoint import Checkpoint
from recap.policies.folder import checkpoint_of
from recap.policies.processors import indicator_step
from recap.policies.registry import adapter_of
from recap.policies.roles import Role
from recap.rollout.collect import EpisodeResult, already, journals, roll
from recap.rollout.config import CorrectionsConfig, Prompt
from recap.rollout.operator import ValueWatch
from recap.rollout.pool import Pool
from recap.rollout.worker import EnvFacts
from recap.stages.base import Inputs, Say, prompt_for
from recap.stages.inputs import plan, publish, published
from recap.utils.device import device_name, threads_beside
from recap.utils.errors import RecapError
from recap.utils.files import write_text
from recap.utils.ranks import WHOLE, Share

STATES_PER_ITERATION = 100_000
INDICATOR = {Prompt.positive: True, Prompt.negative: False, Prompt.none: None}


def rollout(
    cfg: Config,
    inputs: Inputs,
    out: Path,
    say: Say,
    *,
    iteration: int,
    episodes: int,
    videos: int,
    prompt: Prompt,
    beta: float,
    tasks: list[str] | None = None,
    tries: int = 1,
    corrections: CorrectionsConfig | None = None,
    share: Share = WHOLE,
) -> None:
    """Experience: the current policy on seeded placements that are never evaluated, time-outs kept."""
    if published(out):
        return
    if "policy" not in inputs:
        inputs, prompt, beta = _best(cfg, inputs, prompt, beta)
        say(f"collected by {checkpoint_name(cfg, inputs['policy'])}")
    episode_plan = plan(cfg, episodes, iteration * STATES_PER_ITERATION, stream=iteration, only=tasks, tries=tries)
    results = _act(
        cfg,
        inputs,
        episode_plan,
        "collection",
        prompt,
        beta,
        record=out / "episodes",
        videos=out / "videos",
        video_episodes=videos,
        corrections=corrections,
        progress="rollout",
        share=share,
    )
    if not share.whole:
        return
    alone, corrected = (sum(r.alone for r in results), [r.success for r in results if r.corrected_from is not None])
    say(f"{alone} of {len(results)} rollouts succeeded" + (" without an operator" if corrections else ""))
    if corrections:
        say(f"an operator took over in {len(corrected)}, and {sum(corrected)} of these succeeded")
    publish(cfg, out, SourceKind.rollout, checkpoint_name(cfg, inputs["policy"]))


def evaluate(
    cfg: Config,
    inputs: Inputs,
    out: Path,
    say: Say,
    *,
    episodes: int,
    videos: int,
    prompt: Prompt,
    beta: float,
    share: Share = WHOLE,
) -> None:
    """Held-out initial states, the same ones and the same noise for every policy of the run."""
    results = _act(
        cfg,
        inputs,
        plan(cfg, episodes, 0, stream=1_000_000),
        "evaluation",
        prompt,
        beta,
        journal=out / "episodes.jsonl",
        videos=out / "videos",
        video_episodes=videos,
        progress="evaluation",
        share=share,
    )
    if not share.whole:
        return
    listed = [vars(result) for result in results]
    numbers = summarize(listed, cfg.env.fps)
    result = {
        "checkpoint": checkpoint_name(cfg, inputs["policy"]),
        "prompt": prompt.name,
        "beta": beta,
        "fps": cfg.env.fps,
        **numbers,
        "episodes": listed,
    }
    write_text(out / "result.json", json.dumps(result, indent=1) + "\n")
    for journal in journals(out / "episodes.jsonl")[1:]:  # of shares: the result holds them now
        journal.unlink()
    low, high = numbers["ci95"]
    say(f"success {numbers['successes']}/{numbers['n']} = {numbers['success_rate']:.0%} [{low:.0%}, {high:.0%}]")


def _best(cfg: Config, inputs: Inputs, prompt: Prompt, beta: float) -> tuple[Inputs, Prompt, float]:
    """The policy with the highest success rate so far, the later one of equals, prompted as it was trained."""
    rounds = range(sum(role.startswith("policy_") for role in inputs))
    rates = [json.loads((inputs[f"eval_{k}"] / "result.json").read_text())["success_rate"] for k in rounds]
    best = max(rounds, key=lambda k: (rates[k], k))
    prompt = prompt_for(prompt, cfg.policy.finetune if best else cfg.policy.sft)
    return {**inputs, "policy": inputs[f"policy_{best}"]}, prompt, 1.0 if prompt is Prompt.none else beta


def checkpoint_name(cfg: Config, policy: Path) -> str:
    """The checkpoint as results name it: within the run, so that a run can be moved; absolute from elsewhere."""
    path, run = checkpoint_of(policy).absolute(), Path(cfg.output).absolute()
    return path.relative_to(run).as_posix() if path.is_relative_to(run) else str(path)


def check_robot(checkpoint: Checkpoint, env: EnvFacts) -> None:
    """Raises RecapError where the environment has other cameras, state or action sizes than the policy was made for."""
    config = checkpoint.policy.config
    trained = {"observation.state": config.robot_state_feature, "action": config.action_feature}
    for key, size in (("observation.state", env.state_dim), ("action", env.action_dim)):
        feature = trained[key]
        if feature is not None and feature.shape != (size,):
            raise RecapError(
                f"the policy was trained with {key} of dimension {feature.shape[0]}, the environment has {size}. "
                "Fix: a checkpoint of this robot, or its environment with env=…"
            )
    missing = [key for key in cameras_of(config) if key not in checkpoint.sees(env.cameras)]
    if missing:
        raise RecapError(
            f"the policy was trained with camera {missing[0]}, the environment has {', '.join(env.cameras)}. "
            "Fix: a checkpoint of this robot, or its environment with env=…"
        )


def warn_of_prompt(checkpoint: Checkpoint, policy: Path, section: str, prompt: Prompt) -> None:
    """Warns of a prompt with an indicator that the policy never saw; section: where the configuration has `prompt`."""
    if INDICATOR[prompt] is not None and indicator_step(checkpoint.preprocess).default_indicator is None:
        print(
            f"warning: {policy} was trained without an indicator, but is prompted '{prompt.name}'. "
            f"{section}.prompt=none gives it the prompts that it knows.",
            file=sys.stderr,
            flush=True,
        )


def _for_acting(cfg: Config, role: Role, stage: Path) -> Checkpoint:
    keys = cfg.network(role)
    adapter = adapter_of(keys)
    checkpoint = Checkpoint.load(checkpoint_of(stage), adapter, device_name(cfg.device))
    adapter.prepare_acting(checkpoint.policy, keys)
    return checkpoint


def _act(
    cfg: Config,
    inputs: Inputs,
    episodes: list[EpisodeSpec],
    split: str,
    prompt: Prompt,
    beta: float,
    *,
    share: Share,
    record: Path | None = None,
    journal: Path | None = None,
    **options: Any,
) -> list[EpisodeResult]:
    """Plays a share of the episodes; the results of all that are finished then."""
    done = already(episodes, record, journal)
    if all(spec.index in done for spec in share.of(episodes)):
        return [done[spec.index] for spec in episodes if spec.index in done]
    with Pool(cfg.env, cfg.workers.num_workers, cfg.workers.num_envs) as pool, threads_beside(pool.processes):
        checkpoint = _for_acting(cfg, Role.policy, inputs["policy"])
        check_robot(checkpoint, pool.facts)
        warn_of_prompt(checkpoint, inputs["policy"], "eval" if record is None else "rollout", prompt)
        act = ActionChunks(checkpoint, INDICATOR[prompt], beta)
        options |= {"share": share, "record": record, "journal": journal}
        if "value" in inputs:
            options["watch"] = ValueWatch(Values(_for_acting(cfg, Role.value, inputs["value"])), options["corrections"])
        return roll(pool, episodes, split, act, cfg.policy.n_action_steps, **options)
