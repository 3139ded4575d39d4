"""docs/results.md: experiments repeated over seeds, every policy of a seed on the same held-out initial states.

make study     runs the seeds, then writes the page; the second half alone:
python -m recap.study outputs/two_burners outputs/bottles outputs/stove outputs/study outputs/study_three docs

What the page says of experiments that are not named stays.
"""

from __future__ import annotations

import json
import re
import statistics
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from recap.method.success import Episodes, McNemar, bootstrap_mean, mcnemar, pair, rates
from recap.report.paired import SIGNIFICANT
from recap.report.words import number, rung_name
from recap.stages.gate_figure import FAINT, INK, POLICY, STYLE
from recap.storage import readers as files
from recap.storage.manifest import refuse_earlier
from recap.utils import home
from recap.utils.console import spell
from recap.utils.errors import RecapError
from recap.utils.shapes import POSITIVE, misfit

RESULTS, PAGE = "results", "results.md"
HEAD = """# Results on the embedded tasks

Written by `recap.study` from the runs. RECAP's settings were not chosen on these seeds; the ablation with half of each
batch demonstrations was added after a look at one of them. `docs/results/*.json` has the summaries, and in newer ones
the states that each policy solved (`solved`). Rates with Wilson's 95 % interval over all seeds' held-out initial
states, the same for all policies of a seed; means over seeds with a bootstrap interval (10,000 resamples of the seeds:
with five of them rather narrow); p: McNemar's exact test on the pairs of all seeds, not corrected for the number of
comparisons.
"""
SECTION = re.compile(r"^# `experiment=(\w+)`$", re.MULTILINE)
CONFIG = {"env": {"tasks": [str], "fps": POSITIVE}, "rollout": {"tasks?": ([str], None)}}


@dataclass(frozen=True)
class Study:
    """One experiment over seeds. runs: seed -> policy -> its episodes as in result.json; a seed may lack a policy."""

    name: str
    tasks: list[str]
    collected: list[str]  # tasks that rollouts were collected of
    fps: float
    runs: dict[str, dict[str, Episodes]]
    steps: list[tuple[str, str, str]]  # from SFT upwards: a policy, the next, and what that one adds to it
    commits: list[str]

    @property
    def policies(self) -> list[str]:
        return list(dict.fromkeys(policy for run in self.runs.values() for policy in run))

    def of(self, policy: str) -> dict[str, Episodes]:
        """Seed -> its episodes, of the seeds that have it."""
        return {seed: run[policy] for seed, run in self.runs.items() if policy in run}

    @property
    def last(self) -> str:
        """RECAP's last iteration."""
        return [policy for policy in self.policies if policy == "SFT" or policy.startswith("RECAP, iteration ")][-1]

    def pooled(self, policy: str, task: str | None = None) -> list[Any]:
        """Its episodes of all seeds."""
        return [e for episodes in self.of(policy).values() for e in _of(episodes, task)]

    def paired(self, before: str, after: str, task: str | None = None) -> McNemar:
        """McNemar's test over all seeds: an initial state of one seed is a pair."""
        sides = [
            pair(_of(self.runs[seed][before], task), _of(self.runs[seed][after], task)) for seed in self.of(before)
        ]
        return mcnemar(*(np.concatenate(side) for side in zip(*sides, strict=True)))


def main(arguments: list[str]) -> int:
    spell()
    if len(arguments) < 2:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        *folders, docs = map(home.path, arguments)
        write_results(folders, docs)
    except RecapError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def write_results(folders: Sequence[Path], docs: Path) -> None:
    """Writes what the runs `<folder>/seed=*` say to results.md, and their summaries and a figure to `docs/results/`.

    Raises:
        RecapError: there is no finished run.
    """
    studies = [read_study(folder) for folder in folders]
    (docs / RESULTS).mkdir(parents=True, exist_ok=True)
    page = docs / PAGE
    sections = read_sections(page.read_text(encoding="utf-8")) if page.is_file() else {}
    for folder, study in zip(folders, studies, strict=True):
        for old in (docs / RESULTS).glob(f"{study.name}_seed_*.json"):
            old.unlink()
        for seed, policies in study.runs.items():
            solved = {
                policy: "".join("01"[bool(e["success"])] for e in episodes) for policy, episodes in policies.items()
            }
            kept = files.read_json(folder / seed / "summary.json") | {"solved": solved}
            path = docs / RESULTS / f"{study.name}_{seed.replace('=', '_')}.json"
            path.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
        draw(study, docs / RESULTS / f"{study.name}.png")
        sections[study.name] = render(study)
    page.write_text("\n".join([HEAD, *(sections[name] for name in sorted(sections))]), encoding="utf-8")
    print(page)


