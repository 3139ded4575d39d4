"""gate.png: what the value function says of episodes it never trained on, and the verdict beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from recap.method.gate import MINORITY, Check, Labelled
from recap.method.ranking import Episodes
from recap.method.returns import Floats
from recap.utils.files import appearing

if TYPE_CHECKING:  # matplotlib takes a second that only the gate should pay
    from matplotlib.axes import Axes

# The report's colours.
INK, SOFT, FAINT, LINE, CARD, PAGE = "#1d2228", "#57606b", "#7d858f", "#e6e3dc", "#ffffff", "#faf9f6"
COLOURS = {"success": "#2b8464", "failure": "#c2543a", "demonstration": "#666bb3"}
POLICY, GOOD, BAD, UNKNOWN = "#1f6f8b", "#2b8464", "#c2543a", "#b0741a"
PROGRESS = np.linspace(0, 1, 41)  # of an episode
STYLE: Any = {  # matplotlib names every key it takes in a type
    "font.family": ["DejaVu Sans"],
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.facecolor": CARD,
    "axes.labelcolor": SOFT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlepad": 10,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.7,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": SOFT,
    "ytick.labelcolor": SOFT,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
}


def draw(labels: Labelled, checks: Sequence[Check], path: Path) -> None:
    """Writes the figure, by rename: V over progress, its histogram, its calibration, and the checks and numbers."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    unseen = int(labels.unseen.sum())
    few = unseen < 2 * MINORITY
    shown = labels.episodes if few else labels.episodes.only(labels.unseen)
    whose = f"all {len(shown)} episodes (too few were held out)" if few else f"{unseen} held-out episodes"
    with rc_context(STYLE):
        layout = ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12, wspace=0.03, hspace=0.05)
        figure = Figure(figsize=(12.4, 7.8), facecolor=PAGE, layout=layout)
        grid = figure.add_gridspec(2, 3, width_ratios=[1, 1, 1.02])
        _progress(figure.add_subplot(grid[0, 0:2]), labels, shown)
        _histogram(figure.add_subplot(grid[1, 0]), labels, shown)
        _calibration(figure.add_subplot(grid[1, 1]), labels)
        _checks(figure.add_subplot(grid[:, 2]), checks)
        failed = sum(not check.passed for check in checks)
        verdict = f"{failed} of {len(checks)} checks failed" if failed else "passed"
        figure.suptitle(
            f"Value gate: {verdict}  ·  {whose}",
            x=0.012,
            ha="left",
            fontsize=14,
            fontweight="bold",
            color=BAD if failed else INK,
        )
        with appearing(path) as temporary:
            figure.savefig(temporary, format="png", dpi=130, metadata={"Software": None})


def _groups(episodes: Episodes) -> dict[str, NDArray[np.bool_]]:
    """Masks over episodes, bool [e]: demonstrations, and the policy's successes and failures; those that occur."""
    shown = episodes.source == "demonstration"
    masks = {
        "demonstration": shown & episodes.success,
        "success": ~shown & episodes.success,
        "failure": ~episodes.success,
    }
    return {name: mask for name, mask in masks.items() if mask.any()}


def _name(name: str, count: int) -> str:
    return f"{count} {name}{'es' if name == 'success' and count != 1 else '' if count == 1 else 's'}"


def _progress(axes: Axes, labels: Labelled, episodes: Episodes) -> None:
    for name, mask in _groups(episodes).items():
        rows = episodes.only(mask).rows
        value, returns = (np.stack([_resampled(array[r]) for r in rows]) for array in (labels.value, labels.returns))
        low, middle, high = np.quantile(value, (0.25, 0.5, 0.75), axis=0)
        axes.fill_between(100 * PROGRESS, low, high, color=COLOURS[name], alpha=0.14, lw=0)
        axes.plot(100 * PROGRESS, middle, color=COLOURS[name], lw=2.2, label=_name(name, len(rows)))
        axes.plot(100 * PROGRESS, np.median(returns, axis=0), color=COLOURS[name], lw=1.1, ls=(0, (3, 2.5)))
    axes.plot([], [], color=SOFT, lw=1.1, ls=(0, (3, 2.5)), label="their returns")
    axes.set(title="V over an episode: median and middle half", xlabel="progress of the episode, %", ylabel="value")
    axes.set(xlim=(0, 100), ylim=(-1.02, 0.02))
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=4, handlelength=1.6, columnspacing=1.6)
    axes.set_title(axes.get_title(loc="left"), loc="left", pad=26)


