"""tools/convert_checkpoint.py: small networks of the published code to runs that sample, and what is refused.

What is refused of Drifting's releases, tests/conversion has.
"""

import argparse
import json
import os
import stat
import sys
from pathlib import Path

import msgpack
import numpy as np
import pytest
import started
import torch

from genflow.backbones import JiT
from genflow.condition import Condition
from genflow.config.recipe import dump_yaml, load_recipe
from genflow.conversion.jit import to_torch
from genflow.conversion.pmf_release import convert_pmf
from genflow.runs.folder import open_run

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden" / "pmf"
TOLERANCE = 1e-5  # of the largest value, as the README of the vectors suggests


def golden(name):
    archive = np.load(GOLDEN / f"{name}.npz", allow_pickle=False)
    return archive, json.loads(str(archive["config"]))


def write_recipe(path, config, **model):
    """The recipe of a golden network."""
    backbone = {
        "type": "PixelTransformer",
        "image_size": config["input_size"],
        "patch_size": config["patch_size"],
        "width": config["hidden_size"],
        "depth": config["depth"],
        "heads": config["num_heads"],
        "num_classes": config["num_classes"],
        "head_depth": config["aux_head_depth"],
        "class_tokens": config["num_class_tokens"],
        "guidance_tokens": config["num_cfg_tokens"],
        "interval_tokens": config["num_interval_tokens"],
        "time_tokens": config["num_time_tokens"],
        "bottleneck": 128,
    }
    method = {
        "type": "MeanFlow",
        "backbone": backbone,
        "field": {"type": "AverageVelocity"},
        "times": {"type": "LogitNormalTimes", "mean": 0.8, "std": 0.8},
        "codec": {"type": "Identity", "image_size": config["input_size"]},
        "loss": {"type": "AdaptiveWeighting", "loss": {"type": "SquaredError"}},
        "guidance": {"type": "IntervalGuidance"},
        **model,
    }
    path.write_text(dump_yaml({"model": method}), encoding="utf-8")
    return path


def released(auxiliary=False):
    """The golden PyTorch network as it is released: wrapped names, without the auxiliary head, rotary angles."""
    archive, _ = golden("torch_net")
    names = [key for key in archive.files if key.startswith("sd/") and (auxiliary or not key.startswith("sd/v_"))]
    state = {f"net.{name.removeprefix('sd/')}": torch.from_numpy(archive[name]) for name in names}
    angles = (torch.from_numpy(archive[f"rope/freqs_{part}"]) for part in ("real", "imag"))
    return {**state, "net.rope_freqs": torch.complex(*angles)}


def close(found, expected):
    expected = torch.from_numpy(expected)
    assert (found - expected).abs().max() <= TOLERANCE * expected.abs().max()


def run(tool, *arguments):
    command = [sys.executable, str(ROOT / "tools" / f"{tool}.py"), *map(str, arguments)]
    done = started.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("auxiliary", [False, True])
def test_a_pytorch_release_becomes_a_run_that_samples(here, auxiliary):
    archive, config = golden("torch_net")
    settings = json.loads(str(archive["sample/settings"]))
    recipe = write_recipe(
        Path("tiny.yaml"),
        config,
        noise_scale=settings["noise_scale"],
        default_guidance=settings["omega"],
        default_interval=[settings["t_min"], settings["t_max"]],
    )
    torch.save(released(auxiliary), "pmf.pt")
    if auxiliary:
        convert_pmf(Path("pmf.pt"), Path("runs/pmf"), ROOT / "recipes", recipe)
    else:
        assert run("convert_checkpoint", "pmf", "pmf.pt", "runs/pmf", "--recipe", recipe) == (
            "runs/pmf: pmf.pt with tiny.yaml\n"
        )
        run("sample", "runs/pmf", "--num", 3, "--labels", 2, "--device", "cpu", "--out", "samples.npz")
        with np.load("samples.npz") as samples:
            assert samples["images"].shape[0] == 3 and samples["labels"].tolist() == [2, 2, 2]
    folder = Path("runs/pmf")
    assert sorted(os.listdir(folder)) == ["generator.safetensors", "metrics.json", "recipe.yaml"]
    assert os.listdir("runs") == ["pmf"] and stat.S_IMODE(folder.stat().st_mode) == 0o755
    assert load_recipe(folder / "recipe.yaml") == load_recipe(recipe)
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["converted_from"]["file"] == "pmf.pt" and metrics["updates"] is None
    assert metrics["generator"]["generator_params"] == sum(
        value.numel() for name, value in released().items() if name != "net.rope_freqs"
    )
    generator = open_run(folder).generator()
    condition = generator.condition(torch.from_numpy(archive["sample/labels"]).long())
    for steps in (1, 2, 4):
        generator.set_sampling(steps)
        images = generator(torch.from_numpy(archive["sample/noise"]), condition)
        close(images, archive[f"sample/images_{steps}step"])


