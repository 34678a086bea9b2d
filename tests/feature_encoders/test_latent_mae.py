"""The masked autoencoder of Drifting: sizes, features and decoder, against plain torch.

The published code's numbers are in tests/methods/test_masked_autoencoding_golden.py.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from genflow.analysis.flops import count_encoder
from genflow.errors import UserError
from genflow.feature_encoders import LatentMAE
from genflow.feature_encoders.base import MaskedEncoder

SMALL = {"channels": 2, "image_size": 8, "width": 8, "depths": (2, 1, 3), "num_classes": 5, "norm_groups": 4}


def encoder(**changes):
    torch.manual_seed(0)
    return LatentMAE(**{**SMALL, **changes})


def samples(*shape, dtype=torch.float32):
    shape = shape or (3, 2, 8, 8)
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)


def shaken(net):
    """Random gains and biases, so that forgetting one shows."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for value in net.parameters():
            if value.dim() == 1:
                value.add_(0.3 * torch.randn(value.shape, generator=generator))
    return net


# Sizes


@pytest.mark.parametrize(
    ("sizes", "counts"),
    [
        ({"channels": 4, "image_size": 32}, (340.2, 89.1, 2.0, 431.4)),
        ({"channels": 4, "image_size": 32, "width": 640}, (2126.0, 556.7, 5.1, 2687.9)),
        ({"channels": 3, "image_size": 256, "width": 640, "patch_size": 8}, (2127.1, 556.8, 5.1, 2689.1)),
    ],
)
def test_published_sizes(sizes, counts):
    """Encoder, decoder, classifier and all, in millions; 12 maps with 7 features each, and norm_x."""
    with torch.device("meta"):
        net = LatentMAE(**sizes, decoder=True)
        features = net(torch.zeros(2, *net.image_shape))
    total = {"decoder": 0, "classifier": 0, "encoder": 0}
    for name, value in net.named_parameters():
        part = name.split(".")[0]
        total[part if part in total else "encoder"] += value.numel() / 1e6
    found = (total["encoder"], total["decoder"], total["classifier"], sum(total.values()))
    assert found == pytest.approx(counts, abs=0.06)
    assert len(features) == 12 * 7 + 1 and tuple(features) == net.feature_names
    width = sizes.get("width", 256)
    assert features["layer4_std_4"].shape == (2, 1, 8 * width)
    assert features["conv1"].shape == features["layer1_blk2"].shape == (2, 1024, width)
    assert net.patch_shape == (sizes["channels"] * sizes.get("patch_size", 1) ** 2, 32, 32)


def test_nothing_has_a_bias_but_norms_and_the_last_layers():
    net = encoder(decoder=True)
    plain = {name for name, module in net.named_modules() if isinstance(module, nn.Conv2d) and module.bias is None}
    assert {name for name, module in net.named_modules() if isinstance(module, nn.Conv2d)} - plain == {"decoder.output"}
    norms = [module for module in net.modules() if isinstance(module, nn.GroupNorm)]
    assert {norm.eps for norm in norms} == {1e-6}
    assert {norm.num_groups for norm in norms} == {4}
    assert encoder(width=18, norm_groups=4).stem.norm.num_groups == 3  # the largest that divides 18


# Features


@torch.no_grad()
@pytest.mark.parametrize(
    ("changes", "absent", "present"),
    [
        ({}, "layer2_blk2", "layer3_blk2_mean_2"),
        ({"block_interval": 3}, "layer1_blk2", "layer3_blk3"),
        ({"block_interval": 1}, "layer2_blk2", "layer2_blk1_std_4"),
        ({"windows": (3,)}, "conv1_mean_2", "conv1_std"),
        ({"pooled": False}, "conv1_std", "layer2_std_4"),
        ({"deviation_windows": (4,)}, "conv1_std_2", "conv1_mean_2"),
        ({"pooled": False, "pooled_deviation": True}, "layer2_mean", "layer2_std"),
        ({"patch_size": 2, "decoder": True}, "layer1_mean_8", "layer1_mean_4"),
        ({"image_size": 10}, "layer1_mean_4", "layer1_mean_2"),
        ({"depths": (1,), "num_classes": 0}, "layer2", "layer1"),
    ],
)
def test_names_are_those_of_what_comes_out(changes, absent, present):
    net = encoder(**changes)
    found = net(samples(2, *net.image_shape))
    assert tuple(found) == net.feature_names and len(set(found)) == len(found)
    assert absent not in found and present in found
    assert {value.shape[0] for value in found.values()} == {2}
    assert isinstance(net, MaskedEncoder) and net.space == "samples" and net.has_weights


