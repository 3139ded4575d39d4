"""The sections of the page that say why: values, moments, advantages, the value gate, videos, losses."""

from __future__ import annotations

import base64
from html import escape
from pathlib import Path
from typing import Any

from recap.report.advice import knobs
from recap.report.html import figures, gather
from recap.report.html.page import Page, breakable, card, row, section, table
from recap.report.html.rollouts import Rollouts, last_rollouts, moments, traces
from recap.report.words import labels_of, sentence_case
from recap.storage import readers as files
from recap.utils.errors import RecapError, disk_error

SHOWN = ("value", "return", "advantage", "positive", "fps")  # of a trace, what page.js reads


def rollouts(page: Page, run_dir: Path, summary: dict[str, Any]) -> list[str]:
    """Value over time beside the video, and the strongest moments; [] where no rollouts were labelled."""
    found = last_rollouts(run_dir, summary)
    return [] if found is None else [_values(page, run_dir, found), _moments(found)]


def _values(page: Page, run_dir: Path, found: Rollouts) -> str:
    shown = traces(run_dir, found)
    low = min(min(trace["value"] + trace["return"]) for trace in shown)
    span = max(abs(a) for trace in shown for a in trace["advantage"])
    unseen = any(trace["held_out"] for trace in shown)
    about = (
        f"Rollouts of iteration {found.iteration}: the median of its kind by mean value, and the one that surprised "
        "the value function most. Solid: V, the expected return. Dotted: the return that followed. Drag along a curve "
        "(or use the arrow keys) to see that frame, or play the video."
        + (" They were held out: the value function was not trained on them." if unseen else "")
    )
    cards = "".join(_trace(page, number, trace, low, span) for number, trace in enumerate(shown))
    return section("Value over time", about, f'<div class="columns">{cards}</div>')


def _trace(page: Page, number: int, trace: dict[str, Any], low: float, span: float) -> str:
    name, frames = f"trace-{number}", len(trace["value"])
    colour = f"var(--{trace['outcome']})"
    chart = page.figure(name, figures.trace(trace, low, span, colour), f"{trace['title']}: value and advantage by time")
    page.traces.append({key: trace[key] for key in SHOWN})
    video = page.video(name, trace["video"], trace["shape"]) if "video" in trace else ""
    button = '<button type="button" class="play">Play</button>' if video else ""
    return card(
        f'<div class="title"><b>{escape(trace["title"])}</b><span>rollout {trace["episode"]}</span></div>',
        f'<p class="sub">{escape(trace["task"])}</p>',
        f'<div class="trace" data-trace="{number}"><div class="screen">{video}'
        f'<div class="beside">{button}<p class="readout" aria-live="off"></p></div></div>'
        f'<div class="scrub" tabindex="0" role="slider" aria-label="frame of rollout {trace["episode"]}" '
        f'aria-valuemin="0" aria-valuemax="{frames - 1}" aria-valuenow="0">{chart}<i class="cursor"></i></div></div>',
    )


def _moments(found: Rollouts) -> str:
    groups = moments(found)
    if not groups:
        return ""
    ahead = found.thresholds.n_step
    later = "at the end of the episode" if ahead is None else f"{ahead} steps later"
    parts = []
    for sign, shown in groups.items():
        thumbs = "".join(
            f'<figure class="moment"><div>{_images(moment["images"])}</div>'
            f'<figcaption><b class="{"good" if sign == "positive" else "bad"}">'
            f"{format(moment['advantage'], '+.3f').replace('-', '−')}</b> rollout {moment['episode']}, frame "
            f"{moment['frame']} <span>({moment['seconds']:.1f} s, {'succeeded' if moment['success'] else 'failed'} in "
            f"the end)</span><br><span>{escape(moment['task'])}</span></figcaption></figure>"
            for moment in shown
        )
        parts.append(card(f"<h3>Most {sign}</h3>", f'<div class="moments">{thumbs}</div>'))
    return section(
        "Strongest moments",
        f"The rollout frames with the highest and the lowest advantage, one an episode: the frame, and what the camera "
        f"saw {later}. Where the end of the episode is closer than that, the outcome speaks for itself, so such "
        "frames are left out.",
        *parts,
    )


def _images(jpegs: list[str]) -> str:
    return "".join(f'<img alt="" src="data:image/jpeg;base64,{jpeg}">' for jpeg in jpegs)


def advantages(page: Page, run_dir: Path, summary: dict[str, Any]) -> str:
    """Histograms of the advantages by source with ε; "" without labels."""
    histograms = gather.advantage_histograms(run_dir, summary)
    if not histograms:
        return ""
    several_tasks = len({h["task"] for h in histograms}) > 1
    options = []
    for number, entry in enumerate(histograms):
        name = sentence_case(labels_of(entry["iteration"])) + (f": {entry['task']}" if several_tasks else "")
        slot = page.figure(f"advantage-{number}", figures.histogram(entry), f"Advantages, {name}")
        last = " selected" if number == len(histograms) - 1 else ""
        options.append(f'<option value="advantage-{number}"{last}>{escape(name)}</option>')
    choice = f'<select aria-label="Iteration and task">{"".join(options)}</select>' if len(options) > 1 else ""
    return section(
        "Advantages and ε",
        "How the advantages of the frames spread, by where the frames come from. What lies above ε (full colour) is "
        "labelled positive; so is all of a source that is forced positive. Each row is scaled to its own highest bar.",
        card(choice, slot),
    )


