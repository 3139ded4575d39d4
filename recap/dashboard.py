"""A saved view of a W&B project that shows a RECAP run from the top down. Needs `pip install wandb-workspaces`.

    python -m recap.dashboard                      # project recap of your default entity
    python -m recap.dashboard robots/recap         # of a team

Without it nothing is lost: W&B's own view has a panel for each key, and its section `loop` is what to open first.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from typing import Any

from recap.utils.console import spell
from recap.utils.errors import RecapError

NAME = "RECAP"


@dataclass(frozen=True)
class Panel:
    """keys: what it shows, `x/*` standing for all below x; over: its x-axis, None for bars or media."""

    title: str
    keys: tuple[str, ...]
    over: str | None = None


MEDIA = ("videos", "first_batch", "gate/figure")
ITERATION, STEP = "iteration", "Step"
# Histograms and value curves are not here: W&B makes their panels itself, in sections of their own.
LAYOUT: dict[str, tuple[Panel, ...]] = {
    "The loop: does it get better?": (
        Panel(
            "Success, with its 95 % interval", tuple(f"loop/success/{x}" for x in ("rate", "low", "high")), ITERATION
        ),
        Panel("Success by task", ("loop/success_by_task/*",), ITERATION),
        Panel("Successes per hour", ("loop/speed/successes_per_hour",), ITERATION),
        Panel("Share labelled positive, by source", ("loop/positive/*",), ITERATION),
        Panel("ε, by task", ("loop/epsilon/*",), ITERATION),
        Panel("Episodes trained on", ("loop/data/*",), ITERATION),
        Panel("Minutes, by stage", ("loop/minutes/*",), ITERATION),
    ),
    "Beside its ablations": (Panel("Success of every evaluation", ("success/rate",)),),
    "Value function": (Panel("Value gate", ("gate/figure",)),),
    "Rollouts and evaluations": (Panel("Videos", ("videos",)),),
    "Trainings": (
        Panel("Loss", ("train/loss",), STEP),
        Panel("Gradient norm", ("train/grad_norm",), STEP),
        Panel("Samples per second", ("train/samples_per_second",), STEP),
        Panel("First batch", ("first_batch",)),
    ),
}


def workspace(entity: str, project: str) -> Any:
    """The view, not saved yet. Raises RecapError where wandb-workspaces is not installed."""
    try:
        import wandb_workspaces.workspaces as ws
    except ImportError as error:
        raise RecapError(
            "the dashboard needs wandb-workspaces. Fix: pip install wandb-workspaces, or use W&B's own view"
        ) from error
    sections = [
        ws.Section(name=name, panels=[_panel(panel) for panel in panels], is_open=True)
        for name, panels in LAYOUT.items()
    ]
    settings = ws.WorkspaceSettings(group_by_prefix="first", max_runs=50)
    return ws.Workspace(
        entity=entity, project=project, name=NAME, sections=sections, settings=settings, auto_generate_panels=True
    )


def _panel(panel: Panel) -> Any:
    import wandb_workspaces.reports.v2 as wr

    if panel.over is not None:
        pattern = "|".join(key.replace("*", ".*") for key in panel.keys)
        if any(key.endswith("*") for key in panel.keys):
            return wr.LinePlot(title=panel.title, x=panel.over, metric_regex=pattern)
        return wr.LinePlot(title=panel.title, x=panel.over, y=list(panel.keys))
    if panel.keys[0] in MEDIA:
        return wr.MediaBrowser(title=panel.title, media_keys=list(panel.keys))
    return wr.BarPlot(title=panel.title, metrics=list(panel.keys))


def main() -> int:
    spell()
    parser = argparse.ArgumentParser(prog="python -m recap.dashboard", description="Saves a view of a W&B project.")
    parser.add_argument("project", nargs="?", default="recap", help="<project> or <entity>/<project>")
    entity, _, project = parser.parse_args().project.rpartition("/")
    try:
        made = workspace(entity or "?", project)
        if not entity:
            import wandb

            made.entity = wandb.Api().default_entity
        made.save()
    except Exception as error:  # noqa: BLE001  W&B's errors are of many kinds, and all of them fit in a line
        print(f"error: {str(error).strip() or type(error).__name__}", file=sys.stderr)
        return 1
    print(made.url)
    return 0


if __name__ == "__main__":
    sys.exit(main())
