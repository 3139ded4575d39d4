"""The charts of the report, as plotly figures. Colours are the page's own variables, so light and dark are one figure.

A figure holds its data, and of the layout what is its alone; the rest is the theme's.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go

from recap.report.html.theme import ABLATION, CARD, COLOURS, FAINT, HEIGHT, INK, LINE, POLICY, RIGHT
from recap.report.words import (
    ablation_name,
    evaluated,
    interval,
    percent,
    policy_name,
    sentence_case,
    signed,
    stage_name,
)
from recap.storage.readers import ABLATION as ABLATION_NODE
from recap.storage.readers import iteration_of

LEGEND = {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0}  # above the chart


def _figure(data: list[Any], **layout: Any) -> go.Figure:
    return go.Figure(data, {"template": None, **layout})


def _note(text: str, x: float, y: float, **style: Any) -> dict[str, Any]:
    """Words in a chart, at a share of its width and a value of its y axis unless `style` says otherwise."""
    plain = {"xref": "paper", "xanchor": "left", "showarrow": False, "bgcolor": CARD, "borderpad": 1}
    return plain | {"text": text, "x": x, "y": y} | style


def _hover(name: str, evaluation: dict[str, Any]) -> str:
    return (
        f"<b>{sentence_case(name)}</b><br>{percent(evaluation['success_rate'])}, {evaluation['successes']} of "
        f"{evaluation['episodes']}<br>95 % interval {interval(evaluation['ci95'])}"
    )


def _whiskers(evaluations: list[dict[str, Any]], colour: str) -> dict[str, Any]:
    """Error bars of success rates, in per cent."""
    rates = [e["success_rate"] for e in evaluations]
    return {
        "type": "data",
        "array": [100 * (e["ci95"][1] - rate) for e, rate in zip(evaluations, rates, strict=True)],
        "arrayminus": [100 * (rate - e["ci95"][0]) for e, rate in zip(evaluations, rates, strict=True)],
        "color": colour,
        "thickness": 2,
        "width": 5,
    }


def _rates(evaluations: list[dict[str, Any]]) -> list[float]:
    return [100 * e["success_rate"] for e in evaluations]


# ---------------------------------------------------------------------------------------------------- success
def success_curve(summaries: dict[str, dict[str, Any]]) -> go.Figure:
    """Success by iteration with 95 % Wilson intervals: a line for each run."""
    labels: list[int] = []
    lines, alone = [], len(summaries) == 1
    for number, (name, summary) in enumerate(summaries.items()):
        policies = evaluated(summary)
        evaluations, colour = [p["eval"] for p in policies], COLOURS[number % len(COLOURS)]
        x = [p["iteration"] + 0.06 * (number - (len(summaries) - 1) / 2) for p in policies]
        titles = [policy_name(p["iteration"]) if alone else f"{name}, {policy_name(p['iteration'])}" for p in policies]
        lines.append(
            go.Scatter(
                x=x,
                y=_rates(evaluations),
                error_y=_whiskers(evaluations, colour),
                mode="lines+markers+text" if alone else "lines+markers",
                text=[f"<b>{percent(e['success_rate'])}</b>" for e in evaluations],
                textposition=_beside_the_line(evaluations),
                textfont={"color": INK, "size": 13},
                cliponaxis=False,
                hovertext=[_hover(t, e) for t, e in zip(titles, evaluations, strict=True)],
                hoverinfo="text",
                name=name,
                line={"color": colour, "width": 2},
                marker={"size": 11, "color": colour, "line": {"color": CARD, "width": 2}},
            )
        )
        labels = max(labels, [p["iteration"] for p in policies], key=len)
    ends = (min(labels, default=0) - 0.35, max(labels, default=0) + 0.45)
    return _figure(
        lines,
        height=HEIGHT,
        xaxis={"tickvals": labels, "ticktext": [sentence_case(policy_name(k)) for k in labels], "range": ends},
        yaxis={"range": [0, 104], "dtick": 20, "ticksuffix": " %"},
        showlegend=not alone,
        legend=LEGEND,
        margin={"t": 12 if alone else 34},
    )


def _beside_the_line(evaluations: list[dict[str, Any]]) -> list[str]:
    """Where the number of a point stands clear of the line to the next one."""
    rates = _rates(evaluations)
    rises = [after >= rate for rate, after in zip(rates, [*rates[1:], 0.0], strict=True)]
    return ["bottom right" if up else "top right" for up in rises]


def ablations(summary: dict[str, Any]) -> go.Figure | None:
    """The last policy, SFT and every ablation in a column, with intervals; None without ablations."""
    policies = evaluated(summary)
    if not summary["ablations"] or not policies:
        return None
    shown = [policies[-1], *([policies[0]] if len(policies) > 1 else [])]
    rows = [(policy_name(p["iteration"]), p["eval"], POLICY) for p in shown]
    rows += [(ablation_name(a["name"]), a["eval"], ABLATION) for a in summary["ablations"]]
    places = [-row for row in range(len(rows))]
    points = []
    for colour, symbol in ((POLICY, "circle"), (ABLATION, "circle-open")):
        mine = [(y, name, e) for y, (name, e, own) in zip(places, rows, strict=True) if own == colour]
        points.append(
            go.Scatter(
                x=_rates([e for _, _, e in mine]),
                y=[y for y, _, _ in mine],
                error_x=_whiskers([e for _, _, e in mine], colour),
                mode="markers",
                marker={"size": 10, "color": colour, "symbol": symbol, "line": {"width": 2, "color": colour}},
                hovertext=[_hover(name, e) for _, name, e in mine],
                hoverinfo="text",
                cliponaxis=False,
            )
        )
    names = [_note(sentence_case(name), 0, y, yshift=15) for y, (name, _, _) in zip(places, rows, strict=True)]
    rates = [
        _note(f"<b>{percent(e['success_rate'])}</b>", 1, y, xanchor="right", yshift=15, font={"color": INK})
        for y, (_, e, _) in zip(places, rows, strict=True)
    ]
    figure = _figure(
        points,
        height=max(HEIGHT, 46 + 42 * len(rows)),
        margin={"l": RIGHT, "r": 2 * RIGHT, "t": 22},
        xaxis={"range": [-1, 101], "ticksuffix": " %", "dtick": 20, "showgrid": True},
        yaxis={"visible": False, "range": [1 - len(rows) - 0.4, 0.3]},
        annotations=[*names, *rates],
    )
    return _marked(figure, 100 * policies[-1]["eval"]["success_rate"], POLICY, dash="dot")


def _marked(figure: go.Figure, x: float, colour: str, dash: str = "solid") -> go.Figure:
    """With a line over the whole height at x."""
    return figure.add_vline(x, line={"color": colour, "width": 1.2, "dash": dash}, layer="below")


# ---------------------------------------------------------------------------------------------------- choices
def ways(names: list[str], stages: list[dict[str, Any]], shares: bool) -> go.Figure:
    """Over the iterations the share of all episodes that took each way, or the success of those, with intervals.

    A line joins the evaluations of the policies; recorded data sets are open marks.
    """
    lines: list[go.Scatter] = []
    for number, name in enumerate(names):
        colour, aside = COLOURS[number % len(COLOURS)], 0.08 * (number - (len(names) - 1) / 2)
        points = [(stage, _rate_of(stage, name, shares)) for stage in stages]
        for recorded in (False, True):
            mine = [(s, p) for s, p in points if p["episodes"] and recorded != s["node"].endswith("eval")]
            if mine:
                lines.append(_way(name, mine, colour, aside, recorded))
                lines[-1].showlegend = name not in [line.name for line in lines[:-1]]
    places = [_place(stage) for stage in stages]
    ticks = {-1.0: "Demos"} | {float(k): sentence_case(policy_name(k)) for k in range(int(max(places)) + 1)}
    return _figure(
        lines,
        height=HEIGHT,
        margin={"t": 34},
        xaxis={"tickvals": list(ticks), "ticktext": list(ticks.values())}
        | {"range": (min(places) - 0.5, max(places) + 0.4)},
        yaxis={"range": [0, 104], "dtick": 20, "ticksuffix": " %"},
        showlegend=True,
        legend=LEGEND | {"itemclick": False, "itemdoubleclick": False},
    )


def _rate_of(stage: dict[str, Any], name: str, shares: bool) -> dict[str, Any]:
    """A way of a stage as a rate: of the episodes that took it, or of its successes."""
    way = stage["taken"][name]
    taken = {"successes": way["episodes"], "episodes": stage["episodes"], "success_rate": way["share"]}
    return taken | {"ci95": way["share_ci95"]} if shares else way


def _way(
    name: str, points: list[tuple[dict[str, Any], dict[str, Any]]], colour: str, aside: float, recorded: bool
) -> go.Scatter:
    rates = [rate for _, rate in points]
    return go.Scatter(
        x=[_place(stage) + aside for stage, _ in points],
        y=_rates(rates),
        error_y=_whiskers(rates, colour),
        mode="markers" if recorded else "lines+markers",
        cliponaxis=False,
        hovertext=[_hover(f"{stage_name(stage['node'])}: {name}", rate) for stage, rate in points],
        hoverinfo="text",
        name=name,
        line={"color": colour, "width": 2},
        marker={"size": 10, "color": colour, "symbol": "circle-open" if recorded else "circle"}
        | {"line": {"color": colour if recorded else CARD, "width": 2}},
    )


def _place(stage: dict[str, Any]) -> float:
    """On the axis of iterations: demonstrations before SFT, an iteration's rollouts halfway to its policy."""
    kind, iteration = stage["node"].rpartition("/")[2], iteration_of(stage["node"])
    return {"demonstrations": -1.0, "rollout": iteration - 0.5}.get(kind, float(iteration))


