"""The timing harness on computations of known length, memory, and the benchmark of the two inverses."""

import json
import platform
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from genflow.benchmarks import timing
from genflow.benchmarks.inverse import InverseOptions, _best, benchmark_inverse, random_method
from genflow.benchmarks.timing import compare, facts, interleaved, matrix_rate, paired, record
from genflow.config.graph import ComponentGraph
from genflow.errors import UserError
from genflow.generators.flow import FlowGenerator
from genflow.generators.reverse import OnePassGenerator

CPU = torch.device("cpu")


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still unless its ``tick`` is called."""

    class Clock:
        now = 0.0

        def tick(self, seconds):
            self.now += seconds

    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", lambda: clock.now)
    return clock


def test_runs_take_turns_and_the_clock_is_read_after_waiting(clock):
    calls = []

    def run(name, seconds):
        calls.append(name)
        clock.tick(seconds)

    def synchronise():
        calls.append("wait")
        clock.tick(0.5)  # what a device still has to do

    runs = [lambda: run("a", 1.0), lambda: run("b", 4.0), lambda: run("c", 2.0)]
    seconds = interleaved(runs, 2, warmup=1, synchronise=synchronise, advance=lambda: calls.append("done"))
    assert calls == ["wait", "a", "wait", "done", "wait", "b", "wait", "done", "wait", "c", "wait", "done"] * 3
    assert seconds == [[1.5, 1.5], [4.5, 4.5], [2.5, 2.5]]


def test_ratios_are_those_of_neighbouring_runs(clock):
    lengths = {"a": iter([9.0, 1.0, 2.0, 4.0]), "b": iter([9.0, 10.0, 40.0, 20.0])}
    order = []

    def run(name):
        order.append(name)
        clock.tick(next(lengths[name]))

    found = paired(lambda: run("a"), lambda: run("b"), repeats=3)
    assert order == ["a", "b"] * 4
    # 10, 20 and 5; the ratio of the medians would have been 10 as well, those of the extremes 2.5 and 40
    assert (found.a, found.b, found.ratio, found.low, found.high) == (2.0, 20.0, 10.0, 5.0, 20.0)


def test_a_drift_of_the_machine_leaves_the_ratios_alone(clock):
    speed = iter([1.0, 1.0, 3.0, 3.0, 7.0, 7.0])
    found = paired(lambda: clock.tick(next(speed)), lambda: clock.tick(2 * next(speed)), repeats=3, warmup=0)
    assert (found.ratio, found.low, found.high) == (2.0, 2.0, 2.0)


MEASURED = """
import time, torch
from genflow.benchmarks.timing import memory

size = 2**26

