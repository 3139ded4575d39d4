"""Where numbers go: metrics.jsonl, always; and W&B beside it, which mirrors what the run directory holds.

record.py   metrics.jsonl (and TensorBoard): the durable record
mode.py     whether there is W&B
client.py   what the run says: this stage begins, this one is finished
mirror.py   the process beside the run in which wandb lives: it reads the record and sends what W&B lacks
session.py  one W&B run that is open, and the rows that it lacks
content.py  what is sent of each kind of stage
state.py    which W&B run a directory is
"""

from recap.tracking.client import close, preempting, publish, publish_run, tracked
from recap.tracking.record import Tracker

__all__ = ["Tracker", "close", "preempting", "publish", "publish_run", "tracked"]
