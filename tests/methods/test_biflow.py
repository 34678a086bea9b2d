"""Stage 2 of BiFlow: what is trained and what is not, the teacher's trajectory, mixed precision, overfitting.

docs/biflow.md, B11 to B17.
"""

import copy

import pytest
import torch
from torch import nn

from genflow.backbones import GroupedTransformer
from genflow.codecs.base import Codec
from genflow.condition import Condition
from genflow.config.sections import AverageSection
from genflow.draws import Draws
from genflow.engine.averages import WeightAverage, swapped
from genflow.flow_teachers import TARFlow
from genflow.generators.reverse import OnePassGenerator
from genflow.guidance import TrainingTimeCFG
from genflow.inverse_heads import HiddenAlignment
from genflow.losses import AdaptiveWeighting, SquaredError
from genflow.methods import BiFlow

SIZE, CHANNELS, PATCH, CLASSES, BLOCKS = 4, 2, 2, 3, 2
NOISE_STD = 0.3


class AffineCodec(Codec):
    """A codec with parameters and a buffer, to see that training leaves them alone."""

    def __init__(self):
        super().__init__()
        self.latent_shape = (CHANNELS, SIZE, SIZE)
        self.decoder = nn.Conv2d(CHANNELS, 3, 1)
        self.batch_norm = nn.BatchNorm2d(CHANNELS)  # would change its buffers in training mode

    def normalize(self, latents):
        return self.batch_norm(latents)

    def decode(self, samples):
        return self.decoder(samples)


def make_teacher(classes=CLASSES, blocks=BLOCKS):
    teacher = TARFlow(SIZE, CHANNELS, PATCH, 16, blocks, 1, classes, head_width=8, prefix_tokens=2, bound=3.0)
    for parameter in teacher.parameters():
        nn.init.normal_(parameter, std=0.15)
    return teacher


def make_method(loss="adaptive", guidance=True, width=16, codec=None, trajectory_norm="state", **options):
    torch.manual_seed(0)
    distance = AdaptiveWeighting(SquaredError()) if loss == "adaptive" else SquaredError("mean")
    backbone = GroupedTransformer(SIZE, CHANNELS, PATCH, width, 2, BLOCKS, 1, 1, CLASSES, 2, 1)
    head = HiddenAlignment(backbone, distance, trajectory_norm=trajectory_norm)
    rule = TrainingTimeCFG() if guidance else None
    return BiFlow(make_teacher(), head, codec or AffineCodec(), distance, NOISE_STD, rule, **options)


