"""Everything: SFT and value function, then collect, label, fine-tune, evaluate. A Hydra multirun over iterations.

    python loop.py experiment=demo +iterations=2
    python loop.py +iterations=3                                   the guide's experiment: π0 on LIBERO
    python loop.py experiment=demo +iterations=2 seed=0,1,2 -m     three runs: outputs/demo/seed=0, seed=1, …
    python loop.py experiment=demo iterations=1 advantage.positive_fraction=0.2,0.3 -m
    python loop.py experiment=demo iterations=1 'ablation=[filtered_bc,awr]'
    python loop.py +iterations=3 follow=false                      on a cluster: submit and leave
    python loop.py +iterations=3 action=status                     or action=cancel

Started again, it does what is missing and redoes nothing. Every key: python loop.py --cfg job
"""

from recap.cli.entrypoint import entrypoint
from recap.config import LoopJob
from recap.jobs.chain import Chain


@entrypoint(LoopJob)
def main(cfg: LoopJob) -> Chain | None:
    """One run; in this process one iteration of it, `cfg.iteration`, after the other."""
    from recap.pipeline.runner import run_loop  # here, because torch takes seconds that a mistyped key should not cost

    return run_loop(cfg)


if __name__ == "__main__":
    main()