def _resampled(series: Floats) -> Floats:
    """At the points of PROGRESS."""
    out: Floats = np.interp(PROGRESS, np.linspace(0, 1, len(series)) if len(series) > 1 else [0.0], series)
    return out


def _histogram(axes: Axes, labels: Labelled, episodes: Episodes) -> None:
    edges = np.linspace(-1, 0, 41)
    for name, mask in _groups(episodes).items():
        rows = np.concatenate(episodes.only(mask).rows)
        share = np.histogram(labels.value[rows], edges)[0] / len(rows)
        axes.stairs(100 * share, edges, fill=True, color=COLOURS[name], alpha=0.22)
        axes.stairs(100 * share, edges, color=COLOURS[name], lw=1.6)
        means = episodes.value[mask]
        axes.plot(means, np.full(len(means), -0.035), "|", color=COLOURS[name], ms=8, mew=1.3, clip_on=False,
                  transform=axes.get_xaxis_transform(), zorder=5)  # fmt: skip
    axes.set(
        title="V of frames; ticks: means of episodes", xlabel="value", ylabel="frames of each kind, %", xlim=(-1, 0)
    )
    axes.tick_params(axis="x", pad=9)
    axes.set_ylim(bottom=0)


def _calibration(axes: Axes, labels: Labelled) -> None:
    axes.plot([-1, 0], [-1, 0], color=FAINT, lw=1, ls=(0, (3, 2.5)))
    for name, held, colour in (("trained on", False, FAINT), ("held out", True, POLICY)):
        rows = labels.held_out == held
        if rows.sum() < 20:
            continue
        value, returns = labels.value[rows], labels.returns[rows]
        order = np.array_split(np.argsort(value, kind="stable"), 12)
        x = np.array([value[part].mean() for part in order])
        low, high = np.array([np.quantile(returns[part], (0.25, 0.75)) for part in order]).T
        y = np.array([returns[part].mean() for part in order])
        axes.vlines(x, low, high, color=colour, lw=1.4, alpha=0.45)
        axes.plot(x, y, "o-", color=colour, ms=4.5, lw=1.2, label=f"{name}, {len(value)} frames")
    axes.set(title="Calibration: mean return by V", xlabel="value", ylabel="return")
    axes.set(xlim=(-1, 0), ylim=(-1.02, 0.02))
    axes.legend(loc="upper left", handlelength=1.2)


def _checks(axes: Axes, checks: Sequence[Check]) -> None:
    """The verdicts as a table; the worst first would tear apart what belongs together."""
    import textwrap

    axes.set_axis_off()
    axes.set(xlim=(0, 1), ylim=(0, 1))
    axes.set_title("Checks", loc="left")
    y, step = 0.99, 0.99 / len(checks)
    for check in checks:
        colour = UNKNOWN if check.unknown else GOOD if check.passed else BAD
        mark = "?" if check.unknown else "✓" if check.passed else "✗"
        number = "–" if check.value is None else f"{check.value:.2f}" if abs(check.value) < 10 else f"{check.value:.0f}"
        style: dict[str, Any] = {"va": "top", "transform": axes.transAxes}
        axes.text(0.0, y, mark, color=colour, fontsize=12, fontweight="bold", **style)
        axes.text(0.07, y - 0.002, check.name.replace("_", " "), fontweight="bold", fontsize=9.5, **style)
        axes.text(0.58, y - 0.002, number, color=colour, fontweight="bold", ha="right", fontsize=9.5, **style)
        axes.text(0.61, y - 0.003, check.limit, color=SOFT, fontsize=8, **style)
        text = textwrap.fill(check.text, 62, max_lines=3, placeholder=" …")
        axes.text(0.07, y - 0.030, text, color=SOFT, fontsize=7.6, linespacing=1.25, **style)
        y -= step
