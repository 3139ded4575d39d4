"""docs/results.md: experiments repeated over seeds, every arm of a seed on the same held-out initial states.

make study                                                     runs the seeds, then writes the page
python -m recap.study outputs/study outputs/study_three docs   the second half alone: what to read, where to write

What the page says of experiments that are not named stays.
"""

from __future__ import annotations

import json
import re
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from recap.method.success import Episodes, McNemar, bootstrap_mean, mcnemar, pair, rates
from recap.report.paired import SIGNIFICANT
from recap.report.words import ablation_name
from recap.storage import readers as files
from recap.utils import home
from recap.utils.console import spell
from recap.utils.errors import RecapError
from recap.utils.shapes import POSITIVE, misfit

RESULTS, PAGE = "results", "results.md"
HEAD = """# Results on the embedded tasks

Written by `recap.study` from the runs. RECAP's settings were not chosen on these seeds; the arm with half of each batch
demonstrations was added after a look at one of them. `docs/results/*.json` has the summaries, and in newer ones which
states each arm solved (`solved`). Rates with Wilson's 95 % interval over all seeds' held-out initial states, the same
for all arms of a seed; means over seeds with a bootstrap interval (10,000 resamples of the seeds: with five of them
rather narrow); p: McNemar's exact test on the pairs of all seeds, not corrected for the number of arms.
"""
SECTION = re.compile(r"^# `experiment=(\w+)`$", re.MULTILINE)
CONFIG = {"env": {"tasks": [str], "fps": POSITIVE}, "rollout": {"tasks?": ([str], None)}}


@dataclass(frozen=True)
class Study:
    """One experiment over seeds. runs: seed -> arm -> its episodes as in result.json; not every seed has every arm."""

    name: str
    tasks: list[str]
    collected: list[str]  # tasks that rollouts were collected of
    fps: float
    runs: dict[str, dict[str, Episodes]]
    commits: list[str]

    @property
    def arms(self) -> list[str]:
        return list(dict.fromkeys(arm for run in self.runs.values() for arm in run))

    def of(self, arm: str) -> dict[str, Episodes]:
        """Seed -> its episodes, of the seeds that have it."""
        return {seed: run[arm] for seed, run in self.runs.items() if arm in run}

    @property
    def last(self) -> str:
        """RECAP's last iteration."""
        return [arm for arm in self.arms if arm == "SFT" or arm.startswith("RECAP, iteration ")][-1]

    def pooled(self, arm: str, task: str | None = None) -> list[Any]:
        """Its episodes of all seeds."""
        return [e for episodes in self.of(arm).values() for e in _of(episodes, task)]

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
        for seed, arms in study.runs.items():
            solved = {arm: "".join("01"[bool(e["success"])] for e in episodes) for arm, episodes in arms.items()}
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
    if wrong := misfit(config, CONFIG):
        raise RecapError(f"{first / 'config.yaml'} is damaged ({wrong}). Fix: restore it from a copy.")
    tasks = config["env"]["tasks"]
    manifests = (files.read_json(path) for run in found.values() for path in run.rglob("manifest.json"))
    return Study(
        folder.name,
        tasks,
        config["rollout"].get("tasks") or tasks,
        config["env"]["fps"],
        {seed: read_arms(run) for seed, run in found.items()},
        sorted({(manifest.get("git_commit") or "an unknown commit")[:12] for manifest in manifests}),
    )


def read_arms(run: Path) -> dict[str, Episodes]:
    """Arm -> its evaluated episodes, SFT first."""
    summary = files.read_json(run / "summary.json")
    found = {
        f"RECAP, iteration {policy['iteration']}" if policy["iteration"] else "SFT": policy["eval"]
        for policy in summary["policies"]
    }
    found |= {ablation_name(ablation["name"]): ablation["eval"] for ablation in summary["ablations"]}
    return {arm: files.read_json(run / numbers["outcomes"])["episodes"] for arm, numbers in found.items()}


# ---------------------------------------------------------------------------------------------------- the page
def render(study: Study) -> str:
    """What the page says of one experiment."""
    figure = f"![Success rates of all arms]({RESULTS}/{study.name}.png)"
    lines = [f"# `experiment={study.name}`", "", _about(study), "", figure, "", *_rates(study), "", *_leads(study)]
    if len(study.tasks) > 1:
        lines += ["", *_tasks(study)]
    return "\n".join(lines) + "\n"


def _about(study: Study) -> str:
    n = len(study.pooled(study.arms[0])) // len(study.runs)
    seeds = f"{len(study.runs)} seed{'s' if len(study.runs) > 1 else ''}"
    text = f"{seeds}, {n} held-out initial states a seed. Code: {', '.join(study.commits)}. "
    text += f"Tasks: {', '.join(study.tasks)}."
    others = [task for task in study.tasks if task not in study.collected]
    return f"{text} No rollouts were collected of: {', '.join(others)}." if others else text