# ---------------------------------------------------------------------------------------------------- advantages
def histogram(entry: dict[str, Any]) -> go.Figure:
    """Advantages of one iteration and task: a row a source, in full colour what lies above ε."""
    edges, epsilon, groups = np.array(entry["edges"]), entry["epsilon"], entry["groups"]
    middle, width = (edges[:-1] + edges[1:]) / 2, edges[1] - edges[0]
    bars, notes, gap = [], [], 0.28
    for row, group in enumerate(groups):
        share, base = np.array(group["share"]), -row * (1 + gap)
        colour = f"var(--{group['name']})"
        above = np.ones(len(middle)) if epsilon is None else np.clip((edges[1:] - epsilon) / width, 0, 1)
        bars.append(
            go.Bar(
                x=middle,
                y=share / (share.max() or 1),
                base=base,
                width=width * 0.92,
                marker={"color": colour, "opacity": 0.3 + 0.7 * above, "line": {"width": 0}},
                customdata=100 * share,
                hovertemplate="%{customdata:.1f} % of the frames<br>advantage %{x:.3f}<extra></extra>",
            )
        )
        text = (
            f"<b>{sentence_case(group['name'])}</b>  {percent(group['positive'])} positive, {group['frames']:,} frames"
        )
        notes.append(_note(text, 0, base + 1.02))
    if epsilon is not None:
        left = epsilon > edges[0] + 0.8 * (edges[-1] - edges[0])
        side = {"xanchor": "right", "xshift": -4} if left else {"xshift": 4}
        text = f"<b>ε = {signed(epsilon, 3)}</b>"
        notes.append(_note(text, epsilon, 1, xref="x", yref="paper", yshift=9, font={"color": INK}, **side))
    figure = _figure(
        bars,
        height=60 + 96 * len(groups),
        margin={"l": RIGHT, "r": RIGHT, "t": 26},
        barmode="overlay",
        xaxis={"range": [edges[0], edges[-1]], "zeroline": True, "zerolinecolor": LINE, "nticks": 7},
        yaxis={"visible": False, "range": [-(len(groups) - 1) * (1 + gap) - 0.12, 1.16]},
        annotations=notes,
    )
    return figure if epsilon is None else _marked(figure, epsilon, INK)


