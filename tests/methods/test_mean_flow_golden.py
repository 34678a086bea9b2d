"""pMF's networks, laws and training loss against the published code (tests/golden/README.md).

With GENFLOW_GOLDEN set to a folder that holds further vectors in ``pmf/``, those are compared too.
"""

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from genflow.backbones.pixel_transformer import PixelTransformer
from genflow.codecs.identity import Identity
from genflow.condition import Condition
from genflow.conversion.pmf import from_jax, from_torch
from genflow.draws import Draws
from genflow.field_estimators import AverageVelocity
from genflow.generators.velocity import AverageVelocityGenerator
from genflow.guidance.interval import IntervalGuidance
from genflow.losses.adaptive import AdaptiveWeighting
from genflow.losses.base import Loss
from genflow.losses.squared_error import SquaredError
from genflow.methods.mean_flow import MeanFlow, SavingsSection
from genflow.methods.perceptual import PerceptualSection, PerceptualTerm
from genflow.time_samplers import LogitNormalTimes
from genflow.time_samplers.base import Times

HERE = Path(__file__).parents[1] / "golden" / "pmf"
FOLDERS = [HERE, *([Path(os.environ["GENFLOW_GOLDEN"]) / "pmf"] if "GENFLOW_GOLDEN" in os.environ else [])]
FILES = {path.stem: path for folder in FOLDERS for path in folder.glob("*.npz")}
TOLERANCE = 1e-5  # of the largest value, as the README of the vectors suggests


class Golden:
    """One file; images come out channels first."""

    def __init__(self, name):
        self.data = np.load(FILES[name], allow_pickle=False)
        self.config = json.loads(str(self.data["config"])) if "config" in self.data else {}
        self.channels_last = self.config.get("layout") == "NHWC"

    def __getitem__(self, key):
        value = torch.from_numpy(np.array(self.data[key]))
        image = value.dim() == 4 and self.channels_last and not key.startswith(("params/", "grad/"))
        return value.permute(0, 3, 1, 2).contiguous() if image else value

    def parameters(self):
        if self.channels_last:
            return {key: self[key] for key in self.data.files if key.startswith("params/")}
        return {key.removeprefix("sd/"): self[key] for key in self.data.files if key.startswith("sd/")}

    def backbone(self, **more):
        config = self.config
        return PixelTransformer(
            config["input_size"],
            config["patch_size"],
            config["hidden_size"],
            config["depth"],
            config["num_heads"],
            num_classes=config["num_classes"],
            head_depth=config["aux_head_depth"],
            auxiliary_depth=config["aux_head_depth"],
            class_tokens=config["num_class_tokens"],
            guidance_tokens=config["num_cfg_tokens"],
            interval_tokens=config["num_interval_tokens"],
            time_tokens=config["num_time_tokens"],
            bottleneck=128,
            **more,
        )

    def condition(self):
        interval = torch.stack([self["in/t_min"], self["in/t_max"]], dim=1)
        return Condition(labels=self["in/y"].long(), guidance=self["in/omega"], interval=interval)


def close(found, expected, limit=TOLERANCE):
    error = (found.detach() - expected).abs().max() / expected.abs().max().clamp(min=1e-30)
    assert error <= limit, f"{error:.2e}"


def loaded(golden):
    official = from_jax(golden.parameters()) if golden.channels_last else golden.parameters()
    backbone = golden.backbone()
    backbone.load_state_dict(from_torch(official))
    return backbone.eval()


NETWORKS = sorted(FILES.keys() & {"torch_net", "jax_net_netA"})


@pytest.mark.parametrize("name", NETWORKS)
def test_network(name):
    golden = Golden(name)
    backbone, t, h = loaded(golden), golden["in/t"], golden["in/h"]
    fields = AverageVelocity().velocity(
        backbone, golden["in/x"], t, t - h, golden.condition(), heads=("main", "auxiliary")
    )
    close(fields["main"], golden["out/u"])
    close(fields["auxiliary"], golden["out/v"])


def test_inner_values():
    golden = Golden("torch_net")
    backbone = loaded(golden)
    condition = replace(golden.condition(), duration=golden["in/h"])
    sequence, _ = backbone._embed(golden["in/x"], None, condition)
    close(sequence, golden["mid/seq_in"])
    close(backbone.trunk[0](golden["mid/seq_in"], backbone.angles)[0], golden["mid/block0_out"])
    patches = backbone.angles[backbone.prefix :]
    close(patches.cos(), golden["rope/freqs_real"])
    close(patches.sin(), golden["rope/freqs_imag"])


