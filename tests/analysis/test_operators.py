"""Multiply-adds of what torch's own layers use, against numbers worked out by hand, with and without numbers."""

import pytest
import torch
import torch.nn.functional as F
from torch import fft, nn
from torch.nn.utils import parametrizations

from genflow.analysis.flops import count_macs
from genflow.analysis.operators import UncountedOperatorError, known_handles


class Applied(nn.Module):
    """A function as a layer, with layers of its own."""

    def __init__(self, function, *layers):
        super().__init__()
        self.function = function
        self.layers = nn.ModuleList(layers)

    def forward(self, *tensors):
        return self.function(*tensors, *self.layers)


def first(x, layer):
    return layer(x)[0]


CONVOLUTIONS = [
    # B I L (O / groups) K of the input for transposed ones, B O L (I / groups) K of the output for the others.
    (nn.ConvTranspose1d(4, 6, 3, stride=2), (2, 4, 5), 2 * 4 * 5 * 6 * 3),
    (nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1), (1, 4, 5, 5), 4 * 25 * 6 * 9),
    (nn.ConvTranspose2d(4, 6, (2, 3), groups=2, dilation=2), (1, 4, 5, 7), 4 * 35 * 3 * 6),
    (nn.ConvTranspose3d(4, 6, 2), (1, 4, 3, 3, 3), 4 * 27 * 6 * 8),
    (nn.ConvTranspose1d(4, 6, 3), (4, 5), 4 * 5 * 6 * 3),
    (nn.Conv1d(4, 6, 4, padding="same"), (2, 4, 9), 2 * 6 * 9 * 4 * 4),
    (nn.Conv2d(4, 6, 3, padding="same", dilation=2, groups=2), (1, 4, 5, 7), 6 * 35 * 2 * 9),
    (nn.Conv2d(4, 6, 3, padding="valid", stride=2), (1, 4, 9, 9), 6 * 16 * 4 * 9),
    (nn.Conv3d(4, 6, 3, padding="same"), (1, 4, 3, 3, 3), 6 * 27 * 4 * 27),
    (nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), (1, 4, 5, 5), 6 * 25 * 4 * 9),
    (nn.Conv1d(4, 6, 3), (4, 5), 6 * 3 * 4 * 3),
]
POOLINGS = [
    *((getattr(nn, f"{kind}Pool{axes}d")(2), (1, 3, *[6] * axes), 0) for kind in ("Max", "Avg") for axes in (1, 2, 3)),
    *(
        (getattr(nn, f"Adaptive{kind}Pool{axes}d")(size), (1, 3, *[6] * axes), 0)
        for kind in ("Max", "Avg")
        for axes in (1, 2, 3)
        for size in (1, 4)
    ),
    (nn.LPPool2d(2, 2), (1, 3, 6, 6), 0),
    (nn.FractionalMaxPool2d(2, output_size=3), (1, 3, 8, 8), 0),
]
NORMS = [
    # Own statistics 5 per element with gains and 4 without; running ones, as in evaluation, 2 and 1.
    *((getattr(nn, f"BatchNorm{axes}d")(3), (2, 3, *[4] * axes), 2 * 2 * 3 * 4**axes) for axes in (1, 2, 3)),
    (nn.BatchNorm2d(3, affine=False), (2, 3, 4, 4), 96),
    (nn.BatchNorm2d(3, track_running_stats=False), (2, 3, 4, 4), 5 * 96),
    (Applied(lambda x: F.batch_norm(x, None, None, training=True)), (2, 3, 4, 4), 4 * 96),
    *((getattr(nn, f"InstanceNorm{axes}d")(3), (2, 3, *[4] * axes), 4 * 2 * 3 * 4**axes) for axes in (1, 2, 3)),
    (nn.InstanceNorm2d(3, affine=True), (2, 3, 4, 4), 5 * 96),
    (nn.InstanceNorm2d(3, affine=True, track_running_stats=True), (2, 3, 4, 4), 2 * 96),
    (nn.LayerNorm(3), (3,), 5 * 3),
    (nn.GroupNorm(3, 6), (2, 6, 2, 2, 2, 2), 5 * 192),
    # Linear 2 x 4 x 6 twice over; the weight's squares and its scaling.
    (parametrizations.weight_norm(nn.Linear(4, 6)), (2, 4), 48 + 2 * 24),
    (parametrizations.spectral_norm(nn.Linear(4, 6)), (2, 4), 48 + 24 + 6),  # u W v
]
RECURRENT = [
    # Two layers in two directions: gates x steps x (input and state) x width.
    (Applied(first, nn.LSTM(5, 7, 2, bidirectional=True)), (3, 2, 5), 4 * 6 * 2 * (7 * (5 + 7) + 7 * (14 + 7))),
    (Applied(first, nn.GRU(5, 7, batch_first=True)), (2, 3, 5), 3 * 6 * 7 * (5 + 7)),
    (Applied(first, nn.RNN(5, 7, bias=False)), (3, 5), 3 * 7 * (5 + 7)),
    (Applied(first, nn.RNN(5, 7, nonlinearity="relu")), (3, 2, 5), 6 * 7 * (5 + 7)),
    (Applied(first, nn.LSTM(5, 7, proj_size=3)), (3, 2, 5), 6 * (4 * 7 * (5 + 3) + 3 * 7)),
    (Applied(first, nn.LSTMCell(5, 7)), (2, 5), 2 * 4 * 7 * (5 + 7)),
    (nn.GRUCell(5, 7), (2, 5), 2 * 3 * 7 * (5 + 7)),
]
TRANSFORMS = [
    # 5/2 N log2 N each, half for real ones.
    (Applied(fft.fft), (3, 8), 3 * 60),
    (Applied(lambda x: fft.ifft(x, n=16)), (3, 8), 3 * 160),
    (Applied(fft.fft2), (3, 4, 8), 3 * 400),
    (Applied(lambda x: fft.fftn(x, dim=(0, 2))), (4, 5, 8), 5 * 400),
    (Applied(fft.fftn), (4, 8), 400),
    (Applied(lambda x: fft.rfft(x, norm="ortho")), (3, 8), 3 * 30),
    (Applied(lambda x: fft.rfft(x, n=16)), (3, 8), 3 * 80),
    (Applied(lambda x: fft.rfft2(x, s=(4, 8))), (3, 7, 7), 3 * 200),
    (Applied(lambda x: fft.irfft(fft.rfft(x), n=8)), (3, 8), 3 * 60),
    (Applied(lambda x: fft.irfft2(fft.rfft2(x))), (3, 4, 8), 3 * 400),
    (Applied(lambda x: fft.fftshift(x) + fft.fftfreq(8, device=x.device)), (3, 8), 0),
]
RESIZING = [
    # The neighbours of every output element.
    *(
        (
            Applied(lambda x, mode=mode: F.interpolate(x, scale_factor=2, mode=mode)),
            (1, 3, *[4] * axes),
            taps * 3 * 8**axes,
        )
        for mode, axes, taps in [
            ("linear", 1, 2),
            ("bilinear", 2, 4),
            ("trilinear", 3, 8),
            ("bicubic", 2, 16),
            *((mode, axes, 0) for mode in ("nearest", "nearest-exact", "area") for axes in (1, 2, 3)),
        ]
    ),
    (nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True), (1, 3, 4, 4), 4 * 3 * 64),
    # From 6 x 9 to 3 x 3: 4 x 3 taps across in 6 rows, then 4 x 2 down in 3; to larger grids as many as without.
    (Applied(lambda x: F.interpolate(x, (3, 3), mode="bicubic", antialias=True)), (1, 2, 6, 9), 2 * (18 * 12 + 9 * 8)),
    (Applied(lambda x: F.interpolate(x, (3, 3), mode="bilinear", antialias=True)), (1, 2, 6, 9), 2 * (18 * 6 + 9 * 4)),
    (Applied(lambda x: F.interpolate(x, (8, 8), mode="bilinear", antialias=True)), (1, 2, 4, 4), 2 * (32 * 2 + 64 * 2)),
    *((layer, (1, 4, 4, 4), 0) for layer in (nn.PixelShuffle(2), nn.PixelUnshuffle(2), nn.ChannelShuffle(2))),
    (nn.Unfold(2), (1, 4, 4, 4), 0),
    (nn.Fold((4, 4), 2, stride=2), (1, 8, 4), 0),
    (nn.ReflectionPad1d(1), (1, 4, 4), 0),
    (nn.ReplicationPad3d(1), (1, 4, 4, 4, 4), 0),
]
ACTIVATIONS = (
    "CELU ELU GELU GLU Hardshrink Hardsigmoid Hardswish Hardtanh LeakyReLU LogSigmoid Mish PReLU ReLU ReLU6 RReLU SELU "
    "SiLU Sigmoid Softplus Softshrink Softsign Tanh Tanhshrink AlphaDropout FeatureAlphaDropout Dropout2d"
)
ELEMENTWISE = [
    (Applied(lambda x: x.cumprod(1) + x.cumsum(1) + x.prod()), (2, 5), 0),
    *((getattr(nn, name)(), (2, 4, 4), 0) for name in ACTIVATIONS.split()),
    (Applied(lambda x, layer: layer(x.long()), nn.EmbeddingBag(5, 3)), (2, 4), 0),
]
#: Embedding maps 4 x 5 x 8 x 8 and logits with weighted sum 2 x 5 x 5 x 8, for 2 sequences.
ATTENTION = [
    (Applied(lambda x, layer: layer(x, x, x)[0], nn.MultiheadAttention(8, 2, batch_first=True)), (2, 5, 8), 3360),
    (nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), (2, 5, 8), 3360 + 2 * 5 * 2 * 8 * 16 + 2 * 5 * 80),
]


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(
    ("layer", "shape", "macs"),
    [
        pytest.param(*case, id=f"{type(case[0]).__name__}-{index}")
        for index, case in enumerate(
            [*CONVOLUTIONS, *POOLINGS, *NORMS, *RECURRENT, *TRANSFORMS, *RESIZING, *ELEMENTWISE, *ATTENTION]
        )
    ],
)
def test_layers(device, layer, shape, macs):
    inputs = (torch.zeros(shape, device=device),)
    assert count_macs(layer.to_empty(device=device) if device == "meta" else layer, inputs).total == macs


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(
    ("function", "shapes", "macs"),
    [
        (torch.cdist, [(2, 5, 3), (2, 7, 3)], 2 * 5 * 7 * 3),
        (lambda x, y: torch.cdist(x, y, p=1.0), [(5, 3), (7, 3)], 5 * 7 * 3),
        (F.pairwise_distance, [(5, 3), (5, 3)], 15),
        (F.cosine_similarity, [(5, 3), (5, 3)], 3 * 15),
        (F.bilinear, [(2, 3), (2, 4), (5, 3, 4)], 2 * 5 * (3 * 4 + 4)),
        (F.grid_sample, [(1, 3, 4, 4), (1, 5, 6, 2)], 3 * 30 * 4),
        (lambda x, y: F.grid_sample(x, y, mode="bicubic"), [(1, 3, 4, 4), (1, 5, 6, 2)], 3 * 30 * 16),
        (lambda x, y: F.grid_sample(x, y, mode="nearest"), [(1, 3, 4, 4), (1, 5, 6, 2)], 0),
        (F.grid_sample, [(1, 3, 4, 4, 4), (1, 2, 5, 6, 3)], 3 * 60 * 8),
        (lambda x: F.affine_grid(x, (2, 1, 4, 5)), [(2, 2, 3)], 2 * 20 * 2 * 3),
        (lambda x, y: torch.tensordot(x, y, 2), [(2, 3, 4), (3, 4, 5)], 2 * 12 * 5),
        (torch.outer, [(3,), (4,)], 12),
        (torch.inner, [(2, 3), (4, 3)], 2 * 4 * 3),
        (torch.addmv, [(4,), (4, 3), (3,)], 12),
        (lambda x: x + torch.ones(3), [(2, 3)], 0),  # made on no device in particular
    ],
)
def test_functions(device, function, shapes, macs):
    inputs = tuple(torch.zeros(shape, device=device) for shape in shapes)
    assert count_macs(nn.Identity(), inputs, function).total == macs


def test_packed_sequences():
    packed = nn.utils.rnn.pack_sequence([torch.zeros(3, 5), torch.zeros(1, 5)])

    layer = nn.GRU(5, 7)

    def run(data):
        return layer(nn.utils.rnn.PackedSequence(data, packed.batch_sizes))[0].data

    assert count_macs(layer, (packed.data,), run).total == (3 + 1) * 3 * 7 * (5 + 7)


def test_every_name_is_an_operator_of_torch():
    names = {schema.name for schema in torch._C._jit_get_all_schemas()}
    in_place = {name for name in known_handles() if name.endswith("_")}
    assert {name for name in known_handles().keys() - in_place if name not in names} == set()


def test_a_form_that_a_handle_does_not_foresee_is_one_line_that_names_the_operator():
    from genflow.analysis import flops

    def broken(inputs, outputs):
        return 1 // 0

    known = dict(flops._registered)
    try:
        flops.register_handle("aten::cdist", broken)
        with pytest.raises(UncountedOperatorError, match=r"^cannot count this form of aten::cdist: ZeroDivisionError"):
            count_macs(nn.Identity(), (torch.zeros(2, 3),), lambda x: torch.cdist(x, x))
    finally:
        flops._registered.clear()
        flops._registered.update(known)
