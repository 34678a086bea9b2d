"""How an update divides among GPUs: formulas, and counts of updates against what is worked out by hand."""

import copy
import dataclasses
import math

import pytest
import torch

from genflow.analysis import scaling
from genflow.analysis.flops import count_macs
from genflow.analysis.operator_counter import OperatorCounter
from genflow.analysis.operators import NotCountedError
from genflow.analysis.scaling import Machine, Macs, UpdateCost, estimate, ring_all_reduce, ring_gather, sharded_traffic
from genflow.config.graph import ComponentGraph
from genflow.data.queue_feed import QueueFeed
from genflow.engine import muon
from genflow.engine.update_cost import count_updates
from genflow.errors import UserError

#: Rates that make the arithmetic visible.
ROUND = Machine(
    reduced_rate=100.0,
    full_rate=10.0,
    memory_rate=8.0,
    node=8,
    node_link=60.0,
    network_link=5.0,
    reduced_share=0.5,
    full_share=1.0,
    link_share=0.5,
    launch=1e-3,
)
COST = UpdateCost(
    gpus=16,
    rows=4,
    parts=2,
    forward=Macs(reduced=200.0, full=10.0),
    backward=Macs(reduced=200.0, full=30.0),
    optimizer=Macs(full=20.0),
    gathered=0,
    sharers=1,
    operators=100,
    parameters=10,
    resident={"weights": 40, "gradients": 40, "optimizer": 80, "averages": 40, "frozen": 1000},
)
WIDTH, SAMPLES = 256, 512
#: Multiply-adds of the toy's generator, four linear maps from 4 inputs to 2 outputs, for one sample.
GENERATOR = 4 * WIDTH + 2 * WIDTH**2 + 2 * WIDTH
#: Of the generated samples of a label against themselves and as many real ones, in the plane: distances, or forces.
PAIRS = SAMPLES * 2 * SAMPLES * 2
#: The drift out of the forces of a temperature.
MIX = SAMPLES * 2


def count(recipe, *overrides, gpus=1, recipe_gpus=1):
    return count_updates(ComponentGraph.load(f"recipes/{recipe}.yaml", overrides), [gpus], recipe_gpus)[gpus]


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)


def test_a_ring_sends_its_bytes():
    assert ring_gather(80.0, 8) == 70 and ring_all_reduce(80.0, 8) == 140
    assert ring_all_reduce(80.0, 1) == 0
    # In a gather every GPU sends n - 1 parts to its neighbour, of 1/n of the bytes each.
    for gpus in (2, 8, 64, 512):
        assert ring_gather(512.0, gpus) == sum(512.0 / gpus for _ in range(gpus - 1))