# ---------------------------------------------------------------------------------------------------- one episode
def trace(trace: dict[str, Any], low: float, span: float, colour: str) -> go.Figure:
    """Value and return of an episode by second, and its advantages under them, positive frames in colour.

    low: the lowest value of all episodes shown; span: their largest advantage, so that they can be compared.
    """
    seconds = np.arange(len(trace["value"])) / trace["fps"]
    positive, step = np.array(trace["positive"], bool), 1 / trace["fps"]
    width = {"width": 2.2, "color": colour}
    curves = [
        go.Scatter(x=seconds, y=trace["return"], line={"dash": "dot", "width": 1.4, "color": FAINT}, mode="lines"),
        go.Scatter(x=seconds, y=trace["value"], line=width, mode="lines"),
        go.Bar(
            x=seconds,
            y=trace["advantage"],
            yaxis="y2",
            width=step * 0.86,
            marker={"color": [POLICY if p else FAINT for p in positive], "opacity": np.where(positive, 1, 0.45)},
        ),
    ]
    for curve in curves:
        curve.hoverinfo = "skip"
    # Inside the frame and not beside it, so that a phone keeps the width for the curve.
    titles = {1.0: "value, and the return that followed (dotted)", 0.27: "advantage, positive frames in colour"}
    style = {"yref": "paper", "yanchor": "bottom", "font": {"color": FAINT}, "bgcolor": None}
    notes = [_note(text, 0, y, xshift=3, **style) for y, text in titles.items()]
    epsilon = trace["epsilon"]
    return _figure(
        curves,
        height=290,
        margin={"t": 22},
        xaxis={"range": [-step / 2, seconds[-1] + step / 2], "ticksuffix": " s", "nticks": 7, "anchor": "y2"},
        yaxis={"range": [low * 1.05, 0.02], "domain": [0.38, 1], "nticks": 5},
        yaxis2={"range": [-span, span], "domain": [0, 0.26], "nticks": 3, "anchor": "x", "zeroline": True}
        | {"zerolinecolor": LINE, "showgrid": False, "fixedrange": True, "tickfont": {"color": FAINT}},
        annotations=notes,
        shapes=[]
        if epsilon is None
        else [
            {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "yref": "y2", "y0": epsilon, "y1": epsilon}
            | {"line": {"color": INK, "width": 1, "dash": "dot"}}
        ],
    )


