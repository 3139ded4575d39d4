"""report.html: one file that shows a run, with everything it needs inside it and nothing loaded from elsewhere."""

from __future__ import annotations

import base64
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

from recap.report.advice import knobs
from recap.report.choices import shown_stages
from recap.report.html import figures, gather
from recap.report.html.page import Page
from recap.report.html.rollouts import Rollouts, draw_traces, last_rollouts, moments, moments_of_choice
from recap.report.paired import direction, missing, without_experience
from recap.report.verdict import alarm, preference, shift_verdict, verdict
from recap.report.words import (
    NBSP,
    ablation_name,
    evaluated,
    lead_text,
    number,
    p_text,
    percent,
    policy_name,
    positive_shares,
)
from recap.storage import readers as files
from recap.utils.errors import RecapError, disk_error


def write_html(run_dir: Path, summary: dict[str, Any]) -> Path:
    """Write report.html of a run directory and return its path. `summary` is that of `build_summary`.

    What a run does not have (ablations, videos, rollouts, iterations) has no section. Raises RecapError for files that
    are there but cannot be read, or when the page cannot be written.
    """
    run_dir, page = Path(run_dir), Page()
    nodes, policies, lost = files.finished_stages(run_dir), evaluated(summary), summary["forgetting"]
    if policies:
        page.draw("success", figures.success_curve({summary["name"]: summary}))
        page.draw("ablations", figures.ablations(summary))
    tasks = {task for policy in policies for task in policy["eval"]["per_task"]}
    rollouts, config = last_rollouts(run_dir, summary), run_dir / "config.yaml"
    return page.write(
        run_dir / "report.html",
        "report.html",
        f"{summary['name']} · RECAP report",
        summary=summary,
        inputs={node: files.inputs_of(nodes, node) for node in nodes},
        alarm=alarm(summary),
        verdict=verdict(summary),
        preference=preference,
        choices=[_choice(page, number, choice, summary, rollouts) for number, choice in enumerate(summary["choices"])],
        tiles=_tiles(summary) if policies else [],
        shares=positive_shares(summary),
        pairs=_pairs(summary),
        tasks=sorted(tasks, key=lambda task: (bool(lost and task in lost["tasks"]), task)),
        forgotten=direction(lost),
        rollouts=rollouts,
        traces=draw_traces(page, run_dir, rollouts) if rollouts else [],
        moments=moments(rollouts) if rollouts else {},
        histograms=gather.histograms(page, run_dir, summary),
        gate_pictures=[_gate_picture(run_dir, gate) for gate in summary["gate"]],
        knobs=knobs,
        videos=gather.videos(page, run_dir, summary),
        losses=gather.losses(page, run_dir, nodes),
        differences=_differences(run_dir, summary, nodes),
        facts=_facts(summary, nodes),
        resolved=config.read_text(encoding="utf-8") if config.is_file() else "",
    )


def _choice(
    page: Page, number: int, choice: dict[str, Any], summary: dict[str, Any], rollouts: Rollouts | None
) -> dict[str, Any]:
    """A choice with the stages to show and pictures of where the ways part; draws `shares-0` and `successes-0`."""
    stages = shown_stages(choice, summary)
    own = [stage for stage in stages if not files.ABLATION.match(stage["node"])]
    for name, shares in (("shares", True), ("successes", False)):
        page.draw(f"{name}-{number}", figures.ways(choice["names"], own, shares))
    pictures = moments_of_choice(rollouts, choice["task"]) if rollouts else {}
    return choice | {"stages": stages, "pictures": pictures, "said": shift_verdict(choice)}


def _tiles(summary: dict[str, Any]) -> list[tuple[str, str, str]]:
    """The four numbers to remember: (name, number, note)."""
    policies = evaluated(summary)
    first, last, name = policies[0]["eval"], policies[-1]["eval"], policy_name(policies[-1]["iteration"])

    def change(key: str, show: Any) -> str:
        return show(last[key]) if first is last else f"{show(first[key]).removesuffix(f'{NBSP}%')} → {show(last[key])}"

    ablation = without_experience(summary, policies[-1]["iteration"])
    lead, note, tested = "–", "no ablation without rollouts", "experience"
    if ablation:
        lead = f"{lead_text(ablation['comparison']['lead'])}{NBSP}points"
        tested = missing(ablation)
        note = f"over “{ablation_name(ablation['name'])}”, {p_text(ablation['comparison']['mcnemar_p'])}"
    return [
        ("Success", change("success_rate", percent), f"{last['successes']} of {last['episodes']} with {name}"),
        ("Steps to success", change("mean_steps_to_success", lambda v: number(v, 1)), "mean over successes"),
        ("Successes per hour", change("successes_per_hour", number), "of robot time"),
        (f"Lead from {tested}", lead, note),
    ]


