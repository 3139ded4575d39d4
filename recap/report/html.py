"""report.html: one file that shows a run, with everything it needs inside it and nothing loaded from elsewhere."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from recap.report import gather
from recap.report import run_files as files
from recap.report.summary import write_atomic
from recap.report.verdict import (
    EXPERIENCE_ARMS,
    NBSP,
    arm_name,
    comparison,
    evaluated,
    p_number,
    p_text,
    percent,
    policy_name,
    sentence_case,
    side_name,
    verdict,
)

PARTS = Path(__file__).parent


def write_html(run_dir: Path, summary: dict[str, Any]) -> Path:
    """Write report.html of a run directory and return its path. `summary` is that of `build_summary`.

    What a run does not have (controls, videos, rollouts, iterations) has no section. Raises RecapError for files that
    are there but cannot be read, or when the page cannot be written.
    """
    run_dir = Path(run_dir)
    nodes = files.finished_stages(run_dir)
    data: dict[str, Any] = {
        "curve": gather.success_curve(summary),
        "advantage": gather.advantage_histograms(run_dir, summary),
        "values": gather.value_traces(run_dir, summary),
        "losses": gather.losses(run_dir, nodes),
    }
    sections = (
        _header(summary),
        _tiles(summary),
        _success(summary),
        _pairs(summary),
        _tasks(summary),
        _values(data["values"]),
        _advantages(data["advantage"]),
        _videos(gather.videos(run_dir, summary)),
        _losses(data["losses"]),
        _provenance(run_dir, summary, nodes),
    )
    page = Template((PARTS / "page.html").read_text(encoding="utf-8")).substitute(
        title=escape(f"{summary['name']} · RECAP report"),
        style=(PARTS / "page.css").read_text(encoding="utf-8"),
        script=(PARTS / "page.js").read_text(encoding="utf-8"),
        body="\n".join(section for section in sections if section),
        data=json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c"),  # cannot end the script
    )
    write_atomic(run_dir / "report.html", page)
    return run_dir / "report.html"


def _section(title: str, about: str, *content: str) -> str:
    return f'<section>\n<h2>{escape(title)}</h2>\n<p class="about">{about}</p>\n' + "\n".join(content) + "\n</section>"


def _row(cells: list[str], tag: str = "td") -> str:
    return "<tr>" + "".join(c if c.startswith(f"<{tag}") else f"<{tag}>{c}</{tag}>" for c in cells) + "</tr>"


def _table(head: list[str], rows: list[str]) -> str:
    head_row, body = _row(head, "th"), "".join(rows)
    return f'<div class="scroll"><table><thead>{head_row}</thead><tbody>{body}</tbody></table></div>'


def _breakable(node: str) -> str:
    """A node's name that a narrow card may break after a slash or an underscore."""
    return escape(node.replace("controls/", "")).replace("/", "/<wbr>").replace("_", "_<wbr>")


def _number(value: float | None, digits: int = 0) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"


# ---------------------------------------------------------------------------------------------------- what happened
def _header(summary: dict[str, Any]) -> str:
    seed = "" if summary["seed"] is None else f" · seed {summary['seed']}"
    sentences = "\n".join(f"<p>{escape(sentence)}</p>" for sentence in verdict(summary))
    return (
        f'<header>\n<p class="eyebrow">RECAP run{seed}</p>\n<h1>{escape(summary["name"])}</h1>\n'
        f'<div class="lead">\n{sentences}\n</div>\n</header>'
    )


