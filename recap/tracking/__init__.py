"""Where numbers go: metrics.jsonl, always; and W&B or trackio beside it, with a copy of what the run directory holds.

metrics.py  metrics.jsonl (and TensorBoard): the durable record
mode.py     whether there is W&B
wandb.py    the thread that sends, so that no run waits for it
run.py      one run of W&B or trackio, and the rows that it lacks
media.py    what is sent of each kind of stage
"""

from recap.tracking.metrics import Tracker
from recap.tracking.run import Shown
from recap.tracking.wandb import close, preempting, publish, tracked

__all__ = ["Shown", "Tracker", "close", "preempting", "publish", "tracked"]