# ---------------------------------------------------------------------------------------------------- losses
def losses(curves: list[dict[str, Any]]) -> go.Figure:
    """Training losses by step: the run's own stages in colour, those of ablations pale behind them."""
    own = [curve for curve in curves if not ABLATION_NODE.match(curve["node"])]
    lines = []
    for curve in sorted(curves, key=lambda curve: curve in own):
        mine = curve in own
        colour = COLOURS[own.index(curve) % len(COLOURS)] if mine else FAINT
        lines.append(
            go.Scatter(
                x=curve["step"],
                y=curve["loss"],
                mode="lines",
                name=curve["node"],
                showlegend=mine,
                opacity=1 if mine else 0.5,
                line={"color": colour, "width": 1.8 if mine else 1},
                hovertemplate=f"{curve['node']}<br>step %{{x:.0f}}: %{{y:.3g}}<extra></extra>",
            )
        )
    seen = [loss for curve in curves for loss in curve["loss"]]
    lowest, highest = min(seen), max(seen)
    logarithmic = lowest > 0 and highest > 10 * lowest
    return _figure(
        lines,
        height=280,
        margin={"t": 40},
        yaxis={"type": "log", "dtick": "D2"} if logarithmic else {"rangemode": "tozero", "nticks": 6},
        xaxis={"nticks": 6},
        showlegend=True,
        legend=LEGEND | {"itemclick": False, "itemdoubleclick": False},
    )