def make_batch(batch=8, seed=1, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(batch, CHANNELS, SIZE, SIZE, generator=generator).to(dtype)
    return images, torch.arange(batch) % CLASSES, Draws(0, torch.arange(batch))


def train(method, steps, lr=1e-2, fixed=False, precision=None):
    optimizer = torch.optim.AdamW(method.trained_parameters().values(), lr=lr, betas=(0.9, 0.95), weight_decay=0.01)
    method.train()
    for step in range(steps):
        images, labels, draws = make_batch()
        draws = draws if fixed else Draws(0, draws.positions + step * len(labels))
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bfloat16"):
            terms = method(images, labels, draws)
        optimizer.zero_grad()
        terms["loss"].backward()
        optimizer.step()
        method.after_update()
    return optimizer, terms


def snapshot(method, *names):
    return {name: copy.deepcopy(getattr(method, name).state_dict()) for name in names}


def test_updates_change_the_reverse_model_and_nothing_else():
    method = make_method()
    before = snapshot(method, "teacher", "codec", "inverse")
    optimizer, _ = train(method, 3)
    for name in ("teacher", "codec"):
        for key, value in getattr(method, name).state_dict().items():
            assert torch.equal(value, before[name][key]), key
        assert all(parameter.grad is None for parameter in getattr(method, name).parameters())
        assert not any(parameter.requires_grad for parameter in getattr(method, name).parameters())
    changed = {name for name, p in method.inverse.named_parameters() if not torch.equal(p, before["inverse"][name])}
    assert changed == {name for name, _ in method.inverse.named_parameters()}
    optimized = {parameter for group in optimizer.param_groups for parameter in group["params"]}
    assert optimized == set(method.inverse.parameters())


def test_trained_parameters_and_state_are_those_of_the_reverse_model():
    method = make_method()
    names = {f"inverse.{name}" for name, _ in method.inverse.named_parameters()}
    assert set(method.trained_parameters()) == names
    buffers = {"inverse.trajectory_norm.mean_square", "inverse.trajectory_norm.updates"}
    assert set(method.trained_state()) == names | buffers
    other = make_method()
    train(method, 1)
    other.load_trained_state(method.trained_state())
    assert all(torch.equal(value, other.trained_state()[name]) for name, value in method.trained_state().items())
    state = method.trained_state()
    del state["inverse.backbone.input.weight"]
    with pytest.raises(ValueError, match=r"inverse\.backbone\.input\.weight"):
        other.load_trained_state(state)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("guidance", [True, False])
def test_every_parameter_gets_a_gradient_once_the_zero_gates_have_moved(guidance, precision):
    """Gates and the output map start at zero: the third backward pass is the first that reaches all."""
    method = make_method(guidance=guidance)
    _, first = train(method, 1, precision=precision)
    start = {name for name, parameter in method.inverse.named_parameters() if parameter.grad.any()}
    assert "backbone.output.weight" in start and "backbone.group_layers.0.layers.0.attention_gate" in start
    assert "backbone.group_layers.0.layers.0.attention.qkv.weight" not in start
    assert all(f"projections.{index}.weight" in start for index in range(BLOCKS))
    train(method, 2, precision=precision)
    train(method, 1, precision=precision)
    for name, parameter in method.inverse.named_parameters():
        assert parameter.grad.isfinite().all() and parameter.grad.abs().max() > 0, name
    assert first["loss"].requires_grad


def test_teacher_and_codec_stay_in_evaluation_mode():
    method = make_method()
    for mode in (True, False, True):
        method.train(mode)
        assert method.training == method.inverse.training == mode
        frozen = [*method.teacher.modules(), *method.codec.modules()]
        assert not any(module.training for module in frozen)


def spy(method):
    """Record the teacher's calls and what the reverse model is given."""
    seen = {}

    def keep_teacher(module, arguments, trajectory):
        seen.update(noisy=arguments[0], labels=arguments[1], trajectory=trajectory, training=module.training)

    def keep_inverse(_, arguments):
        seen.update(z=arguments[0], condition=arguments[1])

    method.teacher.register_forward_hook(keep_teacher)
    method.inverse.register_forward_pre_hook(keep_inverse)
    supervise = method.inverse.supervise

    def keep_supervision(hidden, trajectory):
        seen["supervised"] = trajectory
        return supervise(hidden, trajectory)

    method.inverse.supervise = keep_supervision
    return seen


def test_trajectory_is_the_teachers_and_has_no_graph():
    method = make_method().train()
    seen = spy(method)
    images, labels, draws = make_batch()
    method(images, labels, draws)
    trajectory = seen["trajectory"]
    assert seen["supervised"] is trajectory and seen["z"] is trajectory.latent and not seen["training"]
    noise = draws.normal("data noise", images.shape[1:])
    assert torch.allclose(seen["noisy"], method.codec.normalize(images) + NOISE_STD * noise)
    again = method.teacher(seen["noisy"], seen["labels"])
    assert len(trajectory.states) == BLOCKS + 1
    assert torch.equal(trajectory.states[0], seen["noisy"])
    for state, repeated in zip(trajectory.states, again.states, strict=True):
        assert torch.equal(state, repeated) and not state.requires_grad and state.dtype == torch.float32


def test_flow_and_reverse_model_see_the_same_dropped_labels_and_drawn_scales():
    method = make_method()
    seen = spy(method)
    images, labels, draws = make_batch(200)
    method(images, labels, draws)
    assert torch.equal(seen["labels"], seen["condition"].labels)
    assert torch.equal(seen["labels"], method.guidance.drop_labels(labels, CLASSES, draws))
    assert 5 < (seen["labels"] == CLASSES).sum() < 45
    assert torch.equal(seen["condition"].guidance, method.guidance.draw(draws))


def test_without_guidance_no_label_is_dropped_and_every_group_runs_once():
    method = make_method(guidance=False)
    seen, calls = spy(method), []
    groups = [*method.inverse.backbone.group_layers, method.inverse.backbone.denoise_layers]
    for index, group in enumerate(groups):
        group.register_forward_hook(lambda *_, index=index: calls.append(index))
    images, labels, draws = make_batch(200)
    method(images, labels, draws)
    assert torch.equal(seen["condition"].labels, labels) and not seen["condition"].guidance.any()
    assert calls == [1, 0, 2]


def test_loss_is_the_sum_of_its_terms_on_clean_data():
    method = make_method(trajectory_norm="none")
    seen = spy(method)
    images, labels, draws = make_batch()
    terms = method(images, labels, draws)
    named = [f"align_{index}" for index in range(BLOCKS)] + ["reconstruction"]
    sizes = [f"state_square_{index}" for index in range(BLOCKS + 1)]
    assert set(terms) == {"loss", "mean_squared_error", "saturation", *sizes, *named}
    assert terms["loss"].item() == pytest.approx(sum(terms[name].item() for name in named), rel=1e-6)
    assert all(value.dim() == 0 and value.requires_grad == (name == "loss") for name, value in terms.items())
    output = method.inverse(seen["z"], seen["condition"], method.guidance)
    clean = method.codec.normalize(images)
    error = (output.sample - clean).square()
    assert terms["mean_squared_error"].item() == pytest.approx(error.mean().item(), rel=1e-6)
    distance = error.flatten(1).sum(dim=1)
    assert terms["reconstruction"].item() == pytest.approx((distance / (distance + 0.01)).mean().item(), rel=1e-6)


@pytest.mark.parametrize("trajectory_norm", ["none", "sample", "state"])
def test_loss_and_gradient_do_not_depend_on_micro_batches(trajectory_norm):
    method = make_method(trajectory_norm=trajectory_norm)
    train(method, 3)
    method.double().eval()
    images, labels, draws = make_batch(8, dtype=torch.float64)
    gradients = []
    for edges in ([(0, 8)], [(0, 3), (3, 8)]):
        method.zero_grad()
        for start, end in edges:
            terms = method(images[start:end], labels[start:end], draws[start:end])
            (terms["loss"] * (end - start) / 8).backward()
        gradients.append([parameter.grad for parameter in method.inverse.parameters()])
    for whole, parts in zip(*gradients, strict=True):
        assert torch.allclose(whole, parts, atol=1e-6 * whole.abs().max().item())


def test_draws_decide_and_global_random_state_does_not():
    method = make_method("plain")
    train(method, 3)
    method.eval()
    images, labels, draws = make_batch()
    losses = []
    for global_seed, seed in ((1, 0), (2, 0), (1, 1)):
        torch.manual_seed(global_seed)
        losses.append(method(images, labels, Draws(seed, draws.positions))["loss"].item())
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize("loss", ["adaptive", "plain"])
def test_bfloat16_loss_is_near_the_float32_one_and_computed_in_float32(loss):
    method = make_method(loss)
    train(method, 20)
    results = []
    for enabled in (False, True):
        method.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            terms = method(*make_batch())
        assert all(value.dtype == torch.float32 and value.isfinite() for value in terms.values())
        terms["loss"].backward()
        gradient = torch.cat([parameter.grad.flatten() for parameter in method.inverse.parameters()])
        results.append(({name: value.item() for name, value in terms.items()}, gradient))
    (exact, gradient), (half, half_gradient) = results
    for name, value in exact.items():
        assert half[name] == pytest.approx(value, rel=0.03), name
    assert torch.cosine_similarity(gradient, half_gradient, dim=0) > 0.99


def test_default_guidance_is_the_generators():
    assert make_method(default_guidance=1.5).generator.default_guidance == 1.5
    assert make_method().generator.nfe == 1


def test_average_is_what_samples_and_projections_are_not_needed():
    """The generator alone, loaded without the projections, gives the same images."""
    method = make_method(codec=AffineCodec())
    average = WeightAverage(method.trained_parameters(), AverageSection(decay=0.5))
    for step in range(3):
        train(method, 1)
        average.update(method.trained_parameters(), images=8 * (step + 1), batch_size=8)
    labels = torch.tensor([0, 1, 2])
    own = method.generator.sample(labels, seed=0)
    with swapped(method.trained_parameters(), average):
        averaged = method.generator.sample(labels, seed=0)
        state = copy.deepcopy(method.generator.network.state_dict())
    assert not torch.allclose(own, averaged, atol=1e-4)
    assert torch.equal(method.generator.sample(labels, seed=0), own)
    assert not any("projection" in name for name in state)
    network = GroupedTransformer(SIZE, CHANNELS, PATCH, 16, 2, BLOCKS, 1, 1, CLASSES, 2, 1)
    network.load_state_dict(state)
    assert torch.equal(OnePassGenerator(network, method.codec).sample(labels, seed=0), averaged)


def test_components_that_do_not_fit_are_refused():
    backbone = GroupedTransformer(SIZE, CHANNELS, PATCH, 16, 2, BLOCKS, 1, 1, CLASSES, 2, 1)
    head = HiddenAlignment(backbone, SquaredError())
    with pytest.raises(ValueError, match="differ in num_classes: 5 and 3"):
        BiFlow(make_teacher(classes=5), head, AffineCodec(), SquaredError(), NOISE_STD)
    small = TARFlow(2, CHANNELS, 1, 16, BLOCKS, 1, CLASSES, head_width=8)
    with pytest.raises(ValueError, match="differ in image_shape"):
        BiFlow(small, head, AffineCodec(), SquaredError(), NOISE_STD)
    with pytest.raises(ValueError, match="2 groups, the teacher 3 blocks"):
        BiFlow(make_teacher(blocks=3), head, AffineCodec(), SquaredError(), NOISE_STD)
    codec = AffineCodec()
    codec.latent_shape = (CHANNELS, 2 * SIZE, 2 * SIZE)
    with pytest.raises(ValueError, match="codec's latents"):
        BiFlow(make_teacher(), head, codec, SquaredError(), NOISE_STD)
    with pytest.raises(ValueError, match=r"default_guidance is 1\.0 without guidance"):
        BiFlow(make_teacher(), head, AffineCodec(), SquaredError(), NOISE_STD, default_guidance=1.0)


def test_overfits_eight_samples_of_fixed_noise():
    """Reconstruction falls by far more than 20 times, and G(F(x~)) is x."""
    method = make_method(guidance=False, width=32)
    images, labels, draws = make_batch()
    clean = method.codec.normalize(images)
    start = clean.square().mean().item()  # the output map starts at zero
    _, terms = train(method, 250, lr=4e-3, fixed=True)
    assert terms["mean_squared_error"].item() < start / 20
    method.eval()
    with torch.no_grad():
        condition = Condition(labels=labels, guidance=torch.zeros(8))
        trajectory = method.teacher(clean + NOISE_STD * draws.normal("data noise", clean.shape[1:]), labels)
        sample = method.generator(trajectory.latent, condition)
        hidden = method.inverse(trajectory.latent, condition).hidden
    assert (sample - clean).square().mean().item() < start / 20
    targets = method.inverse.trajectory_norm(trajectory.states[:-1])
    for projected, target in zip(method.inverse.project(hidden), targets, strict=True):
        assert (projected - target).square().mean() < target.square().mean() / 20