def _tiles(summary: dict[str, Any]) -> str:
    policies = evaluated(summary)
    if not policies:
        return ""
    first, last = policies[0]["eval"], policies[-1]["eval"]
    name = policy_name(policies[-1]["iteration"])

    def change(key: str, show: Any) -> str:
        return show(last[key]) if first is last else f"{show(first[key]).removesuffix(f'{NBSP}%')} → {show(last[key])}"

    tiles = [
        ("Success", change("success_rate", percent), f"{last['successes']} of {last['episodes']} with {name}"),
        ("Steps to success", change("mean_steps_to_success", lambda v: _number(v, 1)), "mean over successes"),
        ("Successes per hour", change("successes_per_hour", _number), "of robot time"),
    ]
    controls = {control["arm"]: control["eval"] for control in summary["controls"] if control["eval"]}
    arm = next((arm for arm in EXPERIENCE_ARMS if arm in controls), None)
    paired = comparison(summary, arm, policies[-1]["iteration"]) if arm else None
    if arm and paired:
        lead = round(100 * (last["success_rate"] - controls[arm]["success_rate"]))
        points = f"{lead:+d}".replace("-", "−") if lead else "0"
        tiles.append(("Lead over the control", f"{points} points", f"{arm_name(arm)}, {p_text(paired['mcnemar_p'])}"))
    else:
        tiles.append(("Lead over a control", "–", "no such control was run"))
    return (
        '<div class="tiles">\n'
        + "\n".join(
            f'<div class="tile"><div class="name">{name}</div><div class="big">{escape(big)}</div>'
            f'<div class="note">{escape(note)}</div></div>'
            for name, big, note in tiles
        )
        + "\n</div>"
    )


def _success(summary: dict[str, Any]) -> str:
    policies = evaluated(summary)
    if not policies:
        return ""
    shares = {entry["iteration"]: entry["achieved_positive"].get("all") for entry in summary["advantage"]}

    def cells(name: str, mark: str, evaluation: dict[str, Any], share: str, data: str) -> str:
        low, high = evaluation["ci95"]
        return _row(
            [
                f'<span class="key {mark}"></span>{escape(name)}',
                f'<td class="wide">{evaluation["successes"]}/{evaluation["episodes"]}</td>',
                f'<td class="strong whole">{percent(evaluation["success_rate"])}</td>',
                f'<td class="whole">{100 * low:.0f}–{100 * high:.0f} %</td>',
                _number(evaluation["mean_steps_to_success"], 1),
                _number(evaluation["successes_per_hour"]),
                f'<td class="wide">{share}</td>',
                f'<td class="wide">{data}</td>',
            ]
        )

    head = ["policy", '<th class="wide">success</th>', "rate", "95 % Wilson", "steps", "per hour"]
    rows = [
        cells(
            sentence_case(policy_name(p["iteration"])),
            "policy",
            p["eval"],
            percent(shares.get(p["iteration"])),
            f"{_number(p['data']['demonstrations'])} + {p['data']['rollouts']}",
        )
        for p in policies
    ]
    controls = [control for control in summary["controls"] if control["eval"]]
    if controls:
        rows.append(
            f'<tr class="group"><td colspan="8">Controls for {policy_name(policies[-1]["iteration"])}</td></tr>'
        )
        rows += [cells(sentence_case(arm_name(c["arm"])), "control", c["eval"], "", "") for c in controls]
    wide = ['<th class="wide">positive share</th>', '<th class="wide">demos + rollouts</th>']
    return _section(
        "Success rate",
        "Held-out initial states, the same for every policy. Bars are 95 % Wilson intervals; the pairs below compare "
        "more sharply than overlapping bars do.",
        '<div class="card chart" id="curve" role="img" aria-label="Success rates; the table has the numbers"></div>',
        f'<div class="card">{_table([*head, *wide], rows)}</div>',
    )


