"""Train one policy at one stage: π0 or the value function, by SFT on demonstrations or fine-tuned with rollouts.

    python train.py policy=pi0 data=libero stage=sft
    python train.py policy=value data=moka stage=sft
    python train.py policy=value data=libero+rollouts stage=finetune iteration=2
    python train.py experiment=demo policy=pi0 stage=sft policy.sft.steps=500 name=longer seed=0,1,2 -m

Started again, it continues from the last checkpoint. Every key: python train.py --cfg job
"""

from recap.cli.entrypoint import entrypoint
from recap.config import TrainJob
from recap.jobs.chain import Chain


@entrypoint(TrainJob)
def main(cfg: TrainJob) -> Chain | None:
    from recap.pipeline.runner import run_train  # here, because torch takes seconds that a mistyped key should not cost

    return run_train(cfg)


if __name__ == "__main__":
    main()
