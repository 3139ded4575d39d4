"""Run a checkpoint in the environment: on held-out initial states, or with record=true to collect experience.

    python eval.py experiment=demo checkpoint=outputs/demo/sft/checkpoints/last episodes=50 result=outputs/demo/fifty
    python eval.py policy=pi0 env=libero checkpoint=outputs/libero/sft/checkpoints/last episodes=300 record=true
    python eval.py experiment=demo checkpoint=outputs/demo/iter_01/policy eval.prompt=negative result=outputs/negative

Every key: python eval.py --cfg job
"""

from recap.cli.entrypoint import entrypoint
from recap.config import EvalJob
from recap.jobs.chain import Chain


@entrypoint(EvalJob)
def main(cfg: EvalJob) -> Chain | None:
    from recap.pipeline.runner import run_eval  # here, because torch takes seconds that a mistyped key should not cost

    return run_eval(cfg)


if __name__ == "__main__":
    main()
