"""The table of docs/results.md: several seeds of one experiment, every arm on the same held-out initial states.

make study                                   runs the seeds, then writes docs/results.md and docs/results/*.json
python -m recap.study outputs/study docs     the second half alone
"""

from __future__ import annotations

import json
import math
import shutil
import statistics
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from recap.errors import RecapError
from recap.evaluation import mcnemar, pair, wilson
from recap.report.verdict import arm_name

T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)  # Student's t, 1 to 9 degrees of freedom


def main(arguments: list[str]) -> int:
    if len(arguments) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        write_results(Path(arguments[0]), Path(arguments[1]))
    except RecapError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def write_results(study: Path, docs: Path) -> None:
    """Copies the summaries of `study/seed=*` to `docs/results/` and writes `docs/results.md` from them.

    Raises:
        RecapError: there is no finished run.
    """
    runs = {path.parent.name: path.parent for path in sorted(study.glob("seed=*/summary.json"))}
    if not runs:
        raise RecapError(f"{study} holds no seed=*/summary.json. Fix: make study, which runs them.")
    (docs / "results").mkdir(parents=True, exist_ok=True)
    for name, run in runs.items():
        shutil.copy(run / "summary.json", docs / "results" / f"{name.replace('=', '_')}.json")
    text = render({name: read_arms(run) for name, run in runs.items()}, _commits(runs.values()))
    (docs / "results.md").write_text(text)
    print(text)


def read_arms(run: Path) -> dict[str, list[dict[str, Any]]]:
    """Arm -> its evaluated episodes, SFT first and the last iteration last."""
    summary = json.loads((run / "summary.json").read_text())
    found = {
        f"RECAP, iteration {policy['iteration']}" if policy["iteration"] else "SFT": policy["eval"]
        for policy in summary["policies"]
    }
    found |= {arm_name(control["arm"]): control["eval"] for control in summary["controls"]}
    return {arm: json.loads((run / numbers["outcomes"]).read_text())["episodes"] for arm, numbers in found.items()}


def _commits(runs: Iterable[Path]) -> list[str]:
    """The code that the runs were made with."""
    manifests = (json.loads(path.read_text()) for run in runs for path in run.rglob("manifest.json"))
    return sorted({(manifest["git_commit"] or "an unknown commit")[:12] for manifest in manifests})


def render(runs: dict[str, dict[str, list[dict[str, Any]]]], commits: Sequence[str]) -> str:
    """The whole page. runs: name -> arm -> its episodes as in result.json; commits: of the code."""
    arms = list(next(iter(runs.values())))
    last = max((arm for arm in arms if arm.startswith("RECAP")), default=arms[-1])
    n = sum(len(run[arms[0]]) for run in runs.values())
    head = " | ".join(name.replace("=", " ") for name in runs)
    lines = [
        "# Results on the embedded task",
        "",
        (
            f"Written by `make study` from `docs/results/*.json`: {len(runs)} seeds that no setting was chosen on, "
            f"{n // len(runs)} held-out initial states a seed, the same for all arms of a seed. "
            f"Code: {', '.join(commits)}."
        ),
        "",
        f"| policy | {head} | all, 95 % Wilson | steps to success |",
        f"|---|{'---|' * (len(runs) + 2)}",
    ]
    for arm in arms:
        episodes = [episode for run in runs.values() for episode in run[arm]]
        won = [e["steps"] for e in episodes if e["success"]]
        low, high = wilson(len(won), len(episodes))
        each = " | ".join(f"{rate(run[arm]):.0%}" for run in runs.values())
        steps = f"{statistics.mean(won):.1f}" if won else "–"
        lines.append(f"| {arm} | {each} | **{len(won) / len(episodes):.1%}** [{low:.1%}, {high:.1%}] | {steps} |")
    lines += [
        "",
        f"## {last} against each arm, paired",
        "",
        "| against | lead by seed, points | mean [95 %, over seeds] | fixed | broke | McNemar p |",
        "|---|---|---|---|---|---|",
    ]
    lines += [_paired(runs, arm, last) for arm in arms if arm != last]
    return "\n".join(lines) + "\n"


def rate(episodes: list[dict[str, Any]]) -> float:
    return sum(e["success"] for e in episodes) / len(episodes)


def _paired(runs: dict[str, dict[str, list[dict[str, Any]]]], arm: str, last: str) -> str:
    """One row: the lead of `last` by seed, its mean with Student's interval over seeds, the pooled McNemar test."""
    leads = [100 * (rate(run[last]) - rate(run[arm])) for run in runs.values()]
    before, after = zip(*(pair(run[arm], run[last]) for run in runs.values()), strict=True)
    test = mcnemar([x for run in before for x in run], [x for run in after for x in run])
    mean = statistics.mean(leads)
    interval = ""
    if 1 < len(leads) <= len(T_975) + 1:
        half = T_975[len(leads) - 2] * statistics.stdev(leads) / math.sqrt(len(leads))
        interval = f" [{mean - half:+.1f}, {mean + half:+.1f}]"
    each = ", ".join(f"{lead:+.0f}" for lead in leads)
    return f"| {arm} | {each} | {mean:+.1f}{interval} | {test.fixed} | {test.broke} | {test.p:.2g} |"


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
