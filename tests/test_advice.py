"""What the numbers point at: each kind of trouble from a summary that has it, nothing from a healthy run."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from itertools import zip_longest
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir

from recap.config import LoopJob, typed
from recap.method.success import mcnemar, wilson
from recap.report.advice import advise, best_policy, got_worse

Summary = dict[str, Any]
N = 200
ALONE = ("labels_on_demonstrations", "continued_sft")  # ablations that see the demonstrations alone
SETTINGS = {
    "policy.sft.indicator": "ignore",
    "policy.indicator_dropout": 0.3,
    "policy.finetune.steps": 1200,
    "policy.finetune.learning_rate": 0.002,
    "policy.finetune.indicator": "use",
    "policy.finetune.episode_filter": "all",
    "policy.finetune.demo_fraction": 0.5,
    "value.finetune.steps": 500,
    "value.finetune.demo_fraction": 0.3,
    "advantage.n_step": 5,
    "advantage.positive_fraction": 0.3,
    "advantage.force_positive": [],
    "rollout.episodes": 300,
    "eval.episodes": N,
}


def evaluation(successes: int, timeouts: int | None = None, beta: float = 1.0) -> dict[str, Any]:
    return {
        "episodes": N,
        "successes": successes,
        "success_rate": successes / N,
        "ci95": list(wilson(successes, N)),
        "timeouts": timeouts,
        "beta": beta,
    }


def compared(before: int | str, after: int, fixed: int, broke: int) -> dict[str, Any]:
    return {"before": before, "after": after, **comparison(fixed, broke)}


def comparison(fixed: int, broke: int) -> dict[str, Any]:
    outcomes = [False] * fixed + [True] * broke
    p = mcnemar(outcomes, [not outcome for outcome in outcomes]).p if outcomes else 1.0
    return {"lead": (fixed - broke) / N, "fixed": fixed, "broke": broke, "mcnemar_p": p}


def run(*successes: int, **changes: Any) -> Summary:
    """SFT and iterations of N held-out initial states each; the same ones fail and succeed as far as they can."""
    policies = [
        {
            "iteration": k,
            "checkpoint": f"{f'iter_{k:02d}/policy' if k else 'sft'}/checkpoints/last",
            "eval": evaluation(won),
            "data": {"demonstrations": 80, "rollouts": 60 * k},
        }
        for k, won in enumerate(successes)
    ]
    last = len(successes) - 1
    pairs = [
        compared(k, last, max(0, successes[last] - won), max(0, won - successes[last]))
        for k, won in enumerate(successes[:-1])
    ]
    shares = {"all": 0.3, "demonstration": 0.4, "success": 0.4, "failure": 0.2}
    summary: Summary = {
        "policies": policies,
        "ablations": [],
        "comparisons": pairs,
        "forgetting": None,
        "gate": [],
        "advantage": [{"iteration": last, "wanted_positive": 0.3, "achieved_positive": shares}],
        "settings": dict(SETTINGS),
    }
    return summary | changes


def healthy() -> Summary:
    return run(70, 150)


def worse() -> Summary:
    return run(150, 90)


def with_ablation(summary: Summary, name: str, successes: int, fixed: int, broke: int, **changes: Any) -> Summary:
    """An ablation beside the last policy, which `fixed` what the ablation failed at and `broke` what it could.

    What it is follows from its entry, not from its name.
    """
    entry = {
        "name": name,
        "iteration": summary["policies"][-1]["iteration"],
        "changes": changes,
        "trained": name != "negative_prompt",
        "without_rollouts": name in ALONE,
        "eval": evaluation(successes) | {"prompt": "negative" if name == "negative_prompt" else "positive"},
        "comparison": comparison(fixed, broke),
    }
    summary["ablations"].append(entry)
    return summary


def problems(summary: Summary) -> dict[str, list[str]]:
    return {finding["problem"]: finding["try"] for finding in advise(summary)}


# ---------------------------------------------------------------------------------------------------- worse, best
def test_the_best_is_kept() -> None:
    assert best_policy(run(70, 150, 120)) == {"iteration": 1, "checkpoint": "iter_01/policy/checkpoints/last"}
    assert best_policy(run(70, 150, 150)) == {"iteration": 2, "checkpoint": "iter_02/policy/checkpoints/last"}
    assert best_policy(run(70)) == {"iteration": 0, "checkpoint": "sft/checkpoints/last"}
    assert best_policy(run(policies=[])) is None


def test_worse_by_the_test_or_by_the_estimate() -> None:
    assert got_worse(healthy()) is None
    assert got_worse(run(70, 150, 150)) is None
    sure = got_worse(run(70, 150, 120))
    assert sure == {
        "iteration": 2,
        "than": 1,
        "points": 15.0,
        "fixed": 0,
        "broke": 30,
        "mcnemar_p": pytest.approx(2 / 2**30),
        "sure": True,
    }
    unsure = got_worse(run(70, 68))
    assert unsure
    assert (unsure["than"], unsure["sure"], unsure["mcnemar_p"]) == (0, False, 0.5)


# ---------------------------------------------------------------------------------------------------- nothing to say
def test_a_healthy_run_hears_nothing() -> None:
    assert advise(healthy()) == []
    crowded = healthy()
    crowded["policies"][-1]["data"]["rollouts"] = 900
    crowded["settings"]["policy.finetune.demo_fraction"] = 0.1
    crowded["policies"][-1]["eval"] |= {"beta": 2.5}
    assert advise(crowded) == []  # what works is not talked out of


@pytest.mark.parametrize("policies", [(), (70,)])
def test_nothing_to_compare_yet(policies: tuple[int, ...]) -> None:
    assert advise(run(*policies)) == []


# ---------------------------------------------------------------------------------------------------- troubles
def gate(summary: Summary, action: str = "warn") -> Summary:
    check = {
        "value": 0.05,
        "limit": "at least 0.3",
        "passed": False,
        "knob": "value.finetune.steps (more, or fewer), value.ensemble_size=5",
    }
    passed = {"name": "AUC", "value": 0.9, "limit": "at least 0.7", "passed": True, "text": "fine", "knob": "x"}
    failed = check | {"name": "rank", "text": "the value function does not rank states"}
    summary["gate"] = [{"iteration": 1, "passed": False, "action": action, "checks": [failed, passed]}]
    return summary


def test_a_failed_gate_names_its_knob() -> None:
    for summary in (gate(worse()), gate(run(70), "stop"), gate(run(), "stop")):
        found = advise(summary)[0]
        assert found["problem"] == "The value function does not rank states."
        assert found["evidence"] == "value gate of iteration 1: rank 0.05, wanted at least 0.3"
        assert found["try"] == ["value.finetune.steps (more, or fewer)", "value.ensemble_size=5"]
        assert "fine" not in problems(summary)
    assert advise(gate(run(70))) == []  # it only warned, and nothing is known of the policy yet


def shares(**achieved: float) -> Callable[[], Summary]:
    def change() -> Summary:
        summary = worse()
        summary["advantage"][-1]["achieved_positive"] |= achieved
        return summary

    return change


def crowded() -> Summary:
    summary = worse()
    summary["policies"][-1]["data"] = {"demonstrations": 80, "rollouts": 900}
    summary["settings"]["policy.finetune.demo_fraction"] = 0.2
    return summary


def guided() -> Summary:
    summary = worse()
    summary["policies"][-1]["eval"]["beta"] = 2.5
    return summary


def hesitant() -> Summary:
    summary = worse()
    for policy, timeouts in zip(summary["policies"], (50, 100), strict=True):
        policy["eval"]["timeouts"] = timeouts
    return summary


def forgetful() -> Summary:
    lost = {"tasks": ["turn on the stove"], "episodes": 50, "fixed": 1, "broke": 20, "mcnemar_p": 2.1e-5}
    return worse() | {"forgetting": lost}


def too_few() -> Summary:
    summary = run(70, 66)
    summary["comparisons"] = [compared(0, 1, 10, 14)]
    return summary


TROUBLES = {
    "share of positive labels is off": (shares(all=0.96), ["value.finetune.steps=1000", "advantage.n_step=10"]),
    "Failures are labelled positive": (
        shares(success=0.2, failure=0.4),
        ["value.finetune.steps=1000", "value.finetune.demo_fraction=0.15", "rollout.episodes=600"],
    ),
    "crowd out the demonstrations": (
        crowded,
        ["policy.finetune.demo_fraction=0.5", "policy.finetune.episode_filter=success"],
    ),
    "Guidance may be too strong": (guided, ["eval.beta=1.0"]),
    "run out of time": (hesitant, ["policy.finetune.episode_filter=success", "advantage.positive_fraction=0.1"]),
    "forgets tasks": (forgetful, ["policy.finetune.demo_fraction=0.7", "rollout.tasks=null"]),
    "ignores the indicator": (
        lambda: with_ablation(worse(), "negative_prompt", 92, 10, 12),
        ["policy.indicator_dropout=0.1", "policy.finetune.steps=2400"],
    ),
    "“RECAP, only positive is named” beats RECAP": (
        lambda: with_ablation(worse(), "positive_only", 140, 5, 55, **{"policy.finetune.indicator": "positive_only"}),
        ["policy.finetune.indicator=positive_only"],
    ),
    "“RECAP, demonstrations forced positive” beats RECAP": (
        lambda: with_ablation(
            *(worse(), "forced_demonstrations", 140, 5, 55),
            **{"advantage.force_positive": ["demonstration", "correction"], "advantage.n_step": None},
        ),
        ["advantage.force_positive=[demonstration,correction]", "advantage.n_step=null"],
    ),
    "More training hurts": (
        lambda: with_ablation(worse(), "continued_sft", 100, 0, 10, **{"policy.finetune.indicator": "ignore"}),
        ["policy.finetune.learning_rate=0.001", "policy.finetune.steps=600"],
    ),
    "Below half success": (worse, ["policy.finetune.indicator=positive_only"]),
    "Too few episodes": (too_few, ["eval.episodes=1500"]),
}


@pytest.mark.parametrize("words", TROUBLES)
def test_each_trouble_is_seen(words: str) -> None:
    make, overrides = TROUBLES[words]
    found = [finding for finding in advise(make()) if words in finding["problem"]]
    assert [finding["try"] for finding in found] == [overrides]
    assert any(character.isdigit() for character in found[0]["evidence"])
    without = {problem for problem in problems(run(150, 110)) if words in problem}
    assert not without  # a run that is worse, but not in this way


def test_labels_on_demonstrations_alone_that_do_better_are_told_even_when_success_rose() -> None:
    beaten = with_ablation(run(70, 120), "labels_on_demonstrations", 160, 5, 45)
    assert any("crowd" in problem for problem in problems(beaten))
    assert advise(with_ablation(run(70, 120), "labels_on_demonstrations", 110, 15, 5)) == []


def test_a_policy_that_does_better_when_told_negative_does_not_ignore_it() -> None:
    told = problems(with_ablation(worse(), "negative_prompt", 140, 5, 55, **{"eval.prompt": "negative"}))
    assert not any("ignores the indicator" in problem for problem in told)
    assert told["The ablation “last policy, prompted negative” beats RECAP on the same initial states."]


def test_a_rise_within_chance_asks_for_more_episodes_only() -> None:
    summary = run(70, 74)
    summary["comparisons"] = [compared(0, 1, 14, 10)]
    assert list(problems(summary)) == ["Too few episodes to tell: the difference is within chance."]


def test_the_episodes_asked_for_would_tell() -> None:
    """With the same shares of fixed and broken pairs, the test would find the difference."""
    (found,) = [f for f in advise(too_few()) if "Too few" in f["problem"]]
    times = int(found["try"][0].removeprefix("eval.episodes=")) / N
    assert mcnemar(*_pairs(10, 14)).p > 0.05
    assert mcnemar(*_pairs(round(10 * times), round(14 * times))).p < 0.05
    assert mcnemar(*_pairs(round(10 * times * 0.7), round(14 * times * 0.7))).p > 0.05  # nor are they far too many


def _pairs(fixed: int, broke: int) -> tuple[list[bool], list[bool]]:
    before = [False] * fixed + [True] * broke
    return before, [not outcome for outcome in before]


def test_unknown_settings_leave_their_overrides_out() -> None:
    for words, (make, _) in TROUBLES.items():
        summary = deepcopy(make())
        summary["settings"] = {}
        for finding in advise(summary):
            assert all("=" in override and "None" not in override for override in finding["try"]), words


def test_every_override_can_be_typed() -> None:
    offered: dict[str, dict[str, None]] = {}
    for make, _ in TROUBLES.values():
        for override in (override for finding in advise(make()) for override in finding["try"]):
            offered.setdefault(override.partition("=")[0], {})[override] = None
    with initialize_config_dir(str(Path(__file__).resolve().parents[1] / "conf"), version_base="1.3"):
        for together in zip_longest(*offered.values()):  # no key twice
            overrides = [override for override in together if override]
            typed(compose("loop", ["experiment=demo", "iterations=1", *overrides]), LoopJob)