def reference(state, patches, depths, groups):
    """Maps and reconstruction by plain functions."""

    def norm(x, name):
        count = max(count for count in range(1, groups + 1) if x.shape[1] % count == 0)
        return F.group_norm(x, count, state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)

    def conv(x, name, stride=1):
        weight = state[f"{name}.weight"]
        return F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)

    x = F.relu(norm(conv(patches, "stem.conv"), "stem.norm"))
    maps = {"conv1": x}
    for stage, depth in enumerate(depths):
        for block in range(depth):
            at = f"stages.{stage}.{block}"
            shrinks = stage > 0 and block == 0
            stride = 2 if shrinks else 1
            y = F.relu(norm(conv(x, f"{at}.conv1", stride), f"{at}.norm1"))
            y = norm(conv(y, f"{at}.conv2"), f"{at}.norm2")
            short = norm(conv(x, f"{at}.shortcut.conv", 2), f"{at}.shortcut.norm") if shrinks else x
            x = F.relu(y + short)
            if block % 2:
                maps[f"layer{stage + 1}_blk{block + 1}"] = x
        x = maps[f"layer{stage + 1}"] = norm(x, f"stage_norms.{stage}")
    x = F.relu(norm(conv(x, "decoder.bridge.conv"), "decoder.bridge.norm"))
    skips = [*(f"layer{stage}" for stage in range(len(depths) - 1, 0, -1)), "conv1"]
    for index, skip in enumerate(skips):
        at, beside = f"decoder.ups.{index}", maps[skip]
        x = torch.cat([F.interpolate(x, size=beside.shape[2:], mode="bilinear", align_corners=False), beside], dim=1)
        x = norm(x, f"{at}.norm")
        for part in ("project", "refine"):
            x = F.relu(norm(conv(x, f"{at}.{part}.conv"), f"{at}.{part}.norm"))
    return maps, F.conv2d(x, state["decoder.output.weight"], state["decoder.output.bias"])


@torch.no_grad()
@pytest.mark.parametrize("patch_size", [1, 2])
def test_equals_plain_functions(patch_size):
    net = shaken(encoder(decoder=True, patch_size=patch_size, image_size=8 * patch_size)).double()
    x = samples(3, *net.image_shape, dtype=torch.float64)
    patches = net.patches(x)
    maps, reconstruction = reference(net.state_dict(), patches, SMALL["depths"], SMALL["norm_groups"])
    found = net(x)
    assert {name for name in found if not name.rsplit("_", 1)[-1].isdigit()} >= maps.keys()
    for name, value in maps.items():
        assert torch.allclose(found[name], value.flatten(2).mT, atol=1e-12), name
        assert torch.allclose(found[f"{name}_mean"][:, 0], value.mean(dim=(2, 3)), atol=1e-12)
    assert torch.allclose(found["norm_x"][:, 0], (patches.square().mean(dim=(2, 3)) + 1e-6).sqrt())
    filled, logits = net.reconstruct(patches)
    assert filled.shape == patches.shape and torch.allclose(filled, reconstruction, atol=1e-12)
    head = net.classifier
    assert torch.allclose(logits, maps["layer3"].mean(dim=(2, 3)) @ head.weight.T + head.bias)
    assert torch.equal(net.classify(x), logits)


def test_patches_are_in_the_order_row_column_channel():
    net = encoder(patch_size=4)
    x = samples()
    found = net.patches(x)
    assert found.shape == (3, 32, 2, 2)
    for row, column, channel in ((0, 0, 1), (0, 3, 0), (2, 1, 1)):
        assert torch.equal(found[:, (row * 4 + column) * 2 + channel], x[:, channel, row::4, column::4])


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")  # torch scripts functions of its own at the first jvp
@pytest.mark.parametrize("patch_size", [1, 2])
def test_patches_are_permuted_axes_also_of_tangents_and_in_graphs(patch_size):
    net, x = encoder(patch_size=patch_size), samples()
    side = 8 // patch_size
    cells = x.reshape(3, 2, side, patch_size, side, patch_size).permute(0, 3, 5, 1, 2, 4)
    expected = cells.reshape(3, 2 * patch_size**2, side, side)
    assert net.patches(x).equal(expected)
    assert torch.func.jvp(net.patches, (torch.zeros_like(x),), (x,))[1].equal(expected)
    assert torch.compile(net.patches, fullgraph=True, backend="aot_eager")(x).equal(expected)


