from recap.policies.config import PolicyConfig
from recap.utils.typed import Count, part


@part
class ToyConfig(PolicyConfig):
    checkpoints = ("toy",)

    hidden: Count = 64
    chunk_size: Count = 5
    n_action_steps: Count = 5
