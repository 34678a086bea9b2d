"""One registry per kind of component, all children of mmengine's roots under the scope ``genflow``.

A component names its kind by subclassing the kind's contract (``base.py`` in the kind's folder) and is
registered with ``@BACKBONES.register_module()`` and the like. Other mmengine projects reach it as
``genflow.Name``. Built-in components are imported when a name is looked up or registered.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module

from mmengine import registry as mm

from genflow.errors import opencv_missing


class _Root(mm.Registry):
    """GenFlow's child of a root of mmengine, whose built-in components are in ``modules``."""

    _imported: bool

    def __init__(self, name: str, parent: mm.Registry, *modules: str):
        super().__init__(name, parent=parent, scope="genflow", locations=[f"genflow.{module}" for module in modules])

    def import_from_location(self) -> None:
        # mmengine's own logs what it does, for which it starts a logger that counts GPUs.
        if not self._imported:
            for module in self._locations:
                import_module(module)
            self._imported = True


MODELS = _Root(
    "model",
    mm.MODELS,
    "backbones",
    "codecs",
    "distribution_distances",
    "feature_encoders",
    "field_estimators",
    "flow_teachers",
    "guidance",
    "inverse_heads",
    "losses",
    "methods",
    "time_samplers",
)
DATASETS_ROOT = _Root("dataset", mm.DATASETS, "data")
HOOKS_ROOT = _Root("hook", mm.HOOKS)
SCHEDULERS_ROOT = _Root("parameter scheduler", mm.PARAM_SCHEDULERS, "engine")
OPTIMIZERS_ROOT = _Root("optimizer", mm.OPTIMIZERS, "engine")
EVALUATORS_ROOT = _Root("evaluator", mm.EVALUATOR, "evaluation")
# These two alone, since they import OpenCV: mmcv, and mmengine's visualizer.
TRANSFORMS_ROOT = _Root("transform", mm.TRANSFORMS, "data.transforms")
VISBACKENDS_ROOT = _Root("visualization backend", mm.VISBACKENDS, "engine.visualizer")


class KindRegistry(mm.Registry):
    """The components of one kind.

    mmengine allows one child per scope and root, GenFlow has many kinds per root, so a kind hangs under
    GenFlow's child of the root and enters each component there too. A name is unique within a root.

    Args:
        name: the kind in words, as messages print it, e.g. ``"flow teacher"``.
        parent: GenFlow's child of the mmengine root.
        supplied: leading constructor arguments that the engine passes, not the recipe.
        external: mmengine root whose own entries may be named as well (optimizers, schedulers, mmcv's transforms).
        unusable: those of them that need what GenFlow does not have.
    """

    def __init__(
        self,
        name: str,
        parent: mm.Registry,
        supplied: tuple[str, ...] = (),
        external: mm.Registry | None = None,
        unusable: tuple[str, ...] = (),
    ):
        super().__init__(name, scope="genflow")
        self.parent = parent
        self.supplied = supplied
        self.external = external
        self.unusable = unusable

    def import_from_location(self) -> None:
        """Import the modules of built-in components.

        Raises:
            UserError: they need what is not installed.
        """
        try:
            self.parent.import_from_location()
        except ImportError as error:
            if self.parent not in (TRANSFORMS_ROOT, VISBACKENDS_ROOT):
                raise
            package = "mmcv" if self.parent is TRANSFORMS_ROOT else "mmengine's visualizer"
            raise opencv_missing(f"{package}, which has {self.name}s", error) from error

    @property
    def module_dict(self) -> dict[str, type]:
        """Names and classes; errors as :meth:`import_from_location`."""
        self.import_from_location()
        return super().module_dict

    def _register_module(self, module: type, module_name: str | list[str] | None = None, force: bool = False) -> None:
        if not module.__module__.startswith("genflow."):
            self.import_from_location()  # or a name that ours need would seem free
        self.parent._register_module(module=module, module_name=module_name, force=force)
        super()._register_module(module=module, module_name=module_name, force=force)

    @contextmanager
    def switch_scope_and_registry(self, scope: str | None) -> Iterator[mm.Registry]:
        """Build from the kind itself; mmengine would look in its default scope, which every run sets."""
        del scope
        yield self

    def components(self) -> dict[str, type]:
        """Every name that a recipe may give for this kind, with its class; errors as :meth:`import_from_location`."""
        own = self.module_dict  # first: its modules import the external ones
        external = self.external.module_dict if self.external else {}
        usable = {name: cls for name, cls in external.items() if name not in self.unusable}
        return {**usable, **own}