def test_all_cards_of_a_node_carry_the_rings_between_nodes():
    assert ROUND.ring_rate(8) == 30 and ROUND.ring_rate(9) == 20  # half of 60, and of 8 times 5
    assert dataclasses.replace(ROUND, network_link=50.0).ring_rate(16) == 30
    # The same by levels: within the node, then 1/8 of the bytes between nodes over a card of one's own.
    gpus, size = 64, 1e9
    between = ring_all_reduce(size / 8, gpus // 8) / 50e9
    assert between == pytest.approx(ring_all_reduce(size, gpus) / 400e9, rel=0.12)


def test_an_update_by_hand():
    found = estimate(COST, ROUND)
    assert found.networks == 400 / 50 + 40 / 10 and not found.host_bound
    assert found.sent == 2 * 15 / 16 * 40
    assert found.communication == found.sent / 20
    hidden = (200 / 50 + 30 / 10) / 2  # the backward pass of one micro-batch of two
    assert found.exposed == pytest.approx(max(0.0, 3.75 - hidden))
    assert found.gather == 0 and found.step == 20 / 10 + 2 * 200 / 8
    assert found.seconds == pytest.approx(12 + 0.25 + 52)
    assert found.hours(7200) == pytest.approx(2 * found.seconds)


def test_what_the_optimizer_gathers_is_hidden_by_nothing():
    plain, found = (estimate(dataclasses.replace(COST, gathered=640, sharers=count), ROUND) for count in (1, 8))
    # From 8 GPUs of a node: each receives 7 parts of 80 bytes.
    expected = 7 * 80 / ROUND.ring_rate(8)
    assert found.gather == expected and plain.gather == 0
    assert found.step == plain.step + expected and found.seconds == pytest.approx(plain.seconds + expected)
    assert (found.networks, found.exposed, found.sent) == (plain.networks, plain.exposed, plain.sent)


def test_the_host_may_be_slower_than_the_device():
    slow = dataclasses.replace(COST, operators=20_000)
    assert estimate(slow, ROUND).networks == 20 and estimate(slow, ROUND).host_bound
    assert estimate(slow, ROUND).exposed == 0  # 3.75 seconds behind 7 / 12 of 10


def test_sharding_by_hand():
    found = sharded_traffic(COST, ROUND)
    # Two micro-batches gather twice each, and sum gradients each.
    assert found.float32 == 15 / 16 * (4 * 40 + 2 * 40)
    assert found.bfloat16 == 15 / 16 * (4 * 20 + 2 * 40)
    assert found.within == 7 / 8 * (4 * 40 + 2 * 40) and found.between == 2 * (2 * 1 / 2 * 40 / 8)
    alone = sharded_traffic(dataclasses.replace(COST, gpus=4), ROUND)
    assert alone.within == alone.float32 and alone.between == 0
    # One micro-batch in bfloat16 sends what DDP sends: twice 2 and once 4 bytes, or twice 4.
    one = dataclasses.replace(COST, parts=1)
    assert sharded_traffic(one, ROUND).bfloat16 == ring_all_reduce(40, 16)


def test_an_update_of_drifting_is_counted_as_by_hand():
    cost = count("drift_toy_far")
    assert cost.forward == Macs(full=SAMPLES * GENERATOR + 2 * PAIRS + MIX)
    assert cost.backward == Macs(full=SAMPLES * (2 * GENERATOR - 4 * WIDTH))  # noise needs no gradient
    assert cost.optimizer == Macs() and cost.parts == cost.rows == 1
    numbers = GENERATOR + 3 * WIDTH + 2
    assert cost.parameters == numbers
    assert cost.resident["weights"] == cost.resident["gradients"] == 4 * numbers
    assert cost.resident["optimizer"] == pytest.approx(8 * numbers, rel=1e-3) and cost.resident["averages"] == 0


def test_micro_batches_of_drifting_take_two_more_passes():
    options = ["model.labels_per_update=8", "train_cfg.micro_batches=4"]
    cost = count("drift_toy_far", *options)
    assert (cost.rows, cost.parts) == (8, 4)
    # Distances, distances and forces, and both again with the loss.
    assert cost.forward.full == 8 * (3 * SAMPLES * GENERATOR + 5 * PAIRS + MIX)
    shared = count("drift_toy_far", *options, gpus=4)
    assert (shared.rows, shared.parts) == (2, 1)
    assert shared.forward.full == 2 * (SAMPLES * GENERATOR + 2 * PAIRS + MIX)


def test_what_is_counted_twice_agrees(tiny_recipe):
    graph = ComponentGraph.from_recipe(tiny_recipe)
    cost = count_updates(graph, [2])[2]
    flow = graph.build().flow
    traced = count_macs(flow, (torch.zeros(1, 1, 8, 8),), lambda x: flow(x, None).latent).by_operator
    products = sum(macs for name, macs in traced.items() if name in ("linear", "scaled_dot_product_attention"))
    # 8 images, of which each of 2 processes has half; norms are counted there and not here.
    assert cost.rows == 4 and cost.forward.full == 4 * products < 4 * sum(traced.values())
    assert cost.resident["averages"] == 2 * cost.resident["weights"]


def test_checkpointing_computes_layers_again(tiny_recipe):
    plain = count_updates(ComponentGraph.from_recipe(copy.deepcopy(tiny_recipe)), [1])[1]
    tiny_recipe["train_cfg"]["checkpointing"] = True
    again = count_updates(ComponentGraph.from_recipe(tiny_recipe), [1])[1]
    assert again.forward == plain.forward
    # 8 images, two layers of width 16 on 5 tokens: projections, attention and the first of the two maps of the
    # feedforward; torch stops before the second, whose result nobody needs.
    width, tokens = 16, 5
    layer = tokens * (4 + 4) * width**2 + 2 * tokens**2 * width
    assert again.backward.full - plain.backward.full == 8 * 2 * layer


@pytest.mark.parametrize(("precision", "kind"), [("float32", "full"), ("bfloat16", "reduced")])
def test_newton_schulz_is_counted_as_by_hand(precision, kind):
    optimizer = f"{{type: Muon, newton_schulz_steps: 3, newton_schulz_precision: {precision}}}"
    options = [f"optim_wrapper.optimizer={optimizer}", "model.backbone.layers=3", "model.backbone.width=16"]
    cost = count("drift_toy_far", *options)
    matrices = [(4, 16), (16, 16), (2, 16)]
    per_step = sum(2 * rows**2 * columns + rows**3 for rows, columns in matrices)
    assert dataclasses.asdict(cost.optimizer) == {"reduced": 0, "full": 0, kind: 3 * per_step}
    assert cost.gathered == 0


def test_processes_share_newton_schulz_as_by_hand(monkeypatch):
    # Three square matrices, which fit into a stack of 4 and not into one of 2, and one each of two other shapes.
    options = ["optim_wrapper.optimizer={type: Muon, newton_schulz_steps: 1}", "model.labels_per_update=8"]
    options += ["model.backbone.layers=5", "model.backbone.width=16"]
    square, first, last = (2 * rows**2 * columns + rows**3 for rows, columns in [(16, 16), (4, 16), (2, 16)])
    numbers = [16 * 16, 4 * 16, 2 * 16]
    graph = ComponentGraph.load("recipes/drift_toy_far.yaml", options)
    costs = count_updates(graph, [1, 2, 4, 8])
    assert costs[1].optimizer.full == 3 * square + first + last and costs[1].gathered == 0
    # Of two processes one has two squares; of four and more nobody has more than one of a shape.
    assert costs[2].optimizer.full == pytest.approx(2 * square + first + last)
    assert costs[4].optimizer == costs[8].optimizer and costs[4].optimizer.full == pytest.approx(square + first + last)
    # Float32 results, filled up to as many matrices from every process.
    assert [costs[gpus].gathered for gpus in (2, 4, 8)] == [
        4 * (4 * numbers[0] + 2 * numbers[1] + 2 * numbers[2]),
        4 * 4 * sum(numbers),
        4 * 8 * sum(numbers),
    ]
    monkeypatch.setattr(muon, "_STACK", 2 * numbers[0])
    costs = count_updates(graph, [2, 8])
    # Two and one squares: each stack keeps every process busy for a matrix, and is filled up by itself.
    assert costs[2].optimizer.full == costs[8].optimizer.full == pytest.approx(2 * square + first + last)
    assert costs[8].gathered == 4 * 8 * (2 * numbers[0] + numbers[1] + numbers[2])


@pytest.mark.parametrize("processes", [2, 4])
def test_a_step_shares_what_is_estimated(processes, monkeypatch):
    shapes = [(16, 16), (48, 16), (4, 16), (16, 4), (2, 16)]
    groups = [
        {"params": [torch.nn.Parameter(torch.empty(shape, device="meta"))], "matrices": 3 if shape[0] == 48 else 1}
        for shape in shapes
    ]
    optimizer = muon.Muon(groups)
    for group in groups:
        group["params"][0].grad = torch.empty_like(group["params"][0])
    with OperatorCounter(autocast=False) as alone:
        optimizer.step()
    gathered = []
    monkeypatch.setattr(muon, "get_dist_info", lambda: (0, processes))
    monkeypatch.setattr(
        torch.distributed, "all_gather_into_tensor", lambda whole, _, group: gathered.append(whole.nbytes)
    )
    with OperatorCounter(autocast=False) as shared:
        optimizer.step()
    part, size, sharers = optimizer.shared(processes)
    assert sharers == processes and optimizer.shared(8 * processes)[2] == 8
    assert shared.macs.full == pytest.approx(part * alone.macs.full) and shared.macs.full < alone.macs.full
    assert len(gathered) == 3 and size == sum(gathered)


def test_other_optimizers_share_nothing():
    cost = count("drift_toy_far", "model.labels_per_update=2", gpus=2)
    assert cost.gathered == 0 and estimate(cost).gather == 0


def test_precision_is_what_autocast_would_make_it():
    options = ["optim_wrapper.precision=bfloat16", "model.backbone.layers=3"]
    cost = count("drift_toy_far", *options)
    # The field computes in float32 also under autocast.
    assert cost.forward.full == 2 * PAIRS + MIX and cost.backward.full == 0
    options = ["optim_wrapper.precision=bfloat16", "model.backbone.attention_precision="]
    precise, quick = (count("drift_digits", options[0], options[1] + name) for name in ("float32", "bfloat16"))
    graph = ComponentGraph.load("recipes/drift_digits.yaml").plain["model"]
    backbone, rows = graph["backbone"], graph["labels_per_update"] * graph["samples_per_label"]
    tokens = (backbone["image_size"] // backbone["patch_size"]) ** 2 + backbone["context_tokens"]
    attention = rows * backbone["depth"] * 2 * tokens**2 * backbone["width"]
    assert precise.forward.full - quick.forward.full == attention == quick.forward.reduced - precise.forward.reduced
    assert precise.backward.full - quick.backward.full == 2 * attention
    assert precise.forward.total == quick.forward.total and precise.backward.total == quick.backward.total


def test_batches_that_do_not_divide_say_so():
    graph = ComponentGraph.load("recipes/drift_toy_far.yaml", ["model.labels_per_update=6"])
    found = count_updates(graph, [2, 3, 4])
    assert found[2].rows == 3
    assert found[3].startswith("train_dataloader.batch_size: found 512, expected a multiple of the 3 processes")
    assert found[4].startswith("model.labels_per_update: found 6, expected a multiple of the 4 processes")


def test_what_cannot_be_counted_says_so(tiny_recipe, monkeypatch):
    recipe = {name: value for name, value in tiny_recipe.items() if name != "optim_wrapper"}
    with pytest.raises(UserError, match="optim_wrapper: missing"):
        count_updates(ComponentGraph.from_recipe(recipe), [1])
    monkeypatch.setattr(QueueFeed, "rows_on_meta", lambda *_: {"labels": torch.empty(1, device="meta")})
    with pytest.raises(NotCountedError, match="an update cannot be counted"):
        count("drift_toy_far")


def test_the_data_sheet():
    machine = Machine()
    assert 2 * machine.reduced_rate == 989e12 and 2 * machine.full_rate == 67e12
    assert machine.arithmetic(Macs(reduced=machine.reduced_rate)) == pytest.approx(1 / 0.35)
    assert math.isclose(machine.ring_rate(8) / machine.ring_rate(16), 450 / 400)
    assert (torch.float32.itemsize, torch.bfloat16.itemsize) == (scaling.FLOAT32, scaling.BFLOAT16)