def _pairs(summary: dict[str, Any]) -> str:
    evaluations = {p["iteration"]: p["eval"] for p in evaluated(summary)}
    rows = []
    for pair in summary["comparisons"]:
        after, total = evaluations[pair["after"]], evaluations[pair["after"]]["episodes"]
        both = after["successes"] - pair["fixed"]
        parts = {"both": both, "fixed": pair["fixed"], "broke": pair["broke"]}
        parts["neither"] = total - sum(parts.values())
        bar = "".join(f'<i class="{name}" style="flex:{count}"></i>' for name, count in parts.items() if count)
        rows.append(
            _row(
                [
                    f"{escape(sentence_case(side_name(pair['before'])))} → {escape(side_name(pair['after']))}",
                    f'<td class="wide"><div class="pairs">{bar}</div></td>',
                    f'<td class="strong">{pair["fixed"]}</td>',
                    f'<td class="strong">{pair["broke"]}</td>',
                    f'<td class="wide">{both}</td>',
                    f'<td class="wide">{parts["neither"]}</td>',
                    f'<td class="whole">{p_number(pair["mcnemar_p"])}</td>',
                ]
            )
        )
    if not rows:
        return ""
    names = {"both": "both succeed", "fixed": "fixed", "broke": "broke", "neither": "both fail"}
    legend = "".join(f'<span><i class="{key}"></i>{name}</span>' for key, name in names.items())
    both_ways = [f'<th class="wide">{names[key]}</th>' for key in ("both", "neither")]
    head = ["before → after", '<th class="wide"></th>', "fixed", "broke", *both_ways, "p"]
    return _section(
        "Pair by pair",
        "Every initial state was met by both policies. Fixed: failed before, succeeded after. Broke: the other way "
        "round. p is McNemar’s exact test of the two.",
        f'<div class="card">{_table(head, rows)}<div class="legend wide">{legend}</div></div>',
    )


def _tasks(summary: dict[str, Any]) -> str:
    policies = evaluated(summary)
    tasks = sorted({task for policy in policies for task in policy["eval"]["per_task"]})
    if len(tasks) < 2:
        return ""
    rows = []
    for task in tasks:
        counts = [policy["eval"]["per_task"].get(task) for policy in policies]
        rows.append(
            _row(
                [
                    escape(task),
                    *(
                        "–"
                        if c is None
                        else f"{percent(c['successes'] / c['episodes'])} "
                        f'<span class="sub">{c["successes"]}/{c["episodes"]}</span>'
                        for c in counts
                    ),
                ]
            )
        )
    head = ["task", *(policy_name(policy["iteration"]) for policy in policies)]
    return _section(
        "By task",
        "The same evaluations, one instruction at a time.",
        f'<div class="card">{_table(head, rows)}</div>',
    )


# ---------------------------------------------------------------------------------------------------- why
def _values(values: dict[str, Any] | None) -> str:
    if values is None:
        return ""
    panels = [
        f'<div class="card"><div class="title"><b>A {outcome}</b><span>rollout {values[outcome]["episode"]}</span>'
        f'</div>\n<div class="trace" id="trace-{outcome}">'
        '<div class="still"><div class="frame"></div><div class="readout"></div></div>'
        '<div class="plot" tabindex="0"><div class="chart"></div><div class="strip"></div></div></div></div>'
        for outcome in ("success", "failure")
        if outcome in values
    ]
    tasks = {values[outcome]["task"] for outcome in ("success", "failure") if outcome in values}
    return _section(
        "Value over time",
        f"Rollouts of iteration {values['iteration']} ({escape(', '.join(sorted(tasks)))}), typical, not picked: "
        "the median of its kind by mean value. Line: V, the expected return. Dashed: the return that really followed. "
        "Marks under the axis: frames labelled positive. Move over a curve (or use the arrow "
        "keys) to see what the policy saw.",
        f'<div class="columns">{"".join(panels)}</div>',
    )


def _advantages(histograms: list[dict[str, Any]]) -> str:
    if not histograms:
        return ""
    several_tasks = len({h["task"] for h in histograms}) > 1
    labels = [f"Iteration {h['iteration']}" + (f": {h['task']}" if several_tasks else "") for h in histograms]
    options = "".join(f'<option value="{i}">{escape(label)}</option>' for i, label in enumerate(labels))
    choice = (
        f'<select id="histogram-choice" aria-label="Iteration and task">{options}</select>' if len(labels) > 1 else ""
    )
    return _section(
        "Advantages and ε",
        "How the advantages of the frames spread, by where the frames come from. What lies above ε (full colour) is "
        "labelled positive; so is all of a source that is forced positive. Each row is scaled to its own total.",
        f'<div class="card">{choice}<div class="chart" id="histogram" role="img" aria-label="Advantages"></div></div>',
    )