def run():
    held = [torch.ones(2**14) for _ in range(size // 2**16)]  # small ones stay with the allocator when freed
    time.sleep(0.05)
    return sum(part[0] for part in held)

module, cpu = torch.nn.BatchNorm1d(4), torch.device("cpu")
first, second, nothing = memory(run, [module], cpu), memory(run, [], cpu), memory(lambda: time.sleep(0.01), [], cpu)
print(first.weights, first.working / size, second.working / size, nothing.working / size)
"""


@pytest.mark.skipif(platform.system() != "Linux", reason="a process's memory is known on Linux alone")
def test_memory_of_weights_and_of_a_run():
    # In a process of its own: earlier tests give memory back when they like.
    done = subprocess.run([sys.executable, "-c", MEASURED], check=True, capture_output=True, text=True)
    weights, first, second, nothing = map(float, done.stdout.split())
    assert weights == 16 * 4 + 8  # 4 + 4 parameters, 4 + 4 buffers in float32 and a counter in int64
    assert 0.98 <= first < 2 and 0.5 < second < 2 and nothing < 1 / 8


def test_facts_and_record():
    known = facts(CPU)
    assert known["hardware"]["cpu"] and known["hardware"]["cores"] >= 1
    assert known["hardware"]["threads"] == torch.get_num_threads()
    assert known["versions"]["torch"] == torch.__version__
    assert known["versions"]["python"] == platform.python_version()
    entry = record("name", compare([1.0], [3.0]), known, batch=2)
    assert json.loads(json.dumps(entry)) == entry
    assert list(entry) == ["benchmark", "a", "b", "ratio", "low", "high", "hardware", "versions", "batch"]
    assert (entry["a"], entry["b"], entry["ratio"]) == (1.0, 3.0, 3.0)


def test_matrix_rate_is_multiply_adds_per_second_of_a_product_that_takes_long_enough(monkeypatch):
    lengths = iter([[0.01], [0.04, 0.01, 0.2], [0.5, 0.25, 1.0]])
    monkeypatch.setattr(timing, "interleaved", lambda *_, **__: [next(lengths)])
    assert matrix_rate(CPU, torch.float32) == 1024**3 / 0.5


# One pass against the exact inverse

ROOT = Path(__file__).parents[2]
RECIPE = str(ROOT / "recipes" / "biflow_digits.yaml")
TEACHER = "prerequisites.teacher.recipe.model.flow"
TINY = [
    *(f"model.inverse.backbone.{option}" for option in ("width=16", "heads=2", "layers=1", "groups=2")),
    *(f"{TEACHER}.{option}" for option in ("width=16", "head_width=8", "blocks=2", "layers=1")),
]


@pytest.fixture(scope="module")
def graph():
    return ComponentGraph.load(RECIPE, TINY)


def test_random_networks_have_no_idle_part_and_stay_finite(graph):
    state = torch.random.get_rng_state()
    method, again = random_method(graph), random_method(graph)
    assert torch.equal(torch.random.get_rng_state(), state)
    for network, other in ((method.generator.network, again.generator.network), (method.teacher, again.teacher)):
        for name, parameter in network.named_parameters():
            assert parameter.any() and not parameter.requires_grad, name
            assert torch.equal(parameter, other.get_parameter(name)), name
    labels = torch.arange(4)
    z = method.teacher(method.teacher.inverse(torch.randn(4, 1, 8, 8), labels), labels).latent
    assert z.isfinite().all() and 0.5 < z.std() < 2
    one, two = (method.generator.sample(labels, seed, guidance=1.0, decode=False) for seed in (0, 1))
    assert (one - two).abs().max() > 1e-3


def test_record_of_the_two_inverses():
    options = InverseOptions(batches=[1, 3], repeats=2, guidance=0.5, score=True, decoder=True, decode_batch=2)
    advances = []
    report = benchmark_inverse(RECIPE, options, TINY, lambda: advances.append(1))
    assert len(advances) == options.runs == 2 * (3 + 2 * 3)
    assert json.loads(json.dumps(report)) == report
    assert {"a", "b", "ratio", "low", "high", "hardware", "versions"} <= report.keys()
    assert [entry["batch"] for entry in report["batches"]] == [1, 3]
    for entry in report["batches"]:
        assert len(entry["runs_a"]) == len(entry["runs_b"]) == 2
        assert entry["a"] == pytest.approx(sum(entry["runs_a"]) / 2)
        # 2 blocks of 16 tokens one after the other against one pass
        assert entry["low"] <= entry["ratio"] <= entry["high"] and entry["ratio"] > 1
        assert entry["macs_per_second"] == pytest.approx(report["macs_per_image"] / entry["a"])
        assert entry["share_of_matrix_rate"] == pytest.approx(entry["macs_per_second"] / report["matrix_rate"])
        decoded = entry["with_decoder"]
        for side in ("a", "b"):
            sums = [run + decode for run, decode in zip(entry[f"runs_{side}"], entry["runs_decoder"], strict=True)]
            assert decoded[f"runs_{side}"] == sums
    network = random_method(ComponentGraph.load(RECIPE, TINY)).generator.network
    assert report["batches"][0]["memory_a"]["weights"] == 4 * sum(
        tensor.numel() for tensor in (*network.parameters(), *network.buffers())
    )


def test_both_sides_start_from_the_same_noise_and_labels(monkeypatch):
    seen = {}

    def spy(cls, name):
        original = getattr(cls, name)

        def call(self, noise, condition):
            seen.setdefault(name, []).append((noise, condition.labels, condition.guidance))
            return original(self, noise, condition)

        monkeypatch.setattr(cls, name, call)

    spy(FlowGenerator, "forward")
    spy(OnePassGenerator, "evaluate")
    benchmark_inverse(RECIPE, InverseOptions(batches=[2], repeats=1, guidance=1.5), TINY)
    reference, *others = seen["forward"] + seen["evaluate"]
    assert len(seen["forward"]) == 2 and len(seen["evaluate"]) == 3  # with those that measure memory
    assert reference[2].tolist() == [1.5, 1.5]
    for other in others:
        assert all(torch.equal(*pair) for pair in zip(reference, other, strict=True))


def test_best_batch_of_either_side():
    entries = [
        {"a": 2.0, "b": 8.0, "ratio": 4.1, "low": 3.0, "high": 5.0, "runs_a": [2.0, 2.5], "runs_b": [7.0, 9.0]},
        {"a": 1.0, "b": 9.0, "ratio": 9.1, "low": 8.0, "high": 9.5, "runs_a": [0.5, 1.5], "runs_b": [9.0, 9.0]},
    ]
    found = _best(entries)
    assert (found.a, found.b, found.ratio) == (1.0, 8.0, 8.0)
    assert found.low == 7.0 / 1.5 and found.high == 9.0 / 0.5
    entries[1]["b"] = 7.0  # best for both: its runs pair up
    assert (_best(entries).ratio, _best(entries).low, _best(entries).high) == (9.1, 8.0, 9.5)


def test_batches_of_a_device():
    assert InverseOptions().batch_sizes == [1, 8]
    assert InverseOptions(device="cuda").batch_sizes == [1, 2, 4, 8, 16, 32, 64, 128, 256]
    for options, message in (
        ({"repeats": 0}, "--repeats: found 0, expected at least 1"),
        ({"batches": [4, 0]}, "--batch: found 0, expected at least 1"),
        ({"decode_batch": -1}, "--decode-batch: found -1, expected at least 1"),
    ):
        with pytest.raises(UserError) as caught:
            InverseOptions(**options)
        assert str(caught.value) == message


def test_samples_that_are_not_finite_are_no_measurement(monkeypatch):
    monkeypatch.setattr(FlowGenerator, "forward", lambda self, noise, condition: noise / 0)
    with pytest.raises(UserError) as caught:
        benchmark_inverse(RECIPE, InverseOptions(batches=[1], repeats=1), TINY)
    assert str(caught.value) == "the exact inverse returned samples that are not finite"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_both_inverses_on_a_gpu():
    """In bfloat16, the one-pass side compiled, the exact side from CUDA graphs; more batch sizes than one."""
    options = InverseOptions([1, 4], repeats=2, precision="bfloat16", compile=True, device="cuda")
    report = benchmark_inverse(RECIPE, options, TINY)
    assert report["hardware"]["gpu"] and report["ratio"] > 1
    assert all(entry["memory_b"]["working"] > 0 for entry in report["batches"])