@pytest.mark.parametrize("form", ["params/", "without the auxiliary head", "safetensors"])
def test_other_forms_of_a_release(here, form):
    if form == "safetensors":
        from safetensors.torch import save_file

        archive, config = golden("torch_net")
        state = released()
        del state["net.rope_freqs"]
        save_file({name: value.half() for name, value in state.items()}, "pmf.safetensors")
        file = Path("pmf.safetensors")
    else:
        archive, config = golden("loss_b_aux")
        arrays = {name: archive[name] for name in archive.files if name.startswith("params/")}
        if form != "params/":
            arrays = {name.removeprefix("params/"): array for name, array in arrays.items() if "net/v_" not in name}
        np.savez("pmf.npz", **arrays)
        file = Path("pmf.npz")
    convert_pmf(file, Path("run"), ROOT / "recipes", write_recipe(Path("tiny.yaml"), config))
    generator = open_run("run").generator()
    if form == "safetensors":
        assert all(value.dtype == torch.float32 for value in generator.network.state_dict().values())
        return
    t, r, start, end, scale = (
        torch.from_numpy(archive[f"mid/{name}"]).flatten() for name in ("t", "r", "t_min", "t_max", "omega")
    )
    labels = torch.from_numpy(archive["mid/labels_after_drop"]).long()
    condition = Condition(labels=labels, guidance=scale, interval=torch.stack([start, end], dim=1))
    z = torch.from_numpy(archive["mid/z_t"]).permute(0, 3, 1, 2).contiguous()
    with torch.no_grad():
        velocity = generator.field.velocity(generator.network, z, t, r, condition)["main"]
    close(velocity.permute(0, 2, 3, 1), archive["mid/u"])


def write_drifting():
    """A golden generator as Drifting's are released, and its recipe."""
    archive = np.load(GOLDEN.parent / "drifting" / "generator_pixel_like.npz", allow_pickle=False)
    config = json.loads(str(archive["config"]))
    tree = {}
    for name in (name for name in archive.files if name.startswith("params/")):
        *parents, end = name.split("/")
        place = tree
        for parent in parents:
            place = place.setdefault(parent, {})
        array = (archive[name].shape, archive[name].dtype.name, archive[name].tobytes())
        place[end] = msgpack.ExtType(1, msgpack.packb(array))
    folder = Path("release")
    folder.mkdir()
    (folder / "metadata.json").write_text(json.dumps({"model_config": config}))
    (folder / "ema_params.msgpack").write_bytes(msgpack.packb(tree["params"]))
    backbone = {
        "type": "LightningDiT",
        "image_size": 16,
        "patch_size": 4,
        "width": 24,
        "depth": 1,
        "heads": 3,
        "channels": 3,
        "num_classes": 5,
        "condition_width": 20,
        "context_tokens": 2,
        "style_codebooks": 2,
        "style_entries": 4,
    }
    model = {"type": "Drifting", "backbone": backbone, "field": {"type": "DriftingField"}, "labels_per_update": 1}
    model["codec"] = {"type": "Identity", "image_size": 16}
    Path("tiny.yaml").write_text(dump_yaml({"model": model}), encoding="utf-8")
    return folder


def test_a_drifting_release_becomes_a_run_that_samples(here):
    write_drifting()
    assert run("convert_checkpoint", "drifting", "release", "runs/drift", "--recipe", "tiny.yaml") == (
        "runs/drift: release with tiny.yaml\n"
    )
    folder = Path("runs/drift")
    assert sorted(os.listdir(folder)) == ["generator.safetensors", "metrics.json", "recipe.yaml"]
    images = open_run(folder).generator().sample(torch.tensor([2, 2, 3]), seed=0, guidance=1.5)
    assert images.shape == (3, 3, 16, 16) and not images[0].equal(images[1])


def released_jit(seed=0):
    """A small JiT as the authors write it, and its recipe."""
    torch.manual_seed(seed)
    backbone = {"image_size": 8, "patch_size": 4, "width": 24, "depth": 2, "heads": 2, "num_classes": 5}
    backbone |= {"bottleneck": 6, "context_tokens": 3, "context_start": 1}
    network = JiT(**backbone)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model = {
        "type": "FlowMatching",
        "backbone": {"type": "JiT", **backbone},
        "field": {"type": "InstantaneousVelocity"},
        "times": {"type": "LogitNormalTimes", "mean": 0.0, "std": 1.0, "region": "r_equals_t"},
        "codec": {"type": "Identity", "image_size": 8},
        "loss": {"type": "SquaredError"},
        "steps": 2,
    }
    Path("tiny.yaml").write_text(dump_yaml({"model": model}), encoding="utf-8")
    state = to_torch({**network.state_dict(), "positions": network.positions})
    return {f"net.{name}": value for name, value in state.items()}