BACKBONES = KindRegistry("backbone", MODELS)
FEATURE_ENCODERS = KindRegistry("feature encoder", MODELS)
FIELD_ESTIMATORS = KindRegistry("field estimator", MODELS)
FLOW_TEACHERS = KindRegistry("flow teacher", MODELS)
INVERSE_HEADS = KindRegistry("inverse head", MODELS)
TIME_SAMPLERS = KindRegistry("time sampler", MODELS)
GUIDANCE = KindRegistry("guidance", MODELS)
LOSSES = KindRegistry("loss", MODELS)
CODECS = KindRegistry("codec", MODELS)
DISTRIBUTION_DISTANCES = KindRegistry("distribution distance", MODELS)
METHODS = KindRegistry("method", MODELS)
DATASETS = KindRegistry("dataset", DATASETS_ROOT)
HOOKS = KindRegistry("hook", HOOKS_ROOT)
EVALUATORS = KindRegistry("evaluator", EVALUATORS_ROOT)
OPTIMIZERS = KindRegistry(
    "optimizer",
    OPTIMIZERS_ROOT,
    supplied=("params",),
    external=mm.OPTIMIZERS,
    # abstract; several passes per update; sparse gradients; weights divided among processes
    unusable=("Optimizer", "LBFGS", "SparseAdam", "ZeroRedundancyOptimizer"),
)
PARAM_SCHEDULERS = KindRegistry(
    "parameter scheduler",
    SCHEDULERS_ROOT,
    supplied=("optimizer",),
    external=mm.PARAM_SCHEDULERS,
    # a validation figure after every step
    unusable=tuple(f"ReduceOnPlateau{what}" for what in ("LR", "Momentum", "ParamScheduler")),
)
TRANSFORMS = KindRegistry(
    "transform",
    TRANSFORMS_ROOT,
    external=mm.TRANSFORMS,
    unusable=(
        # read files; the picture is read already, and there are no annotations
        "LoadImageFromFile",
        "LoadAnnotations",
        # make numbers of another type; the data set does
        "Normalize",
        "ToTensor",
        "ImageToTensor",
        # shrink without antialiasing, and hand on keywords for it that no signature names
        "RandomResize",
        "RandomChoiceResize",
        # make several pictures of one, or take their keys from several
        "MultiScaleFlipAug",
        "TestTimeAug",
        "TransformBroadcaster",
        "KeyMapper",
    ),
)
VISBACKENDS = KindRegistry("visualization backend", VISBACKENDS_ROOT, supplied=("save_dir",), external=mm.VISBACKENDS)

KINDS: dict[str, KindRegistry] = {
    kind.name: kind
    for kind in (
        BACKBONES,
        FEATURE_ENCODERS,
        FIELD_ESTIMATORS,
        FLOW_TEACHERS,
        INVERSE_HEADS,
        TIME_SAMPLERS,
        GUIDANCE,
        LOSSES,
        CODECS,
        DISTRIBUTION_DISTANCES,
        METHODS,
        DATASETS,
        HOOKS,
        EVALUATORS,
        OPTIMIZERS,
        PARAM_SCHEDULERS,
        TRANSFORMS,  # these two last, for names are looked up in this order
        VISBACKENDS,
    )
}
