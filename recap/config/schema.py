"""The typed schema: names and types of every key. conf/ holds the values, and says what each one does."""

from __future__ import annotations

from dataclasses import dataclass, field

from omegaconf import MISSING

from recap.config.choices import (
    Action,
    Collector,
    Device,
    EnvKind,
    GateAction,
    ImageResample,
    Images,
    IndicatorMode,
    LauncherKind,
    Normalization,
    Optimizer,
    Outcomes,
    PolicyKind,
    Precision,
    Prompt,
    ReadValue,
    Resample,
    Restart,
    Sharding,
    SourceKind,
    StageKind,
    Threshold,
    TrackingKind,
    TrackingMode,
    Trained,
)


# -------------------------------------------------------------------------------- sizes
@dataclass
class GemmaSize:
    width: int = MISSING
    depth: int = MISSING
    mlp_dim: int = MISSING
    num_heads: int = MISSING
    num_kv_heads: int = MISSING
    head_dim: int = MISSING


@dataclass
class SiglipSize:
    width: int = MISSING
    depth: int = MISSING
    mlp_dim: int = MISSING
    num_heads: int = MISSING
    patch_size: int = MISSING
    stem: int = 0


# -------------------------------------------------------------------------------- training
@dataclass
class TrainConfig:
    """One training: optimiser, length, checkpoints."""

    steps: int = MISSING
    batch_size: int = MISSING
    learning_rate: float = MISSING
    warmup_steps: int = MISSING
    decay_to: float = MISSING  # a fraction of learning_rate
    weight_decay: float = MISSING
    grad_clip: float = MISSING
    save_every: int = MISSING
    keep_checkpoints: int = MISSING
    log_every: int = MISSING
    demonstration_share: float = MISSING
    image_shift: int = MISSING
    optimizer: Optimizer = Optimizer.adamw
    restart: Restart = Restart.pretrained


@dataclass
class PolicyTrainConfig(TrainConfig):
    indicator: IndicatorMode = MISSING
    outcomes: Outcomes = MISSING
    awr_temperature: float | None = None


@dataclass
class PI0Config:
    """π0: VLM prefix, action expert, flow matching. Names as in lerobot's PI0Config where it has one."""

    vision: SiglipSize = field(default_factory=SiglipSize)
    vlm: GemmaSize = field(default_factory=GemmaSize)
    expert: GemmaSize = field(default_factory=GemmaSize)
    image_size: int = MISSING
    tokenizer: str = MISSING
    tokenizer_max_length: int = MISSING
    max_state_dim: int = MISSING
    max_action_dim: int = MISSING
    chunk_size: int = MISSING
    n_action_steps: int = MISSING
    num_inference_steps: int = MISSING
    flow_samples: int = MISSING
    indicator_dropout: float = MISSING
    pretrained: str | None = None
    trains: Trained = Trained.all
    lora_rank: int = 16
    gradient_checkpointing: bool = False
    compile: bool = False
    sft: PolicyTrainConfig = field(default_factory=PolicyTrainConfig)
    finetune: PolicyTrainConfig = field(default_factory=PolicyTrainConfig)


@dataclass
class ValueConfig:
    """The distributional value function V(o, l)."""

    vision: SiglipSize = field(default_factory=SiglipSize)
    text: GemmaSize = field(default_factory=GemmaSize)
    image_size: int = MISSING
    tokenizer: str = MISSING
    tokenizer_max_length: int = MISSING
    bins: int = MISSING
    use_state: bool = MISSING
    members: int = MISSING
    read: ReadValue = MISSING
    held_out: float = MISSING
    interventions: bool = MISSING
    pretrained: str | None = None
    pretrained_vision: str | None = None
    pretrained_text: str | None = None
    freeze_vision: bool = False
    gradient_checkpointing: bool = False
    compile: bool = False
    sft: TrainConfig = field(default_factory=TrainConfig)
    finetune: TrainConfig = field(default_factory=TrainConfig)


