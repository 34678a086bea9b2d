"""Registries of kinds, their places under mmengine's roots, and what an import costs."""

import os
import subprocess
import sys
from pathlib import Path

import mmengine
import pytest
import torch
from torch import nn

from genflow.backbones.base import Backbone
from genflow.codecs.base import Codec
from genflow.config.sections import HookSlot, OptimizerSlot, SchedulerSlot, VisBackendSlot
from genflow.data.base import Dataset
from genflow.data.pipeline import TransformSlot
from genflow.distribution_distances.base import DistributionDistance
from genflow.evaluation.base import Evaluator
from genflow.feature_encoders.base import FeatureEncoder
from genflow.field_estimators.base import FieldEstimator
from genflow.flow_teachers.base import FlowTeacher
from genflow.guidance.base import Guidance
from genflow.inverse_heads.base import InverseHead
from genflow.losses.base import Loss
from genflow.methods.base import Method
from genflow.registry import BACKBONES, KINDS, LOSSES, MODELS
from genflow.time_samplers.base import TimeSampler

CONTRACTS = [
    Backbone,
    Codec,
    Dataset,
    DistributionDistance,
    Evaluator,
    FeatureEncoder,
    FieldEstimator,
    FlowTeacher,
    Guidance,
    InverseHead,
    Loss,
    Method,
    TimeSampler,
]
SLOTS = [HookSlot, OptimizerSlot, SchedulerSlot, TransformSlot, VisBackendSlot]


def test_every_kind_is_reachable_by_its_contract():
    assert {contract.kind for contract in CONTRACTS + SLOTS} == set(KINDS)
    assert all(registry.name == name for name, registry in KINDS.items())


def test_every_component_fulfils_the_contract_of_its_kind():
    from mmcv.transforms import BaseTransform

    contracts = {contract.kind: contract for contract in CONTRACTS} | {"transform": BaseTransform}
    for kind, registry in KINDS.items():
        registry.import_from_location()
        for name, cls in registry.module_dict.items():
            assert name == cls.__name__
            if kind in contracts:
                assert issubclass(cls, contracts[kind]), f"{name} is registered as a {kind}"


def test_names_of_built_in_components():
    expected = {
        "backbone": "GroupedTransformer",
        "codec": "SDVAE",
        "dataset": "LatentCache",
        "evaluator": "DigitsEvaluator",
        "flow teacher": "TARFlow",
        "guidance": "TrainingTimeCFG",
        "inverse head": "HiddenAlignment",
        "loss": "AdaptiveWeighting",
        "method": "BiFlow",
        "optimizer": "AdamW",
        "parameter scheduler": "WarmupLR",
        "transform": "CenterCrop",
        "visualization backend": "TensorboardVisBackend",
    }
    for kind, name in expected.items():
        assert KINDS[kind].components()[name].__name__ == name


def test_other_mmengine_projects_reach_components_through_the_roots():
    roots = mmengine.registry
    assert roots.MODELS.get("genflow.TARFlow") is MODELS.get("TARFlow") is KINDS["flow teacher"].get("TARFlow")
    assert roots.DATASETS.get("genflow.Digits") is KINDS["dataset"].get("Digits")
    assert roots.PARAM_SCHEDULERS.get("genflow.WarmupLR") is KINDS["parameter scheduler"].get("WarmupLR")
    assert roots.EVALUATOR.get("genflow.DigitsEvaluator") is KINDS["evaluator"].get("DigitsEvaluator")
    assert roots.TRANSFORMS.get("genflow.CenterCrop").__module__ == "genflow.data.transforms"
    assert roots.TRANSFORMS.get("CenterCrop").__module__.startswith("mmcv.")
    for kind, registry in KINDS.items():
        root = registry.parent.parent
        assert root.parent is None and root.scope == "mmengine"
        for name, cls in registry.module_dict.items():
            assert root.get(f"genflow.{name}") is cls, f"{kind} {name}"
    built = roots.MODELS.build({"type": "genflow.SquaredError", "reduction": "mean"})
    assert type(built) is LOSSES.get("SquaredError") and built.reduction == "mean"


