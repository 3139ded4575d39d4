"""Ask the value function about every frame, and turn its answers into advantages, thresholds and indicators.

    python advantage.py experiment=demo data=moka+rollouts
    python advantage.py data=libero+rollouts checkpoint=outputs/libero/iter_01/value/checkpoints/last
    python advantage.py data=libero+rollouts advantage.positive_fraction=0.4 result=outputs/libero/more

Every key: python advantage.py --cfg job
"""

from recap.cli.entrypoint import entrypoint
from recap.config import AdvantageJob
from recap.jobs.chain import Chain


@entrypoint(AdvantageJob)
def main(cfg: AdvantageJob) -> Chain | None:
    from recap.pipeline.runner import (
        run_advantage,  # here, because torch takes seconds that a mistyped key should not cost
    )

    return run_advantage(cfg)


if __name__ == "__main__":
    main()
