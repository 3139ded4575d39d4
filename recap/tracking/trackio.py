"""A run of trackio with the interface of W&B's. It has no artifacts or plots, and its summary is its last row."""

from __future__ import annotations

import warnings
from contextlib import suppress
from typing import Any


class TrackioRun:
    """In trackio's own database of this user (TRACKIO_DIR), so that `trackio show` has all runs side by side."""

    starting_step = 0

    def __init__(self, project: str, id: str, name: str, group: str, config: dict[str, Any]) -> None:
        import trackio.run

        # trackio must not print among the run's own lines; `finish` finds what it warns of.
        vars(trackio.run)["print"] = lambda *_: None
        warnings.filterwarnings("ignore", module="trackio")
        with suppress(ValueError):  # of a project without runs
            for run in list(trackio.Api().runs(project)):
                if run.id == id:  # an earlier attempt
                    run.delete()
        # The name has the group, because in trackio's lists nothing else tells two experiments apart.
        self._run = trackio.run.Run(None, project, None, f"{group}/{name}", id, group, config)
        self._rows = self._step = 0

    def log(self, row: dict[str, Any], step: int, commit: bool = True) -> None:
        flat: dict[str, Any] = {}
        for key, value in row.items():
            flat |= {f"{key}/{i}": item for i, item in enumerate(value)} if isinstance(value, list) else {key: value}
        self._run.log(flat, step=step)
        self._rows, self._step = self._rows + 1, step

    @property
    def summary(self) -> TrackioRun:
        return self

    def update(self, numbers: dict[str, Any]) -> None:
        self.log(numbers, self._step)

    def mark_preempting(self) -> None:
        """trackio knows no such state."""

    def finish(self, exit_code: int) -> None:
        """Raises OSError where not all of it was written: trackio itself only warns."""
        from trackio.sqlite_storage import SQLiteStorage

        run = self._run
        run.finish()
        if exit_code == 0 and SQLiteStorage.get_log_count(run.project, run.name, run_id=run.id) < self._rows:
            raise OSError("its database could not be written")
