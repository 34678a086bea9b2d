"""The sections of a recipe: every key, its type and its default."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from genflow.data.base import Dataset
from genflow.evaluation.base import Evaluator
from genflow.methods.base import Method
from genflow.ranges import Above0, LocalPath, NotNegative, PlainName, Positive, Range, Share, Size


class OptimizerSlot:
    """A torch or GenFlow optimizer, by class name; the engine supplies ``params``."""

    kind = "optimizer"


class SchedulerSlot:
    """A GenFlow or mmengine parameter scheduler; the engine supplies ``optimizer``."""

    kind = "parameter scheduler"


class HookSlot:
    """A GenFlow or custom mmengine hook."""

    kind = "hook"


class VisBackendSlot:
    """One of mmengine's visualization backends, or a custom one; the engine supplies ``save_dir``."""

    kind = "visualization backend"


@dataclass
class LoaderSection:
    """Training data.

    Args:
        dataset: what to train on.
        batch_size: samples per update, over all processes and micro-batches.
        num_workers: loader processes per training process.
    """

    dataset: Dataset
    batch_size: Positive
    num_workers: NotNegative = 0


@dataclass
class ShardingSection:
    """Weights, gradients, moments and averages shared out over processes (PyTorch's FSDP2); the result is the same.

    Args:
        over: processes that hold a copy together, best those of a node; None for all.
        frozen: whether the layers of frozen networks are shared out as well.
    """

    over: Positive | None = None
    frozen: bool = False


@dataclass
class TrainSection:
    """How long to train.

    Args:
        max_iters: optimizer updates.
        micro_batches: parts that each process splits its batch into, to save memory; the result is the same.
        checkpointing: keep no activations inside the layers that networks list, but compute them again in the
            backward pass; likewise the same result.
        compile: compile these layers with torch.compile; results differ by rounding. Sampling has an option of its own.
        sharding: how several processes share out what they train; None for a copy in each.
        stall_seconds: an update that takes longer is said, with the process that the others wait for.
    """

    max_iters: Positive
    micro_batches: Positive = 1
    checkpointing: bool = False
    compile: bool = False
    sharding: ShardingSection | None = None
    stall_seconds: Above0 = 600.0


@dataclass
class ParameterRule:
    """Factors for the parameters whose names contain a key.

    Args:
        lr_mult, decay_mult: of the optimizer's rate and weight decay.
    """

    lr_mult: Size = 1.0
    decay_mult: Size = 1.0


@dataclass
class ParamwiseSection:
    """Rates and weight decays by parameter; what mmengine's ``paramwise_cfg`` means by the same names.

    Args:
        custom_keys: rules by a part of the parameter's name; the longest that fits is taken, before all others.
        bias_lr_mult, bias_decay_mult: of biases, but for those of norms.
        norm_decay_mult: of gains and biases of layer, group, batch and instance norms.
        flat_decay_mult: of one-dimensional parameters, those of RMS norms among them.
        dwconv_decay_mult: of depth-wise convolutions.
    """

    custom_keys: dict[str, ParameterRule] = field(default_factory=dict)
    bias_lr_mult: Size | None = None
    bias_decay_mult: Size | None = None
    norm_decay_mult: Size | None = None
    flat_decay_mult: Size | None = None
    dwconv_decay_mult: Size | None = None


@dataclass
class OptimSection:
    """How to update.

    Args:
        optimizer: the optimizer.
        precision: ``bfloat16`` runs the networks under autocast, on any device.
        clip_grad_norm: largest global gradient norm; None never clips.
        paramwise_cfg: rates and weight decays by parameter; None for the same everywhere.
    """

    optimizer: OptimizerSlot
    precision: Literal["float32", "bfloat16"] = "float32"
    clip_grad_norm: Above0 | None = None
    paramwise_cfg: ParamwiseSection | None = None