def test_a_jit_release_becomes_a_run_that_samples(here):
    states = {"model": released_jit(1), "model_ema1": released_jit(2)}
    torch.save({**states, "epoch": 599, "args": argparse.Namespace(model="JiT-B/16")}, "jit.pth")
    assert run("convert_checkpoint", "jit", "jit.pth", "runs/jit", "--recipe", "tiny.yaml") == (
        "runs/jit: model_ema1 of jit.pth with tiny.yaml\n"
    )
    folder = Path("runs/jit")
    assert sorted(os.listdir(folder)) == ["generator.safetensors", "metrics.json", "recipe.yaml"]
    origin = json.loads((folder / "metrics.json").read_text())["converted_from"]
    assert (origin["file"], origin["entry"]) == ("jit.pth", "model_ema1")
    generator = open_run(folder).generator()
    assert generator.network.norm.weight.equal(states["model_ema1"]["net.final_layer.norm_final.weight"])
    images = generator.sample(torch.tensor([2, 2, 3]), seed=0, guidance=1.5)
    assert images.shape == (3, 3, 8, 8) and not images[0].equal(images[1])


# What is refused


class Payload:
    """Pickles as a call that creates the folder ``marker``."""

    def __reduce__(self):
        return os.mkdir, ("marker",)


def refused_state(refused, state, *options):
    torch.save(state, "pmf.pt")
    return refused("convert_checkpoint", "pmf", "pmf.pt", "run", *options)


LAYER = "net.shared_blocks.1"
FIT = "pmf.pt: does not fit tiny.yaml: "


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("net.pos_embed"), f"{FIT}'pos_embed' is missing from the file"),
        (
            lambda s: s.pop(f"{LAYER}.attn.k_proj._flax_linear.weight"),
            f"{FIT}'shared_blocks.1.attn.k_proj.weight' is missing from the file",
        ),
        (lambda s: s.update({"net.more": torch.zeros(1)}), f"{FIT}'more' is not in the model"),
        (lambda s: s.update({f"{LAYER}.norm3.weight": torch.zeros(1)}), f"{FIT}'shared_blocks.1.norm3.weight' is not"),
        (
            lambda s: s.update({"net.u_final_layer.linear._flax_linear.weight": torch.zeros(191, 48)}),
            f"{FIT}'u_final_layer.linear.weight' has shape (191, 48), expected (192, 48)",
        ),
        (lambda s: s.update({"net.pos_embed": torch.zeros(())}), f"{FIT}'pos_embed' has shape (), expected (1, 23, "),
        (
            lambda s: s.update({"net.v_final_layer.norm.weight": torch.zeros(48)}),
            f"{FIT}'v_final_layer.linear.",
        ),
        (
            lambda s: s.update({"net.v_heads.0.norm1.weight": torch.zeros(48)}),
            f"{FIT}'v_heads.0.",
        ),
        (lambda s: s.update({"pos_embed": torch.zeros(1)}), "pmf.pt: has 'pos_embed' twice, with and without wrappers"),
        (
            lambda s: s.update({"net.pos_embed": s["net.pos_embed"].long()}),
            f"{FIT}'pos_embed' holds numbers of type int64",
        ),
        (
            lambda s: s.update({"net.rope_freqs": s["net.rope_freqs"].conj().resolve_conj()}),
            f"{FIT}'rope_freqs' holds other rotary angles than ours",
        ),
        (lambda s: s.update({"net.rope_freqs": s["net.rope_freqs"][1:]}), f"{FIT}'rope_freqs' has shape (15, 6), exp"),
        (lambda s: s.update({"net.pos_embed": Payload()}), "pmf.pt: refused: a weights file may hold tensors "),
        (lambda s: s.update({"net.pos_embed": 3}), "pmf.pt: not a state dictionary: expected tensors by name"),
    ],
)
def test_a_file_that_does_not_fit(refused, here, change, message):
    write_recipe(Path("tiny.yaml"), golden("torch_net")[1])
    state = released()
    change(state)
    assert refused_state(refused, state, "--recipe", "tiny.yaml").startswith(f"error: {message}")
    assert not (here / "marker").exists()