# -------------------------------------------------------------------------------- the rest of the experiment
@dataclass
class EnvConfig:
    type: EnvKind = MISSING
    suite: str | None = None
    tasks: list[str] = MISSING
    image_size: int = MISSING
    recorded_images: Images = MISSING
    fps: int = MISSING
    max_steps: int = MISSING


@dataclass
class DemonstratorConfig:
    """The scripted demonstrator of mixed quality (probabilities per movement or per grasp)."""

    episodes: int = MISSING
    max_steps: int = MISSING
    slow: float = MISSING
    hesitate: float = MISSING
    miss: float = MISSING
    noise: float = MISSING


@dataclass
class SourceConfig:
    """One LeRobot v3 data set of the mixture: a folder `root`, or `repo_id` on the hub."""

    repo_id: str | None = None
    root: str | None = None
    revision: str | None = None
    episodes: list[int] | None = None
    cameras: list[str] | None = None
    weight: float = 1.0
    kind: SourceKind = SourceKind.demonstration
    all_succeed: bool = False
    interventions: str | None = None  # the column that is true where a human corrected the policy
    fps: int | None = None


@dataclass
class DataConfig:
    """Recorded data: named data sets, and what a scripted demonstrator records; plus the run's rollouts."""

    sources: dict[str, SourceConfig] = field(default_factory=dict)
    action_freq: int | None = None
    image_resample_strategy: ImageResample = ImageResample.nearest
    vector_resample_strategy: Resample = Resample.nearest
    demonstrator: DemonstratorConfig | None = None
    rollouts: bool = False


@dataclass
class PretrainingLabels:
    """Labels of the demonstrations alone, where pi0.sft reads them (the paper's pre-training)."""

    look_ahead: int | None = MISSING
    positive_fraction: float = MISSING


@dataclass
class AdvantageConfig:
    look_ahead: int | None = MISSING  # None: the whole episode
    positive_fraction: float = MISSING
    positive_fraction_by_task: dict[str, float] = field(default_factory=dict)
    sft: PretrainingLabels = field(default_factory=PretrainingLabels)
    threshold: Threshold = MISSING
    normalization: Normalization = MISSING
    normalizer: float | None = None
    c_fail: float = MISSING
    force_positive: list[SourceKind] = MISSING


@dataclass
class GateConfig:
    """Which labels are good enough to train a policy on; limits are the worst that still pass."""

    action: GateAction = MISSING
    min_rank: float = MISSING
    min_auc: float = MISSING
    max_over_fit: float = MISSING
    min_spread: float = MISSING
    max_saturation: float = MISSING
    max_clipped: float = MISSING
    max_misplaced: float = MISSING
    share_tolerance: float = MISSING
    min_success_lead: float = MISSING
    min_episodes: int = MISSING


@dataclass
class RolloutConfig:
    episodes: int = MISSING
    tasks: list[str] | None = None  # None: all of the environment
    policy: Collector = MISSING
    prompt: Prompt = MISSING
    beta: float = MISSING
    videos: int = MISSING


@dataclass
class EvalConfig:
    episodes: int = MISSING
    prompt: Prompt = MISSING
    beta: float = MISSING
    videos: int = MISSING


@dataclass
class ArmConfig:
    """A control arm: where it differs from RECAP, beside which it is trained for as many steps. None: as in the run."""

    trains: bool = True  # False: the policy of the last iteration, prompted otherwise
    rollouts: bool = True  # False: demonstrations alone
    as_sft: bool = False  # prompts as SFT did
    conditioned_pretraining: bool = False  # SFT reads labels of the demonstrations, as in the paper
    indicator: IndicatorMode | None = None
    outcomes: Outcomes | None = None
    awr_temperature: float | None = None
    indicator_dropout: float | None = None
    demonstration_share: float | None = None
    look_ahead: int | None = None
    positive_fraction: float | None = None
    force_positive: list[SourceKind] | None = None
    prompt: Prompt | None = None
    beta: float | None = None