def test_time_floor():
    golden = Golden("torch_net")
    t = golden["tclip/t"]
    count = len(t)
    condition = Condition(
        labels=torch.full((count,), 4),
        guidance=torch.full((count,), 3.0),
        interval=torch.tensor([0.1, 0.7]).expand(count, 2),
    )
    z = golden["tclip/x"].expand(count, -1, -1, -1)
    u = AverageVelocity().velocity(loaded(golden), z, t, t - 0.25, condition)["main"]
    close(u[:, :, ::2, ::2], golden["tclip/u"])


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_sampler(name, steps):
    golden = Golden(name)
    if f"sample/images_{steps}step" not in golden.data:
        pytest.skip("not among this file's vectors")
    settings = json.loads(str(golden.data["sample/settings"]))
    backbone = loaded(golden)
    codec = Identity(backbone.image_shape[1], 3)
    generator = AverageVelocityGenerator(
        backbone,
        AverageVelocity(),
        codec,
        settings["noise_scale"],
        settings["omega"],
        (settings["t_min"], settings["t_max"]),
        steps,
    )
    with torch.no_grad():
        images = generator(golden["sample/noise"], generator.condition(golden["sample/labels"].long()))
    close(images, golden[f"sample/images_{steps}step"])


@pytest.mark.skipif("jax_net_netA" not in FILES, reason="its vectors are not in tests/golden")
def test_derivative_along_a_direction():
    golden = Golden("jax_net_netA")
    t, r = golden["in/jvp_t"], golden["in/jvp_r"]
    fields = AverageVelocity(moving_rows_only=False)(
        loaded(golden), golden["in/x"], Times(t, r, t == r), golden.condition(), golden["in/dz"]
    )
    close(fields.average, golden["out/jvp_u"])
    close(fields.compound, golden["out/jvp_u"] + (t - r).view(-1, 1, 1, 1) * golden["out/jvp_du_dt"])


# Training


@dataclass(frozen=True)
class RawDraws(Draws):
    """The random numbers of a golden file, whose first rows are those with r = t, in the place of ours."""

    STREAMS: ClassVar = {
        "time t": "n_t",
        "time r": "n_r",
        "time mix": "u_trmask",
        "uniform t": "u_t",
        "uniform r": "u_r",
        "noise": "eps",
        "interval start": "u_tmin",
        "interval end": "u_tmax",
        "guidance scale": "u_omega",
        "label drop": "u_drop",
    }

    golden: Any = None
    prefix: str = ""

    @classmethod
    def of(cls, golden, prefix):
        # Ours spreads rows with r = t over the batch: those at odd places, for a share of one half.
        count = len(golden[f"{prefix}n_t"])
        odd = torch.arange(count) % 2 == 1
        return cls(0, torch.argsort(~odd, stable=True), count, golden, prefix)

    def _raw(self, stream):
        key = f"{self.prefix}{self.STREAMS[stream]}"
        if key not in self.golden.data:
            return torch.ones(len(self.golden[f"{self.prefix}n_t"]))  # a draw that this setting does not look at
        value = self.golden[key]
        order = torch.argsort(torch.arange(len(value)) % 2 == 0, stable=True)
        by_place = torch.empty_like(value)
        by_place[order] = value
        return by_place[self.positions]

    def uniform(self, stream, shape=()):
        return self._raw(stream)

    normal = uniform


class Absolute(Loss):
    """The stand-in for the second perceptual term."""

    def forward(self, prediction, target):
        return (prediction - target).abs().flatten(1).mean(dim=1)


def build_method(golden, backbone, savings=True):
    loss = golden.config["loss"]
    perceptual = None
    if loss["lpips"]:
        mean_square = AdaptiveWeighting(SquaredError("mean"), loss["norm_p"], loss["norm_eps"])
        absolute = AdaptiveWeighting(Absolute(), loss["norm_p"], loss["norm_eps"])
        terms = {"lpips": (mean_square, loss["lpips_lambda"]), "convnext": (absolute, loss["convnext_lambda"])}
        perceptual = PerceptualSection({name: PerceptualTerm(*term) for name, term in terms.items()}, crop=None)
    return MeanFlow(
        backbone,
        AverageVelocity(moving_rows_only=savings),
        LogitNormalTimes(loss["P_mean"], loss["P_std"], loss["data_proportion"], 0.1 if loss["tr_uniform"] else 0.0),
        Identity(golden.config["input_size"], 3),
        AdaptiveWeighting(SquaredError(), loss["norm_p"], loss["norm_eps"]),
        IntervalGuidance(loss["cfg_max"], loss["cfg_beta"], label_drop=loss["class_dropout_prob"]),
        loss["noise_scale"],
        perceptual,
        loss["perceptual_max_t"],
        savings=SavingsSection(savings, savings, savings),
    )


LOSSES = sorted(FILES.keys() & {"loss_a_noaux", "loss_b_aux"})


