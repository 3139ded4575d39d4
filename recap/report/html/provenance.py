"""The sections of the page that say how: differences of the configuration, versions, inputs, wall times."""

from __future__ import annotations

from datetime import UTC, datetime
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Any

from recap.report.html.page import breakable, card, row, section, table
from recap.report.words import arm_name, policy_name, sentence_case
from recap.storage import readers as files

COUNTED = ("stage", "iteration")  # differ from iteration to iteration by design
ABSENT = "–"


def config_changes(old: dict[str, Any], new: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """(key, old value, new value) where two flat configurations differ; "–" for a missing key."""
    keys = [*old, *(key for key in new if key not in old)]
    found = [(key, old.get(key, ABSENT), new.get(key, ABSENT)) for key in keys if key not in COUNTED]
    return [change for change in found if change[1] != change[2]]


# ---------------------------------------------------------------------------------------------------- differences
def differences(run_dir: Path, summary: dict[str, Any], nodes: dict[str, Any]) -> str:
    """What changed from SFT to fine-tuning, from iteration to iteration, and in each control arm; "" for nothing."""
    rows = _group("From SFT to the policy of an iteration", _fine_tuning(run_dir))
    for before, after in pairwise(files.iterations(nodes)):
        changes = []
        for stage in files.ITERATION_ORDER:
            old, new = (_config(run_dir, f"{files.iteration_dir(k)}/{stage}") for k in (before, after))
            if old and new:
                changes += [(f"{stage}: {key}", a, b) for key, a, b in config_changes(old, new)]
        rows += _group(f"From iteration {before} to iteration {after}", changes, "nothing")
    for control in summary["controls"]:
        own = {key: value for key, _, value in _own(run_dir, control)}
        changes = [(key, own.get(key, ABSENT), value) for key, value in control["changes"].items()]
        rows += _group(f"Arm: {arm_name(control['arm'])}", changes, _inputs(nodes, control))
    commits = list(dict.fromkeys(str(m.get("git_commit")) for m in nodes.values()))
    if len(commits) > 1:
        found = [(f"stages from {node}", "", m) for m, node in _first_of_each_commit(nodes).items()]
        rows += _group("Code (git commit)", found)
    return (
        section(
            "Differences of configuration",
            "Each stage keeps its resolved configuration; here is where two of them differ.",
            card(table(["key", "before", "after"], rows, "keys")),
        )
        if rows
        else ""
    )


def _group(title: str, changes: list[tuple[str, Any, Any]], nothing: str = "") -> list[str]:
    """Rows under a title; with no change the title alone says so, or nothing is said."""
    if not changes:
        return [row([escape(title), "", escape(nothing)])] if nothing else []
    head = f'<tr class="group"><td colspan="3">{escape(sentence_case(title))}</td></tr>'
    return [head, *(row([f"<code>{breakable(key)}</code>", _value(a), _value(b)]) for key, a, b in changes)]


def _value(value: Any) -> str:
    if value is None:
        return "null"
    return breakable(str(value).lower() if isinstance(value, bool) else str(value))


def _config(run_dir: Path, node: str) -> dict[str, Any]:
    return files.flat(files.read_config(run_dir / node))


def _fine_tuning(run_dir: Path) -> list[tuple[str, Any, Any]]:
    """policy.sft.steps beside policy.finetune.steps, and so on."""
    last = max(run_dir.glob("iter_*/policy/config.yaml"), default=None)
    old = _config(run_dir, "sft")
    new = _config(run_dir, last.parent.relative_to(run_dir).as_posix()) if last else {}
    named = {key.replace("policy.sft.", "policy.finetune."): value for key, value in old.items()}
    return config_changes(named, new) if old and new else []


def _own(run_dir: Path, control: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """What RECAP's own stages have where an arm has something else."""
    head = files.iteration_dir(control["iteration"])
    own = {**_config(run_dir, "sft"), **_config(run_dir, f"{head}/advantage"), **_config(run_dir, f"{head}/policy")}
    own |= {f"eval.{key}": value for key, value in _config(run_dir, f"{head}/eval").items()}
    return [(key, ABSENT, value) for key, value in own.items()]


def _inputs(nodes: dict[str, Any], control: dict[str, Any]) -> str:
    """In what else an arm differs: the data it read."""
    head = files.iteration_dir(control["iteration"])
    policy = nodes.get(f"{head}/controls/{control['arm']}/policy")
    if policy is None:
        return "the same policy"
    left_out = set(nodes.get(f"{head}/policy", {}).get("inputs") or {}) - set(policy.get("inputs") or {})
    return f"without {', '.join(sorted(left_out))}" if left_out else "the same keys"


def _first_of_each_commit(nodes: dict[str, Any]) -> dict[str, str]:
    first: dict[str, str] = {}
    for node, manifest in nodes.items():
        first.setdefault(str(manifest.get("git_commit")), node)
    return first


# ---------------------------------------------------------------------------------------------------- provenance
def provenance(run_dir: Path, summary: dict[str, Any], nodes: dict[str, Any]) -> str:
    """Commit, versions, times, and of every stage its wall time and inputs."""
    times = [files.moment(m.get(key)) for m in nodes.values() for key in ("started", "finished")]
    known = sorted(time for time in times if time is not None)
    ends = (datetime.fromtimestamp(time, UTC).strftime("%Y-%m-%d %H:%M") for time in known[:1] + known[-1:])
    when = " to ".join(dict.fromkeys(ends))
    total = sum(summary["wall_seconds"].values())
    facts = {
        "Run": summary["name"],
        "Seed": "" if summary["seed"] is None else str(summary["seed"]),
        "Git commit": _listed(nodes, "git_commit"),
        "Host": _listed(nodes, "host"),
        "Time": f"{when} UTC" if when else "",
        "Wall time": f"{total / 60:.1f} min in {len(summary['wall_seconds'])} stages" if total else "",
        "Versions": _versions(nodes),
        "Best": f"{policy_name(summary['best']['iteration'])}, {summary['best']['checkpoint']}"
        if summary["best"]
        else "",
    }
    listed = "".join(f"<dt>{name}</dt><dd>{escape(fact)}</dd>" for name, fact in facts.items() if fact)
    config = run_dir / "config.yaml"
    resolved = config.read_text(encoding="utf-8") if config.is_file() else ""
    return section(
        "Provenance",
        "Where these numbers come from. Every stage keeps its own configuration and manifest beside its files.",
        card(f'<dl class="facts">{listed}</dl>'),
        card(_stages(summary, nodes)),
        f"<details><summary>Resolved configuration</summary><pre>{escape(resolved)}</pre></details>"
        if resolved
        else "",
    )


def _listed(nodes: dict[str, Any], key: str) -> str:
    found = dict.fromkeys(str(m[key]) for m in nodes.values() if m.get(key) not in (None, "", {}))
    return ", ".join(found)


def _versions(nodes: dict[str, Any]) -> str:
    versions: dict[str, dict[str, None]] = {}
    for manifest in nodes.values():
        for name, version in (manifest.get("versions") or {}).items():
            versions.setdefault(name, {})[str(version)] = None
    return ", ".join(f"{name} {'/'.join(found)}" for name, found in sorted(versions.items()))


def _stages(summary: dict[str, Any], nodes: dict[str, Any]) -> str:
    longest = max(summary["wall_seconds"].values(), default=0) or 1
    rows = []
    for node, seconds in summary["wall_seconds"].items():
        inputs = (nodes[node].get("inputs") or {}).items()
        read = ", ".join(f"{escape(role)} <code>{escape(str(source['sha256'])[:8])}</code>" for role, source in inputs)
        rows.append(
            row(
                [
                    breakable(node),
                    f'<td class="wide read">{read}</td>',
                    f'<td class="took"><div class="bar" style="width:{100 * seconds / longest:.1f}%"></div></td>',
                    f'<td class="whole">{seconds:,.1f} s</td>',
                ]
            )
        )
    return table(
        [
            "stage",
            '<th class="wide">inputs, by the SHA-256 of their results</th>',
            "",
            '<th class="whole">wall time</th>',
        ],
        rows,
        "wall",
    )