def test_features_compile_to_one_graph():
    net, x = shaken(encoder(depths=(1,), windows=(2,))), samples()
    expected, found = net(x), torch.compile(net, fullgraph=True, backend="aot_eager")(x)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.allclose(found[name], value, atol=1e-5), name


def test_counts_are_those_of_the_convolutions_on_the_meta_device_too():
    """Stem, two convolutions a block and one for the first shortcut of a stage that halves; norms count apart."""
    net = encoder(patch_size=2, depths=(1, 1), num_classes=0)
    found = count_encoder(net, net.image_shape)
    assert count_encoder(net.to("meta"), net.image_shape) == found
    first, second = 8 * 8 * 9 * 16, 16 * 16 * 9 * 4
    by_hand = {"stem.conv": 8 * 8 * 9 * 16, "stages.0.0.conv1": first, "stages.0.0.conv2": first}
    by_hand |= {"stages.1.0.conv1": second // 2, "stages.1.0.conv2": second, "stages.1.0.shortcut.conv": 8 * 16 * 4}
    assert {name: found.by_component[name] for name in by_hand} == by_hand


@torch.no_grad()
def test_samples_do_not_interact_and_modes_agree():
    net, x = shaken(encoder()).train(), samples()
    whole = net(x)
    for name, value in net(x[1:2]).items():
        assert torch.allclose(value, whole[name][1:2], atol=1e-5), name
    for name, value in net.eval()(x).items():
        assert torch.equal(value, whole[name])
    x[0, 0, 3, 3] = torch.nan
    for name, value in net(x).items():
        assert value[0].isnan().any() and torch.equal(value[1:], whole[name][1:]), name


def test_under_autocast_maps_are_narrow_and_statistics_are_not():
    net = shaken(encoder(decoder=True, width=32))
    exact = net(samples())
    seen = []
    hook = net.stem.norm.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0], output)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = net(samples())
        filled, logits = net.reconstruct(net.patches(samples()))
    hook.remove()
    given, made = seen[0]
    assert given.dtype == made.dtype == torch.bfloat16
    norm = net.stem.norm
    by_hand = F.group_norm(given.float(), norm.num_groups, norm.weight, norm.bias, norm.eps)
    assert torch.equal(made, by_hand.bfloat16())
    for name, value in found.items():
        wide = name == "norm_x" or "_std" in name
        assert value.dtype == (torch.float32 if wide else torch.bfloat16), name
        assert (value.float() - exact[name]).norm() < 0.03 * exact[name].norm(), name
    (filled.float().square().mean() + logits.float().square().mean()).backward()
    assert all(value.grad.dtype == torch.float32 and value.grad.isfinite().all() for value in net.parameters())


def test_gradient_reaches_the_samples():
    net = encoder().requires_grad_(False)
    x = samples().requires_grad_()
    sum(value.square().sum() for value in net(x).values()).backward()
    assert x.grad.isfinite().all() and x.grad.flatten(1).abs().sum(dim=1).gt(0).all()


def test_initial_weights():
    """LeCun normal cut off at two standard deviations; gains 1, biases 0."""
    net = encoder(decoder=True, width=32, norm_groups=32)
    for name, value in net.named_parameters():
        if value.dim() == 1:
            assert value.eq(0 if name.endswith("bias") else 1).all(), name
        elif value.numel() > 4000:
            std = value[0].numel() ** -0.5
            assert value.std().item() == pytest.approx(std, rel=0.05), name
            assert 2 * std < value.abs().max() <= 2 * std / 0.8796, name


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"patch_size": 3}, "image_size 8 is not a multiple of patch_size 3"),
        ({"depths": ()}, "depths is empty, expected the blocks of at least one stage"),
    ],
)
def test_refused_sizes(changes, problem):
    with pytest.raises(ValueError, match=problem):
        encoder(**changes)


def test_without_decoder_or_classifier():
    net = encoder(num_classes=0)
    assert not [name for name in net.state_dict() if name.startswith(("decoder", "classifier"))]
    with pytest.raises(UserError, match=r"^LatentMAE has no decoder to fill in patches with: set decoder: true$"):
        net.reconstruct(net.patches(samples()))
    assert encoder(num_classes=0, decoder=True).reconstruct(samples())[1] is None