def gates(run_dir: Path, summary: dict[str, Any]) -> str:
    """What the value gate of each iteration found, with its picture; "" without gates."""
    cards = [_gate(run_dir, gate) for gate in summary["gate"]]
    return (
        section(
            "Value gate",
            "Whether the value function had learnt anything, asked before a policy was trained on its labels.",
            *cards,
        )
        if cards
        else ""
    )


def _gate(run_dir: Path, gate: dict[str, Any]) -> str:
    verdict = (
        ("passed", "good") if gate["passed"] else ("stopped the run" if gate["action"] == "stop" else "warned", "bad")
    )
    rows = [
        row(
            [
                _check(check),
                "–" if check["value"] is None else f"{check['value']:.3g}",
                f'<td class="whole">{escape(check["limit"])}</td>',
            ]
        )
        for check in gate["checks"]
    ]
    name = sentence_case(labels_of(gate["iteration"]))
    path = files.stage_dir(run_dir, gate["iteration"], "gate") / "gate.png"
    try:
        picture = base64.b64encode(path.read_bytes()).decode() if path.is_file() else ""
    except OSError as error:
        raise disk_error(error, path) or RecapError(f"{path} cannot be read: {error}") from error
    return card(
        f'<div class="title"><b>{name}</b><span class="{verdict[1]}">{verdict[0]}</span></div>',
        table(["check", "value", "wanted"], rows, beside=2),
        f'<img class="gate" alt="Plot of the value gate" src="data:image/png;base64,{picture}">' if picture else "",
    )


def _check(check: dict[str, Any]) -> str:
    """Its name and words, and what to turn: passed, failed, or passed because there was not enough to tell."""
    mark = '<span class="good">✓</span>' if check["passed"] else '<span class="bad">✗</span>'
    if check["passed"] and check["value"] is None:
        mark = '<span class="sub">?</span>'
    turn = [] if check["passed"] else knobs(check["knob"])
    listed = "".join(f"<code>{breakable(knob)}</code>" for knob in turn)
    name, text = escape(check["name"].replace("_", " ")), escape(check["text"])
    return f'{mark} {name}<br><span class="sub">{text}</span>' + (f'<div class="knobs">{listed}</div>' if turn else "")


def videos(page: Page, run_dir: Path, summary: dict[str, Any]) -> str:
    """The filmed evaluation episodes, before and after side by side; "" without any."""
    episodes = gather.videos(run_dir, summary)
    if not episodes:
        return ""
    cards = []
    for number, episode in enumerate(episodes):
        takes = "".join(
            f"<figure>{page.video(f'take-{number}-{place}', take['video'])}<figcaption>"
            f'<b>{escape(take["policy"])}</b> <span class="{"good" if take["success"] else "bad"}">'
            f"{escape(take['outcome'])}</span></figcaption></figure>"
            for place, take in enumerate(episode["takes"])
        )
        title = f'<div class="title"><b>{escape(episode["title"])}</b></div>'
        cards.append(card(title, f'<div class="takes">{takes}</div>'))
    return section(
        "Videos",
        "The first evaluation episodes, as they came, not chosen by outcome. Click one to play it.",
        '<p><button id="play" type="button">Play or pause all</button></p>',
        f'<div class="columns">{"".join(cards)}</div>',
    )


def losses(page: Page, run_dir: Path, nodes: dict[str, Any]) -> str:
    """Training losses of policies and value functions; "" without any."""
    curves = gather.losses(run_dir, nodes)
    cards = []
    for title, name, chosen in (
        ("Policy (flow matching)", "loss-policy", [c for c in curves if not _is_value(c["node"])]),
        ("Value function (cross-entropy)", "loss-value", [c for c in curves if _is_value(c["node"])]),
    ):
        if chosen:
            ends = ", ".join(f"{c['node']} {c['loss'][-1]:.3g}" for c in chosen if "controls/" not in c["node"])
            chart = page.figure(name, figures.losses(chosen), f"{title}: training loss by step")
            cards.append(card(f"<h3>{title}</h3>", chart, f'<p class="sub">At the end: {escape(ends)}</p>'))
    return (
        section(
            "Training loss",
            "By step. The scale is logarithmic where the loss fell more than tenfold; control arms are pale.",
            f'<div class="columns">{"".join(cards)}</div>',
        )
        if cards
        else ""
    )


def _is_value(node: str) -> bool:
    return node.rpartition("/")[2].startswith("value")