def read_sections(page: str) -> dict[str, str]:
    """Experiment -> what the page says of it."""
    starts = [*SECTION.finditer(page)]
    ends = [start.start() for start in starts[1:]] + [len(page)]
    return {start[1]: page[start.start() : end].rstrip() + "\n" for start, end in zip(starts, ends, strict=True)}


def read_study(folder: Path) -> Study:
    """The finished runs below a folder. Raises RecapError as `write_results` does."""
    found = {path.parent.name: path.parent for path in sorted(folder.glob("seed=*/summary.json"))}
    if not found:
        raise RecapError(f"{folder} holds no seed=*/summary.json. Fix: make study, which runs them.")
    first = next(iter(found.values()))
    config = files.read_config(first)
    refuse_earlier(first, config)
    if wrong := misfit(config, CONFIG):
        raise RecapError(f"{first / 'config.yaml'} is damaged ({wrong}). Fix: restore it from a copy.")
    tasks = config["env"]["tasks"]
    steps = [_steps(files.read_json(run / "summary.json")) for run in found.values()]
    manifests = (files.read_json(path) for run in found.values() for path in run.rglob("manifest.json"))
    return Study(
        folder.name,
        tasks,
        config["rollout"].get("tasks") or tasks,
        config["env"]["fps"],
        {seed: read_policies(run) for seed, run in found.items()},
        steps[0] if all(of == steps[0] for of in steps) else [],
        sorted({(manifest.get("git_commit") or "an unknown commit")[:12] for manifest in manifests}),
    )


def read_policies(run: Path) -> dict[str, Episodes]:
    """Name -> evaluated episodes: SFT, RECAP by iteration, the ablations."""
    summary = files.read_json(run / "summary.json")
    found = {policy["iteration"]: policy["eval"] for policy in summary["policies"]}
    found |= {ablation["name"]: ablation["eval"] for ablation in summary["ablations"]}
    return {
        rung_name(side): files.read_evaluation((run / numbers["outcomes"]).parent)["episodes"]
        for side, numbers in found.items()
    }