def _videos(episodes: list[dict[str, Any]]) -> str:
    if not episodes:
        return ""
    cards = []
    for episode in episodes:
        takes = "".join(
            f'<figure><video src="{take["uri"]}" muted loop playsinline preload="metadata"></video><figcaption><b>'
            f'{escape(take["policy"])}</b> <span class="{"good" if take["success"] else "bad"}">'
            f"{escape(take['outcome'])}</span>"
            "</figcaption></figure>"
            for take in episode["takes"]
        )
        cards.append(
            f'<div class="card"><div class="title"><b>{escape(episode["title"])}</b></div>'
            f'<div class="takes">{takes}</div></div>'
        )
    return _section(
        "Videos",
        "The first evaluation episodes, as they came, not chosen by outcome. Click one to play it.",
        '<p><button id="play" type="button">Play or pause all</button></p>',
        f'<div class="columns">{"".join(cards)}</div>',
    )


# ---------------------------------------------------------------------------------------------------- how
def _losses(curves: list[dict[str, Any]]) -> str:
    if not curves:
        return ""
    cards = "".join(
        f'<div class="card"><div class="title"><b>{_breakable(c["node"])}</b><span>{c["loss"][-1]:.3g}</span></div>'
        f'<div class="chart" id="loss-{i}" role="img" aria-label="Training loss of {escape(c["node"])}"></div></div>'
        for i, c in enumerate(curves)
    )
    return _section(
        "Training loss",
        "By step, beside each name its last value. The scale is logarithmic where the loss fell more than tenfold.",
        f'<div class="small">{cards}</div>',
    )


def _provenance(run_dir: Path, summary: dict[str, Any], nodes: dict[str, Any]) -> str:
    def values(key: str) -> str:
        found = dict.fromkeys(
            str(manifest[key]) for manifest in nodes.values() if manifest.get(key) not in (None, "", {})
        )
        return ", ".join(found)

    versions: dict[str, dict[str, None]] = {}
    for manifest in nodes.values():
        for name, version in (manifest.get("versions") or {}).items():
            versions.setdefault(name, {})[str(version)] = None
    times = [files.moment(m.get(key)) for m in nodes.values() for key in ("started", "finished")]
    known = sorted(time for time in times if time is not None)
    ends = (datetime.fromtimestamp(time, UTC).strftime("%Y-%m-%d %H:%M") for time in known[:1] + known[-1:])
    when = " to ".join(dict.fromkeys(ends))
    total = sum(summary["wall_seconds"].values())
    facts = {
        "Run": summary["name"],
        "Seed": "" if summary["seed"] is None else str(summary["seed"]),
        "Git commit": values("git_commit"),
        "Host": values("host"),
        "Time": f"{when} UTC" if when else "",
        "Wall time": f"{total / 60:.1f} min in {len(summary['wall_seconds'])} stages" if total else "",
        "Versions": ", ".join(f"{name} {'/'.join(found)}" for name, found in sorted(versions.items())),
    }
    listed = "".join(f"<dt>{name}</dt><dd>{escape(fact)}</dd>" for name, fact in facts.items() if fact)
    longest = max(summary["wall_seconds"].values(), default=0) or 1
    bars = "".join(
        _row(
            [
                _breakable(node),
                f'<div class="bar" style="width:{100 * seconds / longest:.1f}%"></div>',
                f"{seconds:,.1f} s",
            ]
        )
        for node, seconds in summary["wall_seconds"].items()
    )
    config = run_dir / "config.yaml"
    resolved = config.read_text(encoding="utf-8") if config.is_file() else ""
    return _section(
        "Provenance",
        "Where these numbers come from. Every stage keeps its own configuration and manifest beside its files.",
        f'<div class="columns"><div class="card"><dl class="facts">{listed}</dl></div>',
        f'<div class="card"><table class="wall"><tbody>{bars}</tbody></table></div></div>',
        f"<details><summary>Resolved configuration</summary><pre>{escape(resolved)}</pre></details>"
        if resolved
        else "",
    )
