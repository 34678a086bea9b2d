"""The inverse from graphs: on the CPU with a stand-in that replays operations on fixed memory, and on a GPU."""

from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from genflow.errors import UserError
from genflow.flow_teachers import captured_inverse
from genflow.flow_teachers.captured_inverse import CapturedInverse
from genflow.flow_teachers.tarflow import TARFlow

IMPROVED = {
    "norm": "rms",
    "feedforward": "swiglu",
    "qk_norm": True,
    "positions": "rotary",
    "prefix_tokens": 2,
    "bound": 3.0,
}
STYLES = {"published": {}, "improved": IMPROVED}


def make_flow(style, device="cpu"):
    torch.manual_seed(0)
    flow = TARFlow(4, 2, 2, 16, blocks=2, layers=[1, 2], num_classes=5, head_width=8, **STYLES[style])
    for parameter in flow.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return flow.to(device)


def make_inputs(seed, device="cpu", batch=3):
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(batch, 2, 4, 4, generator=generator)
    return z.to(device), torch.randint(6, (batch,), generator=generator).to(device)


class StandInGraph(TorchDispatchMode):
    """Repeats the recorded operations and writes the results where the first ones lie, as a CUDA graph does."""

    def __init__(self):
        super().__init__()
        self.operations = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        self.operations.append((function, args, kwargs or {}, out))
        return out

    def replay(self):
        for function, args, kwargs, out in self.operations:
            for new, old in zip(tree_leaves(function(*args, **kwargs)), tree_leaves(out), strict=True):
                if isinstance(old, torch.Tensor) and not function.is_view:
                    old.copy_(new)


@pytest.fixture
def graphs(monkeypatch):
    """Stand-ins for everything of CUDA; counts the graphs made."""
    made = []

    def graph():
        made.append(StandInGraph())
        return made[-1]

    @contextmanager
    def capture(graph, pool):
        with graph:
            yield

    stream = SimpleNamespace(wait_stream=lambda other: None)
    monkeypatch.setattr(captured_inverse, "require_cuda", lambda device: None)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", graph)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda given: nullcontext())
    return made


def compare(flow, captured, device, tolerance):
    """Both inverses for changing noise, labels and scales of every form; each form is recorded once."""
    for options in ({}, {"rule": "gaussian"}, {"guided": "shift", "anneal": True, "temperature": 0.7}):
        for seed, guidance in enumerate((1.5, torch.tensor([0.0, 1.0, 3.0], device=device), 0.0)):
            z, labels = make_inputs(seed, device)
            given = z.clone()
            flow.captured = None
            eager = flow.inverse_states(z, labels, guidance, **options)
            flow.captured = captured
            states = flow.inverse_states(z, labels, guidance, **options)
            first = [state.clone() for state in states]
            flow.inverse(*make_inputs(seed + 10, device), guidance, **options)
            assert torch.equal(z, given)
            for state, before, expected in zip(states, first, eager, strict=True):
                assert (state - expected).abs().max() <= tolerance
                assert torch.equal(state, before)  # later replays leave earlier results alone
    assert len(captured.recordings) == 4  # three forms of guidance, and none


@pytest.mark.parametrize("style", STYLES)
def test_replayed_operations_are_the_inverse(graphs, style):
    flow, captured = make_flow(style), CapturedInverse()
    compare(flow, captured, "cpu", 0.0)
    assert len(graphs) == 4 * flow.blocks


def test_new_weights_take_effect(graphs):
    flow = make_flow("improved")
    z, labels = make_inputs(0)
    flow.captured = CapturedInverse()
    before = flow.inverse(z, labels)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.mul_(0.9)
    changed = flow.inverse(z, labels)
    assert len(flow.captured.recordings) == 1
    flow.to(torch.float64)
    moved = flow.inverse(z, labels)
    assert len(flow.captured.recordings) == 2
    flow.float().captured = None
    expected = flow.inverse(z, labels)
    assert torch.equal(changed, expected) and not torch.equal(before, changed)
    assert torch.allclose(moved, expected, atol=1e-5)


def test_batches_dtypes_and_missing_labels_have_recordings_of_their_own(graphs):
    flow = make_flow("improved")
    flow.captured = CapturedInverse()
    z, labels = make_inputs(0)
    with torch.inference_mode():
        whole = flow.inverse(z, labels)
    assert torch.allclose(flow.inverse(z[:2], labels[:2]), whole[:2], atol=1e-5)
    assert flow.inverse(z.double(), labels).dtype == torch.float64
    assert torch.equal(flow.inverse(z, None), flow.inverse(z, torch.full_like(labels, -1)))
    assert len(flow.captured.recordings) == 4


def test_other_devices_are_refused():
    flow = make_flow("improved")
    with pytest.raises(UserError, match="CUDA devices only, found cpu"):
        flow.capture()
    assert flow.captured is None
    flow.captured = CapturedInverse()
    with pytest.raises(UserError, match="CUDA devices only, found cpu"):
        flow.inverse(*make_inputs(0))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("style", STYLES)
def test_captured_inverse_on_a_gpu(style):
    flow = make_flow(style, "cuda")
    flow.capture()
    compare(flow, flow.captured, "cuda", 1e-5)
    z, labels = make_inputs(0, "cuda")
    flow.to(torch.bfloat16)
    half = flow.inverse(z, labels, 1.0)
    flow.captured = None
    assert half.dtype == torch.float32
    assert (half - flow.inverse(z, labels, 1.0)).abs().max() < 0.05