def _steps(summary: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Those of the ladder, and what is held against a rung of it that an ablation stands on."""
    pairs = [(below["name"], rung["name"], rung["adds"]) for below, rung in pairwise(summary["ladder"])]
    pairs += [
        (control["name"], control["than"], f"against {rung_name(control['name'])}")
        for control in summary["controls"]
        if isinstance(control["than"], str)
    ]
    return [(rung_name(before), rung_name(after), adds) for before, after, adds in pairs]


# ---------------------------------------------------------------------------------------------------- the page
def render(study: Study) -> str:
    """What the page says of one experiment."""
    figure = f"![Success rates of all policies]({RESULTS}/{study.name}.png)"
    lines = [f"# `experiment={study.name}`", "", _about(study), "", figure, "", *_rates(study), "", *_leads(study)]
    if study.steps:
        lines += ["", *_ladder(study)]
    if any(e.get("choice") for e in study.pooled(study.last)):
        lines += ["", *_choices(study)]
    if len(study.tasks) > 1:
        lines += ["", *_tasks(study)]
    return "\n".join(lines) + "\n"


def _about(study: Study) -> str:
    n = len(study.pooled(study.policies[0])) // len(study.runs)
    seeds = f"{len(study.runs)} seed{'s' if len(study.runs) > 1 else ''}"
    text = f"{seeds}, {n} held-out initial states a seed. Code: {', '.join(study.commits)}. "
    text += f"Tasks: {', '.join(study.tasks)}."
    others = [task for task in study.tasks if task not in study.collected]
    return f"{text} No rollouts were collected of: {', '.join(others)}." if others else text


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    return [f"| {' | '.join(map(str, row))} |" for row in (head, ["---"] * len(head), *rows)]


def _rates(study: Study) -> list[str]:
    rows = []
    for policy in study.policies:
        pooled = rates(study.pooled(policy), study.fps)
        each = [f"{rate(run[policy]):.0%}" if policy in run else "–" for run in study.runs.values()]
        whole = f"**{pooled['success_rate']:.1%}** {_interval(pooled['ci95'], '.1%')}"
        speed = number(pooled["mean_steps_to_success"], 1), f"{pooled['successes_per_hour']:.0f}"
        rows.append([policy, *each, whole, *speed])
    seeds = [seed.replace("=", " ") for seed in study.runs]
    return _table(["policy", *seeds, "all, 95 % Wilson", "steps to success", "successes an hour"], rows)


def _interval(ends: Sequence[float], digits: str) -> str:
    return f"[{ends[0]:{digits}}, {ends[1]:{digits}}]"


def _leads(study: Study) -> list[str]:
    rows = []
    for policy in study.policies:
        if policy != study.last:
            leads = [100 * (rate(study.runs[seed][study.last]) - rate(of)) for seed, of in study.of(policy).items()]
            over_seeds = _interval(bootstrap_mean(leads), "+.1f") if len(leads) > 1 else "–"
            test, each = study.paired(policy, study.last), ", ".join(f"{lead:+.0f}" for lead in leads)
            mean = f"{statistics.mean(leads):+.1f} {over_seeds}"
            rows.append([policy, each, mean, test.fixed, test.broke, f"{test.p:.2g}"])
    head = ["against", "lead by seed, points", "mean [95 %, over seeds]", "fixed", "broke", "McNemar p"]
    return [f"## {study.last} against each policy, paired", "", *_table(head, rows)]


def _ladder(study: Study) -> list[str]:
    """What each step from imitation to RECAP adds."""
    rows = []
    for below, policy, adds in study.steps:
        test, seeds = study.paired(below, policy), study.of(policy)
        leads = [100 * (rate(of) - rate(study.runs[seed][below])) for seed, of in seeds.items()]
        each = ", ".join(f"{lead:+.0f}" for lead in leads)
        rows.append([policy, adds, each, f"{statistics.mean(leads):+.1f}", test.fixed, test.broke, f"{test.p:.2g}"])
    head = ["rung", "its step adds", "by seed, points", "mean", "fixed", "broke", "McNemar p"]
    return [f"## Step by step from {study.steps[0][0]}, paired", "", *_table(head, rows)]


def _choices(study: Study) -> list[str]:
    """How often each policy took each way, and how often it then succeeded."""
    pooled = {policy: study.pooled(policy) for policy in study.policies}
    names = sorted({e["choice"] for episodes in pooled.values() for e in episodes if e.get("choice")})
    rows = []
    for policy, episodes in pooled.items():
        taken = [[e for e in episodes if e.get("choice") == name] for name in names]
        shares = [f"{len(of) / len(episodes):.0%}, {rate(of):.0%}" if of else "0%, –" for of in taken]
        rows.append([policy, *shares, f"{1 - sum(map(len, taken)) / len(episodes):.0%}"])
    head = ["policy", *(f"{name}: share, success of these" for name in names), "neither"]
    return ["## Which way", "", *_table(head, rows)]


def _tasks(study: Study) -> list[str]:
    """Rates by task, and what became of the tasks without rollouts."""
    rows = []
    for policy in study.policies:
        of_tasks = [rates(study.pooled(policy, task), study.fps) for task in study.tasks]
        rows.append([policy, *(f"{of['success_rate']:.1%} {_interval(of['ci95'], '.0%')}" for of in of_tasks)])
    head = [f"{task}{'' if task in study.collected else ' (no rollouts)'}" for task in study.tasks]
    lines = ["## By task", "", *_table(["policy", *head], rows)]
    for task in study.tasks:
        if task not in study.collected:
            test = study.paired("SFT", study.last, task)
            said = "it forgot" if test.p < SIGNIFICANT and test.broke > test.fixed else "no loss is shown"
            against = f"{study.last} fixed {test.fixed} and broke {test.broke} initial states against SFT"
            lines += ["", f"Forgetting: of “{task}” {against} (p = {test.p:.2g}): {said}."]
    return lines


def rate(episodes: Episodes) -> float:
    return sum(bool(e["success"]) for e in episodes) / len(episodes)


def _of(episodes: Episodes, task: str | None) -> Episodes:
    return [e for e in episodes if task is None or e["task"] == task]


# ---------------------------------------------------------------------------------------------------- the figure
def draw(study: Study, path: Path) -> None:
    """Success rates of all policies with their intervals, a mark for each seed."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=(8, 1 + 0.34 * len(study.policies)), layout="constrained")
        axes = figure.add_subplot()
        axes.axvline(100 * rate(study.pooled(study.last)), color=POLICY, lw=1, ls=(0, (2, 3)), zorder=0)
        names = []
        for row, policy in enumerate(reversed(study.policies)):
            found, of = rates(study.pooled(policy), study.fps), study.of(policy)
            colour = POLICY if policy == study.last else INK if policy == "SFT" else FAINT
            axes.plot([100 * end for end in found["ci95"]], [row, row], color=colour, lw=2.5, solid_capstyle="round")
            axes.plot(100 * found["success_rate"], row, "o", color=colour, ms=6)
            each = [100 * rate(episodes) for episodes in of.values()]
            axes.plot(each, [row + 0.24] * len(each), "|", color=colour, ms=5, alpha=0.7)
            names.append(policy if len(of) == len(study.runs) else f"{policy} ({len(of)} of {len(study.runs)} seeds)")
        axes.set_yticks(range(len(names)), names)
        axes.set(xlim=(0, 100), xlabel="success, %")
        axes.set_title(f"{study.name}: {', '.join(study.tasks)}", wrap=True)
        axes.grid(visible=False, axis="y")
        axes.spines["left"].set_visible(False)
        axes.tick_params(left=False)
        figure.savefig(path, dpi=130)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