@dataclass
class WorkersConfig:
    """Simulation processes, and the environments that all of them hold together (= rows of one policy call)."""

    processes: int = MISSING
    slots: int = MISSING


@dataclass
class LauncherConfig:
    """Where stages run, and what the cluster wants to hear. Nothing here shows in a result."""

    kind: LauncherKind = MISSING
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    options: list[str] = MISSING
    setup: list[str] = MISSING
    python: str | None = None
    notice: int = MISSING  # seconds
    requeues: int = MISSING


@dataclass
class Resources:
    """What the job of a stage asks for: nodes, on each of them processes and GPUs; `shards` such jobs side by side."""

    nodes: int = 1
    processes: int | None = None  # on each node; None: one for each GPU
    gpus: int = 0  # on each node
    cpus: int = MISSING  # of each process
    mem: float = MISSING  # GB on each node
    minutes: int = MISSING
    shards: int = 1

    @property
    def tasks(self) -> int:
        """Processes on each node."""
        return self.processes or max(1, self.gpus)


@dataclass
class ResourcesConfig:
    demonstrations: Resources = field(default_factory=Resources)
    pi0: Resources = field(default_factory=Resources)
    value: Resources = field(default_factory=Resources)
    rollout: Resources = field(default_factory=Resources)
    values: Resources = field(default_factory=Resources)
    advantage: Resources = field(default_factory=Resources)
    eval: Resources = field(default_factory=Resources)


@dataclass
class TrackingConfig:
    """Where the record goes beside metrics.jsonl. Nothing here shows in a result."""

    kind: TrackingKind = MISSING
    mode: TrackingMode = MISSING
    project: str | None = None  # None: WANDB_PROJECT, or else recap
    entity: str | None = None  # None: WANDB_ENTITY, or else the account's default
    tags: list[str] = MISSING
    videos: int = MISSING  # of each stage
    tensorboard: bool = MISSING


# -------------------------------------------------------------------------------- the four entrypoints
@dataclass
class Config:
    """What all four entrypoints share; one run directory `output` = one Config."""

    name: str = MISSING
    output: str = MISSING
    seed: int = MISSING
    size: str = MISSING
    device: Device = MISSING
    precision: Precision = MISSING
    sharding: Sharding = Sharding.none
    pi0: PI0Config = field(default_factory=PI0Config)
    value: ValueConfig = field(default_factory=ValueConfig)
    env: EnvConfig = field(default_factory=EnvConfig)
    data: DataConfig = field(default_factory=DataConfig)
    advantage: AdvantageConfig = field(default_factory=AdvantageConfig)
    gate: GateConfig = field(default_factory=GateConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    workers: WorkersConfig = field(default_factory=WorkersConfig)
    launcher: LauncherConfig = field(default_factory=LauncherConfig)
    resources: ResourcesConfig = field(default_factory=ResourcesConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    arms: dict[str, ArmConfig] = field(default_factory=dict)
    controls: list[str] = field(default_factory=list)  # names of arms
    action: Action = Action.run
    follow: bool = True


@dataclass
class TrainJob(Config):
    """train.py: one training of one policy."""

    policy: PolicyKind = MISSING
    stage: StageKind = MISSING
    iteration: int = 1


@dataclass
class EvalJob(Config):
    """eval.py: evaluate a checkpoint on held-out initial states, or collect rollouts with it (record=true)."""

    policy: PolicyKind = PolicyKind.pi0
    checkpoint: str = MISSING
    episodes: int | None = None
    record: bool = False
    result: str | None = None  # the stage directory to write; by default where loop.py has it


@dataclass
class AdvantageJob(Config):
    """advantage.py: values, advantages and ε of all data up to an iteration."""

    checkpoint: str | None = None
    iteration: int = 1
    result: str | None = None  # the stage directory to write; by default where loop.py has it


@dataclass
class LoopJob(Config):
    """loop.py: everything."""

    iterations: int = MISSING
    iteration: int | None = None  # set by the multirun, one job an iteration