@pytest.mark.parametrize("name", LOSSES)
def test_guided_target(name):
    golden = Golden(name)
    draws = RawDraws.of(golden, "raw/")
    method, labels = build_method(golden, loaded(golden)), golden["in/labels"].long()
    times = method.times(draws)
    close(times.t, golden["mid/t"])
    close(times.r, golden["mid/r"])
    assert times.equal.equal(golden["mid/fm_mask"].bool().flatten())
    condition = method.guidance.condition(draws, labels, times)
    close(condition.guidance, golden["mid/omega"])
    close(condition.interval[:, 0], golden["mid/t_min"])
    close(condition.interval[:, 1], golden["mid/t_max"])
    z, conditional = golden["mid/z_t"], golden["mid/v_t"]
    close(method.field.conditional(z, golden["in/images"], times.t), conditional)
    whole = draws.global_batch()
    dropped = method.guidance.dropped(whole, method.times(whole).equal)[draws.batch_indices]
    assert torch.where(dropped, method.num_classes, labels).equal(golden["mid/labels_after_drop"].long())
    for nothing, key in ((torch.zeros_like(dropped), "mid/v_g_before_drop"), (dropped, "mid/v_g")):
        guided = method._guide(z, conditional, condition, times, nothing)
        close(guided.complete(golden["mid/v_cond_full_omega"]), golden[key])
        # Rows with r = t do not move.
        close(guided.tangent[~times.equal], golden["mid/v_c"][~times.equal])
    fields = method.field(
        method.backbone,
        z,
        times,
        condition.labelled(golden["mid/labels_after_drop"].long()),
        guided.tangent,
        method.backbone.heads,
    )
    close(fields.average, golden["mid/u"])
    close(fields.auxiliary, golden["mid/v"])
    close(fields.compound, golden["mid/V"])


@pytest.mark.parametrize("savings", [True, False])
@pytest.mark.parametrize("name", LOSSES)
def test_loss_and_gradients(name, savings):
    golden = Golden(name)
    official = {key: value.requires_grad_() for key, value in golden.parameters().items()}
    method = build_method(golden, golden.backbone(), savings)
    # Our weights as functions of theirs, so that gradients come out by their names.
    weights = {f"backbone.{key}": value for key, value in from_torch(from_jax(official)).items()}
    draws = RawDraws.of(golden, "raw/")
    terms = torch.func.functional_call(method, weights, (golden["in/images"], golden["in/labels"].long(), draws))
    close(terms["loss"], golden["out/loss"], 2e-6)
    close(terms["velocity_error"], golden["out/metric_loss_u"])
    close(terms["auxiliary_error"], golden["out/metric_loss_v"])
    if method.perceptual is not None:
        weighted = terms["perceptual_lpips"] + terms["perceptual_convnext"]
        close(weighted, golden["out/aux_weighted"].mean())
    terms["loss"].backward()
    names = json.loads(str(golden.data["grad_norm_names"]))
    norms = torch.stack([official[f"params/{key}"].grad.norm() for key in names])
    close(norms, golden["grad_norms"])
    for key in golden.data.files:
        if key.startswith("grad/"):
            close(official[key.replace("grad/", "params/", 1)].grad, golden[key])


def test_guidance_scales():
    golden = Golden("scalar_laws")
    laws = golden["cfg_scale/beta_smax"].tolist()
    for (power, largest), expected in zip(laws, golden["cfg_scale/omega"], strict=True):
        close(IntervalGuidance(largest, power).scale(golden["cfg_scale/u"]), expected)


@dataclass(frozen=True)
class GivenNormals(Draws):
    """The same given normal numbers for every use."""

    values: Any = None

    def uniform(self, stream, shape=()):
        return torch.ones_like(self.values)

    def normal(self, stream, shape=()):
        return self.values


def test_logit_normal_times():
    golden = Golden("scalar_laws")
    normal = golden["logit_normal/n"]
    for (mean, std), expected in zip(golden["logit_normal/mean_std"].tolist(), golden["logit_normal/t"], strict=True):
        close(LogitNormalTimes(mean, std)(GivenNormals(0, torch.arange(len(normal)), None, normal)).t, expected)


@pytest.mark.parametrize("case", ["tr0", "tr1"])
def test_times_intervals_and_dropped_labels(case):
    golden = Golden("scalar_laws")
    config = json.loads(str(golden.data[f"{case}/config"]))
    draws = RawDraws.of(golden, f"{case}/")
    uniform_share = 0.1 if config["tr_uniform"] else 0.0
    sampler = LogitNormalTimes(config["P_mean"], config["P_std"], config["data_proportion"], uniform_share)
    times = sampler(draws)
    close(times.t, golden[f"{case}/t"])
    close(times.r, golden[f"{case}/r"])
    assert times.equal.equal(golden[f"{case}/fm_mask"].bool().flatten())
    guidance = IntervalGuidance(label_drop=config["class_dropout_prob"])
    labels = golden[f"{case}/labels"].long()
    interval = guidance.condition(draws, labels, times).interval
    close(interval[:, 0], golden[f"{case}/t_min"])
    close(interval[:, 1], golden[f"{case}/t_max"])
    dropped = guidance.dropped(draws.global_batch(), sampler(draws.global_batch()).equal)[draws.batch_indices]
    assert torch.where(dropped, config["null_label"], labels).equal(golden[f"{case}/labels_after"].long())
    assert (~dropped).equal(golden[f"{case}/kept_guidance"].bool().flatten())
