"""BiFlow where teacher and backbone have no classes: no tokens of class and guidance, and no guidance."""

import json
import sys
from pathlib import Path

import pytest
import started
import torch
from torch import nn

from genflow.backbones import GroupedMLP, GroupedTransformer
from genflow.codecs import Identity
from genflow.condition import Condition
from genflow.draws import Draws
from genflow.flow_teachers import TARFlow
from genflow.guidance import ClassifierFreeGuidance, TrainingTimeCFG
from genflow.inverse_heads import HiddenAlignment, HiddenDistillation, NaiveDistillation
from genflow.losses import SquaredError
from genflow.methods import BiFlow
from genflow.runs.folder import open_run

ROOT = Path(__file__).parents[2]
SIZE, CHANNELS, PATCH, BLOCKS = 4, 2, 2, 2
SHAPE = (CHANNELS, SIZE, SIZE)
TEACHER = "prerequisites.teacher.recipe"
OVERRIDES = [
    "train_cfg.max_iters=2",
    "train_dataloader.batch_size=8",
    "evaluation=null",
    "model.guidance=null",
    *(f"model.inverse.backbone.{option}" for option in ("num_classes=0", "width=16", "heads=2", "groups=2")),
    f"{TEACHER}.train_cfg.max_iters=1",
    f"{TEACHER}.evaluation=null",
    *(f"{TEACHER}.model.flow.{option}" for option in ("num_classes=0", "width=16", "head_width=8", "blocks=2")),
    f"{TEACHER}.model.flow.layers=1",
]


def make_backbone(states="hidden"):
    """A backbone of which nothing starts at zero."""
    torch.manual_seed(0)
    backbone = GroupedTransformer(SIZE, CHANNELS, PATCH, 16, 2, BLOCKS, 1, 1, num_classes=0, states=states)
    for parameter in backbone.parameters():
        nn.init.normal_(parameter, std=0.3)
    return backbone


def make_method(head=HiddenAlignment, **options):
    backbone = make_backbone("data" if head is HiddenDistillation else "hidden")
    inverse = head(backbone) if head is NaiveDistillation else head(backbone, SquaredError())
    teacher = TARFlow(SIZE, CHANNELS, PATCH, 16, BLOCKS, 1, num_classes=0, head_width=8)
    return BiFlow(teacher, inverse, Identity(SIZE, CHANNELS), SquaredError(), 0.3, **options)


def test_the_backbone_has_no_part_of_class_or_guidance_and_looks_at_neither():
    backbone = make_backbone()
    assert backbone.uses == ()
    assert not [name for name, _ in backbone.named_parameters() if "class" in name or "guidance" in name]
    x = torch.randn(2, *SHAPE)
    alone = backbone(x, Condition())["main"]
    given = Condition(labels=torch.tensor([0, 7]), guidance=torch.tensor([0.0, 5.0]))
    assert alone.shape == x.shape and alone.equal(backbone(x, given)["main"])


def test_with_classes_the_weights_are_those_of_before():
    """Sizes and order of the parameters, from which initial weights follow."""
    torch.manual_seed(0)
    backbone = GroupedTransformer(SIZE, CHANNELS, PATCH, 16, 2, BLOCKS, 1, 1, 3, 2, 1)
    names = [name for name, _ in backbone.named_parameters()]
    assert names[:2] == ["input.weight", "input.bias"] and names[2].startswith("guidance_embedding.")
    first = next(name for name in names if name.startswith("group_layers.0."))
    assert first == "group_layers.0.class_tokens" and backbone.group_layers[0].guidance_tokens.shape == (1, 16)


@pytest.mark.parametrize("head", [HiddenAlignment, HiddenDistillation, NaiveDistillation])
def test_every_head_trains_all_of_it_and_samples(head):
    method = make_method(head)
    images = torch.randn(6, *SHAPE, generator=torch.Generator().manual_seed(1))
    terms = method(images, torch.arange(6), Draws(0, torch.arange(6)))
    assert terms["loss"].isfinite()
    terms["loss"].backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in method.trained_parameters().values())
    assert method.num_classes == 0 and method.generator.nfe == 1
    assert method.generator.sample(torch.zeros(2, dtype=torch.int64), seed=0).isfinite().all()


@pytest.mark.parametrize("guidance", [TrainingTimeCFG(), ClassifierFreeGuidance()])
def test_guidance_needs_classes(guidance):
    with pytest.raises(ValueError, match=r"^guidance leads away from what has no class, but teacher and backbone"):
        make_method(guidance=guidance)
    mlp = HiddenAlignment(GroupedMLP(SIZE, CHANNELS, 16, BLOCKS, 1), SquaredError())
    teacher = TARFlow(SIZE, CHANNELS, SIZE, 16, BLOCKS, 1, num_classes=0, head_width=8)
    with pytest.raises(ValueError, match="have no classes"):
        BiFlow(teacher, mlp, Identity(SIZE, CHANNELS), SquaredError(), 0.3, guidance)


def tool(name, overrides, folder):
    command = [sys.executable, ROOT / "tools" / f"{name}.py", ROOT / "recipes" / "biflow_digits.yaml"]
    return started.run([*command, "--cfg-options", *overrides], cwd=folder, capture_output=True, text=True, check=False)


def test_digits_without_their_labels_from_the_recipe_to_samples(tmp_path):
    done = tool("train", OVERRIDES, tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    run = tmp_path / "work_dirs" / "biflow_digits"
    lines = [json.loads(line) for line in (run / "scalars.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2] and {"align_0", "align_1", "reconstruction"} <= lines[0].keys()
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["updates"] == 2 and metrics["generator"]["generator_macs"] > 0
    generator = open_run(run).generator()
    assert generator.num_classes == 0
    assert generator.sample([0, 0], seed=0).shape == (2, 1, 8, 8)


def test_digits_without_their_labels_but_with_guidance_are_one_line(tmp_path):
    given = [option for option in OVERRIDES if option != "model.guidance=null"]
    done = tool("show_recipe", given, tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "biflow_digits.yaml: model: guidance leads away from what has no class" in done.stderr