@dataclass
class AverageSection:
    """An exponential moving average of the weights; give ``decay`` or ``half_life``.

    Args:
        decay: constant decay per update.
        half_life: images after which a weight's share has halved.
        ramp_up: share of the images seen so far that bounds the half-life, so that early averages forget
            the initial weights; None for no bound.
    """

    decay: Share | None = None
    half_life: Above0 | None = None
    ramp_up: Above0 | None = 0.05

    def __post_init__(self) -> None:
        if (self.decay is None) == (self.half_life is None):
            raise ValueError("an average needs either decay or half_life")


@dataclass
class LoggerSection:
    """The console log.

    Args:
        interval: updates between two lines.
    """

    interval: Positive = 50


@dataclass
class CheckpointSection:
    """Training checkpoints.

    Args:
        interval: updates between two checkpoints.
        max_keep_ckpts: newest checkpoints to keep.
    """

    interval: Positive = 500
    max_keep_ckpts: Positive = 2


@dataclass
class SamplesSection:
    """Sample grids while training.

    Args:
        interval: updates between two grids; 0 draws none but the last.
        per_class: columns of the grid.
        classes: rows of the grid, the first so many classes.
        guidance: scale; None takes the generator's default.
    """

    interval: NotNegative = 0
    per_class: Annotated[int, Range(low=1, high=10_000)] = 8
    classes: Annotated[int, Range(low=1, high=10_000)] = 10
    guidance: float | None = None


@dataclass
class HooksSection:
    """The hooks every run has."""

    logger: LoggerSection = field(default_factory=LoggerSection)
    checkpoint: CheckpointSection = field(default_factory=CheckpointSection)
    samples: SamplesSection = field(default_factory=SamplesSection)


@dataclass
class VisualizerSection:
    """Where scalars, sample grids and figures go beside the run folder's own files (docs/logs.md).

    Args:
        vis_backends: TensorBoard, Weights & Biases and others, each once.
        interval: updates between two points of the scalars.
    """

    vis_backends: list[VisBackendSlot] = field(default_factory=list)
    interval: Positive = 1


@dataclass
class PrerequisiteSection:
    """A recipe that another one needs.

    Args:
        recipe: its file, or the resolved recipe.
        run: its run folder; None takes the one called ``name`` beside the run that needs it.
        name: of its run folder; that of the file.
    """

    recipe: LocalPath | dict[str, object]
    run: LocalPath | None = None
    name: PlainName | None = None


@dataclass
class RecipeSections:
    """A whole recipe.

    Args:
        model: the method and its components.
        components: shared components, referred to as ``$name``.
        prerequisites: recipes whose artifact this one needs, referred to as ``$name``.
        custom_imports: modules that register components of the user's own.
        train_dataloader, train_cfg, optim_wrapper, param_scheduler: data and updates.
        ema, default_hooks, custom_hooks: what happens around updates.
        visualizer: where logs go besides.
        evaluation: what ``tools/evaluate.py`` measures.
        init_from: a run folder, or a file of weights, whose weights training starts from where names and shapes fit.
        seed: seed of initial weights, data order and every training draw.
        published: numbers from the paper, printed beside ours.
    """

    model: Method
    components: dict[PlainName, object] = field(default_factory=dict)
    prerequisites: dict[PlainName, LocalPath | PrerequisiteSection] = field(default_factory=dict)
    custom_imports: list[str] = field(default_factory=list)
    train_dataloader: LoaderSection | None = None
    train_cfg: TrainSection | None = None
    optim_wrapper: OptimSection | None = None
    param_scheduler: list[SchedulerSlot] = field(default_factory=list)
    ema: dict[PlainName, AverageSection] = field(default_factory=dict)
    default_hooks: HooksSection = field(default_factory=HooksSection)
    custom_hooks: list[HookSlot] = field(default_factory=list)
    visualizer: VisualizerSection = field(default_factory=VisualizerSection)
    evaluation: Evaluator | None = None
    init_from: LocalPath | None = None
    seed: Annotated[int, Range(-(2**63), 2**63 - 1)] = 0
    published: dict[str, object] = field(default_factory=dict)