def test_kinds_build_whatever_mmengines_default_scope_is():
    with mmengine.registry.DefaultScope.overwrite_default_scope("mmengine"):  # as after a run
        assert LOSSES.build({"type": "SquaredError", "reduction": "mean"}).reduction == "mean"
        parameters = [nn.Parameter(torch.zeros(1))]
        assert type(KINDS["optimizer"].build({"type": "SGD", "params": parameters})) is torch.optim.SGD
        with pytest.raises(KeyError, match="NoSuchLoss is not in the genflow::loss registry"):
            LOSSES.build({"type": "NoSuchLoss"})


def test_transforms_are_ours_and_those_of_mmcv_that_take_one_picture():
    components = KINDS["transform"].components()
    own = {name for name, cls in components.items() if cls.__module__ == "genflow.data.transforms"}
    assert own == {"CenterCrop", "RandomBox", "Flip", "Resize", "ToGrey"}
    wrappers, random = {"Compose", "RandomApply", "RandomChoice"}, {"RandomFlip", "RandomGrayscale"}
    assert components.keys() - own == {*wrappers, *random, "Pad"}


def test_where_opencv_cannot_be_imported_transforms_alone_are_missed(tmp_path):
    (tmp_path / "cv2.py").write_text("raise ImportError('libGL.so.1: cannot open shared object file')")
    code = """
import genflow
from genflow.config.slots import find_component
from genflow.registry import KINDS
print(find_component("Digits", list(KINDS.values()), "p").__name__)
try:
    KINDS["transform"].components()
except genflow.UserError as error:
    print(error)
"""
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    first, second = done.stdout.splitlines()
    assert first == "Digits" and "libGL.so.1" in second and second.endswith("apt-get install libgl1 libglib2.0-0")


def test_a_name_is_unique_among_all_models():
    before = {name: dict(registry.module_dict) for name, registry in KINDS.items()}
    with pytest.raises(KeyError, match="SquaredError is already registered"):
        LOSSES.register_module()(type("SquaredError", (Loss,), {}))
    with pytest.raises(KeyError, match="TARFlow is already registered"):
        BACKBONES.register_module()(type("TARFlow", (Backbone,), {}))
    assert {name: dict(registry.module_dict) for name, registry in KINDS.items()} == before


def test_registering_enters_the_kind_and_the_root():
    @LOSSES.register_module()
    class OnlyForThisTest(nn.Module):
        pass

    try:
        assert LOSSES.get("OnlyForThisTest") is MODELS.get("OnlyForThisTest") is OnlyForThisTest
        assert "OnlyForThisTest" not in BACKBONES.module_dict
    finally:
        del LOSSES._module_dict["OnlyForThisTest"], MODELS._module_dict["OnlyForThisTest"]


def test_importing_genflow_is_light():
    heavy = ["timm", "diffusers", "transformers", "fvcore", "cv2", "sklearn", "scipy", "matplotlib", "torchvision"]
    code = f"import sys, genflow; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_names_and_components_load_when_they_are_used():
    code = """
import runpy, sys
import genflow
assert genflow.UserError and "torch" not in sys.modules
sys.argv = [sys.argv[1], "--help"]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit:
    pass
assert not {"torch", "mmengine"} & sys.modules.keys()
assert not hasattr(genflow, "nothing") and genflow.backbones.DiT and genflow.ComponentGraph
"""
    tools = Path(__file__).parents[1] / "tools"
    subprocess.run([sys.executable, "-c", code, tools / "train.py"], check=True, capture_output=True)
    code = "from mmengine.registry import MODELS; assert MODELS.get('genflow.DiT') is not None"
    subprocess.run([sys.executable, "-c", code], check=True)
