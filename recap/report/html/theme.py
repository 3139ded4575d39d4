"""How all charts of the report look: quiet axes, the page's own font and colours; page.js resolves `var(--name)`."""

from __future__ import annotations

from typing import Any

LEFT, RIGHT = 46, 10  # px beside the axes, the same in all charts
HEIGHT = 300  # px of the charts that stand beside each other
INK, SOFT, FAINT, LINE, CARD = (f"var(--{name})" for name in ("ink", "soft", "faint", "line", "card"))
POLICY, ABLATION = "var(--policy)", "var(--ablation)"
COLOURS = [POLICY, ABLATION, *(f"var(--{name})" for name in ("success", "demonstration", "failure", "correction"))]
FONT = 'ui-sans-serif, system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif'

_AXIS: dict[str, Any] = {
    "fixedrange": True,
    "zeroline": False,
    "showline": False,
    "ticks": "",
    "gridcolor": LINE,
    "tickfont": {"color": FAINT},
    "automargin": False,
}
THEME: dict[str, Any] = {
    "layout": {
        "font": {"family": FONT, "size": 12, "color": SOFT},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "margin": {"l": LEFT, "r": RIGHT, "t": 12, "b": 30},
        "colorway": COLOURS,
        "xaxis": _AXIS | {"showgrid": False},
        "yaxis": _AXIS,
        "hoverlabel": {"bgcolor": CARD, "bordercolor": LINE, "font": {"color": INK, "size": 12}, "align": "left"},
        "showlegend": False,
        "dragmode": False,
        "hovermode": "closest",
        "bargap": 0,
        "annotationdefaults": {"font": {"size": 12}, "showarrow": False},
    }
}
