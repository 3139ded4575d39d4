"""Everything: SFT and value function, then collect, label, fine-tune, evaluate. A Hydra multirun over iterations.

    python loop.py experiment=demo +iterations=2
    python loop.py +iterations=3                                   the guide's experiment: π0 on LIBERO
    python loop.py experiment=demo +iterations=2 seed=0,1,2 -m     three runs: outputs/demo/seed=0, seed=1, …
    python loop.py experiment=demo iterations=1 advantage.positive_fraction=0.2,0.3 -m
    python loop.py experiment=demo iterations=1 'controls=[labels_on_demonstrations]'

Started again, it does what is missing and redoes nothing. Every key: python loop.py --cfg job
"""

from recap.cli import entrypoint
from recap.config import LoopJob


@entrypoint(LoopJob)
def main(cfg: LoopJob) -> None:
    """One iteration (`cfg.iteration`) of one run; the first also does SFT and the value function, the last reports."""
    from recap.pipeline import run_loop  # here, because torch takes seconds that a mistyped key should not cost

    run_loop(cfg)


if __name__ == "__main__":
    main()