BLOCK = "net.blocks.1"
JIT_FIT = "jit.pth: does not fit tiny.yaml: "


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop(f"{BLOCK}.mlp.w12.bias"), f"{JIT_FIT}'blocks.1.mlp.w12.bias' is missing from the file"),
        (lambda s: s.update({f"{BLOCK}.norm3.weight": torch.zeros(1)}), f"{JIT_FIT}'blocks.1.norm3.weight' is not in"),
        (
            lambda s: s.update({"net.in_context_posemb": torch.zeros(1, 4, 24)}),
            f"{JIT_FIT}'in_context_posemb' has shape (1, 4, 24), expected (1, 3, 24)",
        ),
        (
            lambda s: s.update({"net.pos_embed": s["net.pos_embed"] + 1e-3}),
            f"{JIT_FIT}'pos_embed' are no sines and cosines; a recipe with learned_positions: true takes it",
        ),
        (
            lambda s: s.update({f"{BLOCK}.norm1.weight": torch.ones(24).long()}),
            f"{JIT_FIT}'blocks.1.norm1.weight' holds numbers of type int64",
        ),
        (lambda s: s.update({"pos_embed": torch.zeros(1)}), "jit.pth: has weights twice, with and without 'net.'"),
        (lambda s: s.update({"net.pos_embed": Payload()}), "jit.pth: refused: a weights file may hold tensors "),
        (lambda s: s.update({"net.pos_embed": 3}), "jit.pth: not a state dictionary: expected tensors by name"),
    ],
)
def test_a_file_of_jit_that_does_not_fit(refused, here, change, message):
    state = released_jit()
    change(state)
    torch.save(state, "jit.pth")
    line = refused("convert_checkpoint", "jit", "jit.pth", "run", "--recipe", "tiny.yaml")
    assert line.startswith(f"error: {message}") and not (here / "marker").exists()


def test_weights_and_recipes_of_jit_that_are_not_there(refused):
    torch.save({"model": released_jit(), "model_ema1": released_jit()}, "jit.pth")
    line = refused("convert_checkpoint", "jit", "jit.pth", "run", "--weights", "model_ema2")
    assert line.startswith("error: jit.pth: has no weights 'model_ema2'; nearest match: 'model_ema1' (it has: model, ")
    assert refused("convert_checkpoint", "jit", "jit.pth", "run") == (
        "error: jit.pth: patch size, width and layers are (4, 24, 2), which was not released; give its recipe with "
        "--recipe"
    )
    recipe = ROOT / "recipes" / "pmf_digits.yaml"
    line = refused("convert_checkpoint", "jit", "jit.pth", "run", "--recipe", recipe)
    assert line.endswith("pmf_digits.yaml: model: trains a PixelTransformer, JiT's weights are a JiT's")
    torch.save(released(), "pmf.pt")
    line = refused("convert_checkpoint", "jit", "pmf.pt", "run")
    assert line.startswith("error: pmf.pt: patch size, width and layers are (8, 48, 0), which was not released")
    assert refused("convert_checkpoint", "imf", "pmf.pt", "run") == (
        "error: pmf.pt: not the weights of iMF: 'x_embedder.proj.weight' is missing"
    )
    line = refused("convert_checkpoint", "imf", "jit.pth", "run", "--recipe", recipe)
    assert line.startswith("error: jit.pth: does not fit ")