def _rates(study: Study) -> list[str]:
    seeds = [seed.replace("=", " ") for seed in study.runs]
    lines = [
        f"| policy | {' | '.join(seeds)} | all, 95 % Wilson | steps to success | successes an hour |",
        f"|---|{'---|' * (len(seeds) + 3)}",
    ]
    for arm in study.arms:
        all_of_it = rates(study.pooled(arm), study.fps)
        each = " | ".join(f"{rate(run[arm]):.0%}" if arm in run else "–" for run in study.runs.values())
        low, high = all_of_it["ci95"]
        steps = all_of_it["mean_steps_to_success"]
        lines.append(
            f"| {arm} | {each} | **{all_of_it['success_rate']:.1%}** [{low:.1%}, {high:.1%}] | "
            f"{'–' if steps is None else format(steps, '.1f')} | {all_of_it['successes_per_hour']:.0f} |"
        )
    return lines


def _leads(study: Study) -> list[str]:
    lines = [
        f"## {study.last} against each arm, paired",
        "",
        "| against | lead by seed, points | mean [95 %, over seeds] | fixed | broke | McNemar p |",
        "|---|---|---|---|---|---|",
    ]
    for arm in study.arms:
        if arm == study.last:
            continue
        leads = [100 * (rate(study.runs[seed][study.last]) - rate(of_arm)) for seed, of_arm in study.of(arm).items()]
        interval = "–"
        if len(leads) > 1:
            low, high = bootstrap_mean(leads)
            interval = f"[{low:+.1f}, {high:+.1f}]"
        test = study.paired(arm, study.last)
        each = ", ".join(f"{lead:+.0f}" for lead in leads)
        lines.append(
            f"| {arm} | {each} | {statistics.mean(leads):+.1f} {interval} | {test.fixed} | {test.broke} "
            f"| {test.p:.2g} |"
        )
    return lines


def _tasks(study: Study) -> list[str]:
    """Rates by task, and what became of the tasks of which no experience was collected."""
    head = " | ".join(f"{task}{'' if task in study.collected else ' (no rollouts)'}" for task in study.tasks)
    lines = ["## By task", "", f"| policy | {head} |", f"|---|{'---|' * len(study.tasks)}"]
    for arm in study.arms:
        shown = []
        for task in study.tasks:
            of_task = rates(study.pooled(arm, task), study.fps)
            low, high = of_task["ci95"]
            shown.append(f"{of_task['success_rate']:.1%} [{low:.0%}, {high:.0%}]")
        lines.append(f"| {arm} | {' | '.join(shown)} |")
    for task in study.tasks:
        if task not in study.collected:
            test = study.paired("SFT", study.last, task)
            forgot = test.p < SIGNIFICANT and test.broke > test.fixed
            said = "it forgot" if forgot else "no loss is shown"
            against = f"{study.last} fixed {test.fixed} and broke {test.broke} initial states against SFT"
            lines += ["", f"Forgetting: of “{task}” {against} (p = {test.p:.2g}): {said}."]
    return lines


def rate(episodes: Episodes) -> float:
    return sum(bool(e["success"]) for e in episodes) / len(episodes)


def _of(episodes: Episodes, task: str | None) -> Episodes:
    return [e for e in episodes if task is None or e["task"] == task]


# ---------------------------------------------------------------------------------------------------- the figure
def draw(study: Study, path: Path) -> None:
    """Success rates of all arms with their intervals, a mark for each seed."""
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 1 + 0.34 * len(study.arms)), layout="constrained")
    axes.axvline(100 * rate(study.pooled(study.last)), color="#2a6fbb", lw=1, ls=(0, (2, 3)), zorder=0)
    for row, arm in enumerate(reversed(study.arms)):
        found = rates(study.pooled(arm), study.fps)
        middle, (low, high) = 100 * found["success_rate"], (100 * x for x in found["ci95"])
        colour = "#2a6fbb" if arm == study.last else "#222222" if arm == "SFT" else "#8a8f98"
        axes.plot([low, high], [row, row], color=colour, lw=2.5, solid_capstyle="round")
        axes.plot(middle, row, "o", color=colour, ms=6)
        each = [100 * rate(episodes) for episodes in study.of(arm).values()]
        axes.plot(each, [row + 0.24] * len(each), "|", color=colour, ms=5, alpha=0.7)
    seeds = {arm: len(study.of(arm)) for arm in study.arms}
    names = [arm if n == len(study.runs) else f"{arm} ({n} of {len(study.runs)} seeds)" for arm, n in seeds.items()]
    axes.set_yticks(range(len(names)), list(reversed(names)), fontsize=9)
    axes.set_xlim(0, 100)
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:.0f} %")
    axes.set_title(f"{study.name}: {', '.join(study.tasks)}", fontsize=9, loc="left", wrap=True)
    axes.grid(axis="x", color="#e6e8eb", zorder=-1)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(left=False)
    figure.savefig(path, dpi=130)
    plt.close(figure)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