def _pairs(summary: dict[str, Any]) -> list[tuple[dict[str, Any], dict[str, int]]]:
    """Every comparison with the number of initial states of each kind, in the order in which the bar shows them."""
    evaluations = {policy["iteration"]: policy["eval"] for policy in evaluated(summary)}
    shown = []
    for pair in summary["comparisons"]:
        after = evaluations[pair["after"]]
        both = after["successes"] - pair["fixed"]
        neither = after["episodes"] - both - pair["fixed"] - pair["broke"]
        shown.append((pair, {"both": both, "fixed": pair["fixed"], "broke": pair["broke"], "neither": neither}))
    return shown


def _gate_picture(run_dir: Path, gate: dict[str, Any]) -> str:
    """gate.png in base64; "" where there is none."""
    path = files.stage_dir(run_dir, gate["iteration"], "gate") / "gate.png"
    try:
        return base64.b64encode(path.read_bytes()).decode() if path.is_file() else ""
    except OSError as error:
        raise disk_error(error, path) or RecapError(f"{path} cannot be read: {error}") from error


# ---------------------------------------------------------------------------------------------------- differences
Group = tuple[str, list[tuple[str, Any, Any]], str]  # title, (key, before, after), and what to say where none differs


def _differences(run_dir: Path, summary: dict[str, Any], nodes: dict[str, Any]) -> list[Group]:
    """What changed from SFT to fine-tuning, from iteration to iteration, and in each ablation."""
    found = files.iterations(nodes)
    last = max((k for k in found if files.policy_node(k) in nodes), default=0)
    sft, tuned = (_config(run_dir, files.policy_node(k)) for k in (0, last))
    named = {key.replace("policy.sft.", "policy.finetune."): value for key, value in sft.items()}
    groups: list[Group] = []
    if sft and last and (changes := files.config_changes(named, tuned)):
        groups.append(("From SFT to the policy of an iteration", changes, ""))
    for ends in pairwise(found):
        changes = []
        for stage in files.ITERATION_ORDER:
            old, new = (_config(run_dir, f"{files.iteration_dir(k)}/{stage}") for k in ends)
            if old and new:
                changes += [(f"{stage}: {key}", a, b) for key, a, b in files.config_changes(old, new)]
        groups.append(("From iteration {} to iteration {}".format(*ends), changes, "nothing"))
    own = files.flat(files.read_config(run_dir))
    for ablation in summary["ablations"]:
        changes = [(key, own.get(key, files.ABSENT), value) for key, value in ablation["changes"].items()]
        changes += [("data", "demonstrations, rollouts", "demonstrations")] if ablation["without_rollouts"] else []
        groups.append((f"Ablation: {ablation_name(ablation['name'])}", changes, "the same configuration"))
    commits: dict[str, str] = {}
    for node, manifest in nodes.items():
        commits.setdefault(str(manifest.get("git_commit")), node)
    if len(commits) > 1:
        groups.append(("Code (git commit)", [(f"from {node}", "", commit) for commit, node in commits.items()], ""))
    return groups


def _config(run_dir: Path, node: str) -> dict[str, Any]:
    return files.flat(files.read_config(run_dir / node))


# ---------------------------------------------------------------------------------------------------- provenance
def _facts(summary: dict[str, Any], nodes: dict[str, Any]) -> dict[str, str]:
    times = [files.moment(m.get(key)) for m in nodes.values() for key in ("started", "finished")]
    known = sorted(time for time in times if time is not None)
    ends = (datetime.fromtimestamp(time, UTC).strftime("%Y-%m-%d %H:%M") for time in known[:1] + known[-1:])
    when, total, best = " to ".join(dict.fromkeys(ends)), sum(summary["wall_seconds"].values()), summary["best"]
    return {
        "Run": summary["name"],
        "Seed": "" if summary["seed"] is None else str(summary["seed"]),
        "Git commit": _listed(nodes, "git_commit"),
        "Host": _listed(nodes, "host"),
        "Time": f"{when} UTC" if when else "",
        "Wall time": f"{total / 60:.1f} min in {len(summary['wall_seconds'])} stages" if total else "",
        "Versions": _versions(nodes),
        "Best": f"{policy_name(best['iteration'])}, {best['checkpoint']}" if best else "",
    }


def _listed(nodes: dict[str, Any], key: str) -> str:
    return ", ".join(dict.fromkeys(str(m[key]) for m in nodes.values() if m.get(key) not in (None, "", {})))


def _versions(nodes: dict[str, Any]) -> str:
    versions: dict[str, dict[str, None]] = {}
    for manifest in nodes.values():
        for name, version in (manifest.get("versions") or {}).items():
            versions.setdefault(name, {})[str(version)] = None
    return ", ".join(f"{name} {'/'.join(found)}" for name, found in sorted(versions.items()))
