"""What tests of Drifting's conversion share: released folders of small networks, and conversions that must refuse."""

import json
from pathlib import Path

import msgpack
import numpy as np
import pytest
import torch

from genflow.config.recipe import dump_yaml
from genflow.conversion.drifting_release import convert_drifting
from genflow.errors import UserError

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "recipes"


def packed(value):
    """A tensor as flax.serialization packs an array."""
    content = value.flatten().view(torch.uint8).numpy().tobytes()
    name = str(value.dtype).removeprefix("torch.")
    return msgpack.ExtType(1, msgpack.packb((tuple(value.shape), name, content), use_bin_type=True))


class Release:
    """The folder ``release`` and the recipe ``tiny.yaml`` in an empty working folder."""

    def golden(self, name):
        """The archive of a published generator, its configuration and its arrays."""
        archive = np.load(ROOT / "tests" / "golden" / "drifting" / f"generator_{name}.npz", allow_pickle=False)
        names = [key for key in archive.files if key.startswith("params/")]
        arrays = {key.removeprefix("params/"): torch.from_numpy(archive[key]) for key in names}
        return archive, json.loads(str(archive["config"])), arrays

    def write(self, config, arrays):
        """The two files."""
        nested = {}
        for path, value in arrays.items():
            *parents, name = path.split("/")
            place = nested
            for parent in parents:
                place = place.setdefault(parent, {})
            place[name] = packed(value)
        folder = Path("release")
        folder.mkdir()
        (folder / "metadata.json").write_text(json.dumps({"model_config": config}))
        (folder / "ema_params.msgpack").write_bytes(msgpack.packb(nested))

    def recipe(self, config, **backbone):
        """The recipe of a golden generator, or of an encoder of inputs of side 32."""
        channels = config["in_channels"]
        if "base_channels" in config:
            encoder = {
                "type": "LatentMAE",
                "image_size": 32,
                "channels": channels,
                "width": config["base_channels"],
                "depths": config["layers"],
                "patch_size": config["input_patch_size"],
                "num_classes": config["num_classes"],
                "decoder": True,
            }
            model = {"type": "MaskedAutoencoding", "encoder": encoder}
        else:
            backbone = {
                "type": "LightningDiT",
                "image_size": config["input_size"],
                "patch_size": config["patch_size"],
                "width": config["hidden_size"],
                "depth": config["depth"],
                "heads": config["num_heads"],
                "channels": channels,
                "num_classes": config["num_classes"],
                "condition_width": config["cond_dim"],
                "context_tokens": config["n_cls_tokens"],
                "style_codebooks": config["noise_coords"],
                "style_entries": config["noise_classes"],
                **backbone,
            }
            model = {"type": "Drifting", "backbone": backbone, "field": {"type": "DriftingField"}}
            model["labels_per_update"] = 1
        model["codec"] = {"type": "Identity", "image_size": config.get("input_size", 32), "channels": channels}
        Path("tiny.yaml").write_text(dump_yaml({"model": model}), encoding="utf-8")
        return Path("tiny.yaml")

    def convert(self, recipe=None):
        """Convert to the folder ``run``."""
        return convert_drifting(Path("release"), Path("run"), RECIPES, recipe)

    def refusal(self, recipe=None):
        """The one line with which that stops, having written nothing."""
        before = sorted(Path().rglob("*"))
        with pytest.raises(UserError) as caught:
            self.convert(recipe)
        assert sorted(Path().rglob("*")) == before
        assert str(caught.value).isprintable()
        return str(caught.value)


@pytest.fixture
def release(tmp_path, monkeypatch):
    """See :class:`Release`."""
    monkeypatch.chdir(tmp_path)
    return Release()
