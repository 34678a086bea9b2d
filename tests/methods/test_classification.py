"""Training a classifier whose features serve as a perceptual distance."""

from pathlib import Path

import pytest
import torch

from genflow.config.recipe import dump_yaml
from genflow.data import Digits
from genflow.draws import Draws
from genflow.engine.train import TrainOptions, train
from genflow.errors import UserError
from genflow.feature_encoders import ConvNet
from genflow.feature_encoders.base import FeatureEncoder
from genflow.methods import Classification
from genflow.runs.folder import open_run

ROOT = Path(__file__).parents[2]


def test_loss_is_the_cross_entropy_of_noisy_images():
    torch.manual_seed(0)
    method = Classification(ConvNet(1, [4, 8], 10), (1, 8, 8), noise_std=0.5)
    data = Digits("train")
    draws, labels = Draws(0, torch.arange(16)), data.labels[:16]
    terms = method(data.images[:16], labels, draws)
    noisy = data.images[:16] + 0.5 * draws.normal("data noise", (1, 8, 8))
    logits = method.encoder.classify(noisy)
    expected = -torch.log_softmax(logits, dim=1)[torch.arange(16), labels].mean()
    assert terms["loss"].item() == pytest.approx(expected.item(), rel=1e-6)
    assert terms["accuracy"].item() == (logits.argmax(dim=1) == labels).float().mean().item()
    assert method.generator is None and method.artifact_module is method.encoder
    assert (method.image_shape, method.num_classes) == ((1, 8, 8), 10)


def test_an_encoder_without_a_classifier_is_refused():
    class Plain(FeatureEncoder):
        pass

    with pytest.raises(ValueError, match="Plain does not classify"):
        Classification(Plain(), (1, 8, 8))


def test_a_run_without_generator_is_an_encoder_for_another_recipe(tmp_path):
    """Training, the artifact, the refusal to sample, and its use as a prerequisite with perceptual terms."""
    overrides = {
        "train_cfg.max_iters": 60,
        "model.encoder.widths": [8, 16],
    }
    work_dir = train(ROOT / "recipes" / "classifier_digits.yaml", overrides, None, TrainOptions(tmp_path / "encoder"))
    trained = open_run(work_dir)
    encoder, data = trained.method().encoder, Digits("test")
    accuracy = (encoder.classify(data.images).argmax(dim=1) == data.labels).float().mean().item()
    assert accuracy > 0.5
    assert not (work_dir / "samples").exists()
    with pytest.raises(UserError, match="Classification trains no generator"):
        trained.generator()

    flow = {"type": "TARFlow", "image_size": 8, "channels": 1, "patch_size": 4, "width": 16, "blocks": 2, "layers": 1}
    teacher = tmp_path / "teacher.yaml"
    base = str(ROOT / "recipes" / "itarflow_digits.yaml")
    teacher.write_text(dump_yaml({
        "_base_": base,
        "model": {"flow": {"_delete_": True, **flow, "num_classes": 10, "head_width": 8}},
        "train_cfg": {"max_iters": 2},
        "evaluation": {"_delete_": True},
    }))  # fmt: skip
    options = {
        "train_cfg.max_iters": 2,
        "evaluation": None,
        "prerequisites.teacher": {"recipe": str(teacher), "name": "teacher"},
        "prerequisites.encoder.run": str(work_dir),
        **{f"prerequisites.encoder.recipe.{key}": value for key, value in overrides.items()},
        **{f"model.inverse.backbone.{key}": 1 for key in ("layers", "denoise_layers")},
        **{f"model.inverse.backbone.{key}": 2 for key in ("groups", "heads")},
        "model.inverse.backbone.width": 16,
        "model.inverse.backbone.patch_size": 4,
    }
    run = train(ROOT / "recipes" / "biflow_digits_perceptual.yaml", options, None, TrainOptions(tmp_path / "biflow"))
    assert '"perceptual_classifier"' in (run / "scalars.jsonl").read_text()
    kept = {path.stem for path in (run / "prerequisites").iterdir()}
    assert kept == {"teacher", "encoder"}
    (run / "prerequisites" / "encoder.safetensors").unlink()  # sampling needs the teacher at most
    images = open_run(run).generator().sample(torch.tensor([3]), seed=0)
    assert images.isfinite().all()