def test_files_of_another_kind(refused, tmp_path):
    for name in ("text.pt", "text.npz", "text.safetensors", "empty.pt", "empty.npz"):
        Path(name).write_text("no weights" if name.startswith("text") else "")
    torch.save(released(), tmp_path / "whole.pt")
    content = (tmp_path / "whole.pt").read_bytes()
    for name in ("half.pt", "half.npz", "half.safetensors"):
        Path(name).write_bytes(content[: len(content) // 2])
    Path("folder.pt").mkdir()
    np.save("array.npy", np.zeros(3))
    os.rename("array.npy", "array.npz")
    np.savez("objects.npz", **{"params/net/pos_embed": np.array([Payload()], dtype=object)})
    np.savez("integers.npz", **{"params/net/pos_embed": np.zeros(3, dtype=int)})
    np.savez("others.npz", **{"in/x": np.zeros(3)})
    os.link(tmp_path / "whole.pt", "torch.npz")
    np.savez("archive", **{"params/net/pos_embed": np.zeros(3)})
    os.rename("archive.npz", "numpy.pt")
    torch.save({"weight": torch.zeros(3)}, "classifier.pt")
    for name, message in {
        "text.pt": "refused: a weights file may hold tensors and plain values only",
        "text.npz": "not a complete archive of plain arrays: ",
        "text.safetensors": "not a complete safetensors file: ",
        "empty.pt": "not a complete weights file: ",
        "empty.npz": "not a complete archive of plain arrays: ",
        "half.pt": "not a complete weights file: ",
        "half.npz": "not a complete archive of plain arrays: ",
        "half.safetensors": "not a complete safetensors file: ",
        "folder.pt": "no such weights file",
        "none.pt": "no such weights file",
        "none.npz": "no such weights file",
        "array.npz": "not a complete archive of plain arrays: ",
        "objects.npz": "not a complete archive of plain arrays: ",
        "integers.npz": "'params/net/pos_embed' is not an array of floating-point numbers",
        "others.npz": "'in/x' is not a parameter of the official network, which all begin with 'net/'",
        "torch.npz": "' is not an array of floating-point numbers",
        "numpy.pt": "not a complete weights file: ",
        "classifier.pt": "not the weights of pMF: 'x_embedder.proj1.weight' is missing",
    }.items():
        line = refused("convert_checkpoint", "pmf", name, "run")
        assert line.startswith(f"error: {name}: ") and message in line, line


def test_recipes_that_do_not_fit(refused):
    _, config = golden("torch_net")
    state = released()
    line = refused_state(refused, state)
    assert line == (
        "error: pmf.pt: patch size, width and layers are (8, 48, 4), which was not released; give its recipe with "
        "--recipe"
    )
    assert refused_state(refused, state, "--recipe", "none.yaml") == "error: none.yaml: no such recipe"
    write_recipe(Path("wider.yaml"), {**config, "hidden_size": 64})
    line = refused_state(refused, state, "--recipe", "wider.yaml")
    assert line.startswith("error: pmf.pt: does not fit wider.yaml: '") and "has shape (" in line
    line = refused_state(refused, state, "--recipe", ROOT / "recipes" / "itarflow_digits.yaml")
    assert line.endswith("itarflow_digits.yaml: model: trains a TARFlow, pMF's weights are a PixelTransformer's")
    write_recipe(Path("clock.yaml"), config)
    Path("clock.yaml").write_text(Path("clock.yaml").read_text().replace("bottleneck:", "clock: time\n    bottleneck:"))
    line = refused_state(refused, state, "--recipe", "clock.yaml")
    assert line == "error: clock.yaml: not the network of pMF: 'tokens.time' has no counterpart"


def test_nothing_is_overwritten_and_nothing_half_written(refused, monkeypatch):
    write_recipe(Path("tiny.yaml"), golden("torch_net")[1])
    for taken in ("run", "run/notes.txt"):
        Path(taken).parent.mkdir(exist_ok=True)
        Path(taken).write_text("mine")
        line = refused_state(refused, released(), "--recipe", "tiny.yaml")
        assert line == "error: run: is there already; name another folder"
        os.remove(taken)

    def fail(path, state):
        path.write_bytes(b"half")
        raise OSError("no space left")

    with monkeypatch.context() as patched:
        patched.setattr("genflow.runs.converted.write_weights", fail)
        assert refused_state(refused, released(), "--recipe", "tiny.yaml") == "error: no space left"
    assert os.listdir("run") == []
    # An empty folder may be there.
    convert_pmf(Path("pmf.pt"), Path("run"), ROOT / "recipes", Path("tiny.yaml"))
    assert len(os.listdir("run")) == 3


def test_a_drifting_release_that_does_not_fit(refused):
    folder = write_drifting()
    assert refused("convert_checkpoint", "drifting", folder, "run") == (
        "error: release/metadata.json: model_config is of a model that was not released; give its recipe with --recipe"
    )
    (folder / "ema_params.msgpack").write_bytes(b"no weights")
    line = refused("convert_checkpoint", "drifting", folder, "run", "--recipe", "tiny.yaml")
    assert line.startswith("error: release/ema_params.msgpack: not a complete file of Flax parameters: ")
    line = refused("convert_checkpoint", "drifting", "none", "run")
    assert line.startswith("error: none/metadata.json: no such file; expected a folder with metadata.json and ")


def test_options(refused):
    assert "the following arguments are required: PROJECT" in refused("convert_checkpoint")
    assert "the following arguments are required: FILE, OUT" in refused("convert_checkpoint", "pmf")
    assert "the following arguments are required: FOLDER, OUT" in refused("convert_checkpoint", "drifting")
    assert "invalid choice: 'pnf'" in refused("convert_checkpoint", "pnf", "a.pt", "run")
    assert "unrecognized arguments: --force" in refused("convert_checkpoint", "pmf", "a.pt", "run", "--force")
