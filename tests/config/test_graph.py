"""From a resolved recipe to built objects: references, one-line errors with file and path."""

import dataclasses
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from genflow import ComponentGraph, UserError, load_recipe
from genflow.analysis.description import describe
from genflow.config.recipe import dump_yaml
from genflow.config.sections import RecipeSections
from genflow.losses.base import Loss
from genflow.registry import HOOKS, LOSSES

RECIPES = Path(__file__).parents[2] / "recipes"
SMALL_FLOW = [f"model.flow.{entry}" for entry in ("width=16", "head_width=8", "blocks=2", "layers=1")]
SMALL = [
    *(f"prerequisites.teacher.recipe.{entry}" for entry in SMALL_FLOW),
    *(f"model.inverse.backbone.{entry}" for entry in ("width=16", "heads=2", "groups=2", "layers=1")),
    "model.inverse.backbone.denoise_layers=1",
]


@pytest.fixture
def register():
    """Registers components for one test."""
    added = []

    def add(registry, cls):
        registry.register_module(module=cls)
        added.append((registry, cls.__name__))
        return cls

    yield add
    for registry, name in added:
        del registry._module_dict[name], registry.parent._module_dict[name]


@pytest.fixture
def refused(tiny_file):
    """The one line with which the tiny recipe is refused once it is overridden so."""

    def line(*overrides, build=False):
        with pytest.raises(UserError) as caught:
            graph = ComponentGraph.load(tiny_file, overrides)
            if build:
                graph.build()
        message = str(caught.value)
        assert message.isprintable() and message.startswith(f"{tiny_file}: ")
        return message.removeprefix(f"{tiny_file}: ")

    return line


def small_biflow(*overrides):
    return ComponentGraph.load(RECIPES / "biflow_digits.yaml", [*SMALL, *overrides])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("modle={}", "modle: unknown key; nearest match: 'model'"),
        ("text=1", "text: unknown key"),
        ("filename=x", "filename: unknown key"),
        ("train_cfg.max_itres=3", "train_cfg.max_itres: unknown key; nearest match: 'max_iters'"),
        ("train_cfg.max_iters=0", "train_cfg.max_iters: found 0, expected an integer of at least 1"),
        ("train_cfg={}", "train_cfg.max_iters: missing, train_cfg needs it (an integer of at least 1)"),
        ("train_dataloader.batchsize=3", "train_dataloader.batchsize: unknown key; nearest match: 'batch_size'"),
        ("train_dataloader.batch_size=0", "train_dataloader.batch_size: found 0, expected an integer of at least 1"),
        ("default_hooks.logger={interval: 0}", "default_hooks.logger.interval: found 0, expected an integer of"),
        ("default_hooks.checkpoint={interval: 0}", "default_hooks.checkpoint.interval: found 0, expected an integer"),
        ("default_hooks.sampels={}", "default_hooks.sampels: unknown key; nearest match: 'samples'"),
        ("optim_wrapper.clip_grad_norm=0", "optim_wrapper.clip_grad_norm: found 0, expected a number above 0 or null"),
        ("optim_wrapper.precision=float16", "optim_wrapper.precision: found 'float16', expected one of 'float32', "),
        ("optim_wrapper.optimizer.lr=fast", "optim_wrapper.optimizer.lr: found 'fast', expected a number"),
        ("optim_wrapper.optimizer.lr='1e-3'", "optim_wrapper.optimizer.lr: found '1e-3', expected a number; a number"),
        ("optim_wrapper.optimizer.bets=[1, 2]", "optim_wrapper.optimizer.bets: AdamW has no argument 'bets'; nearest"),
        ("optim_wrapper.optimizer.betas=[0.9]", "optim_wrapper.optimizer.betas: found 1 entries, expected 2"),
        ("optim_wrapper.optimizer.type=adam", "optim_wrapper.optimizer.type: found 'adam', expected the name of an "),
        ("ema.main={}", "ema.main: an average needs either decay or half_life"),
        ("ema.main={decay: 2}", "ema.main.decay: found 2, expected a number from 0 to 1 or null"),
        ("ema.main={half_life: x}", "ema.main.half_life: found 'x', expected a number above 0 or null"),
        ("param_scheduler=[{type: WarmupLR}]", "param_scheduler.0.warmup_iters: missing, WarmupLR needs it"),
        ("custom_hooks=[{type: LoggerHook}]", "custom_hooks.0.type: found 'LoggerHook', expected the name of a hook"),
        ("evaluation={type: Digits}", "evaluation.type: found 'Digits', which is a dataset, expected an evaluator"),
        ("seed=1.5", "seed: found 1.5, expected an integer"),
        ("seed=99999999999999999999", "seed: found 99999999999999999999, expected an integer from -92"),
        ("published=3", "published: found 3, expected a mapping"),
        ("model=null", "model: found None, expected a method: a mapping with 'type', or $name"),
        ("model.type=BiFlo", "model.type: found 'BiFlo', expected the name of a method; nearest match: 'BiFlow' "),
        ("model.flow.type=TARflo", "model.flow.type: found 'TARflo', expected the name of a flow teacher; nearest"),
        ("model.flow={type: SquaredError}", "model.flow.type: found 'SquaredError', which is a loss, expected a flow "),
        ("model.flow.widht=3", "model.flow.widht: TARFlow has no argument 'widht'; nearest match: 'width'"),
        ("model.flow={type: TARFlow}", "model.flow.image_size: missing, TARFlow needs it (an integer of at least 1)"),
        ("model.flow.width=true", "model.flow.width: found True, expected an integer"),
        ("model.flow.norm=rmsnorm", "model.flow.norm: found 'rmsnorm', expected one of 'layer', 'rms'; nearest match"),
        ("model.flow.layers=[1, x]", "model.flow.layers.1: found 'x', expected an integer"),
        ("model.codec=Identity", "model.codec: found 'Identity', expected a codec: a mapping with 'type', or $name"),
        ("components=[1]", "components: found [1], expected a mapping"),
        ("components={a: 3}", "components.a: found 3, expected a component: a mapping with 'type'"),
        ("components={a: {type: Foo}}", "components.a.type: found 'Foo', expected the name of a component"),
        ("components={a: {type: SquaredError, x: 1}}", "components.a.x: SquaredError has no argument 'x'"),
        ("custom_imports=module", "custom_imports: found 'module', expected a list of module names"),
        ("custom_imports=[no.such]", "custom_imports: cannot import 'no.such' from PYTHONPATH, "),
    ],
)
def test_mistakes_are_one_line_with_file_and_path(refused, override, message):
    assert refused(override).startswith(message)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.codec=$codek"], "model.codec: found '$codek', expected one of the shared components and "),
        (["model.flow=$codec"], "model.flow: '$codec' is a codec, expected a flow teacher"),
        (["seed=1"], "components.codec: is not used; refer to it as $codec or remove it"),
        (["components.codec.channels=$codec", "model.codec=$codec"], "components.codec.channels: found '$codec'"),
        (
            ["components.loss={type: AdaptiveWeighting, loss: $loss}", "model.codec=$codec"],
            "components.loss.loss: cycle: loss -> loss",
        ),
        (
            [
                "components.a={type: AdaptiveWeighting, loss: $b}",
                "components.b={type: AdaptiveWeighting, loss: $a}",
                "model.codec=$codec",
            ],
            "components.b.loss: cycle: a -> b -> a",
        ),
        (
            ["components.a={type: AdaptiveWeighting, loss: $b}", "components.b={type: SquaredError}"],
            "components.a: is not used; refer to it as $a or remove it",
        ),
    ],
)
def test_shared_components_must_exist_fit_and_be_used(refused, overrides, message):
    assert refused("components={codec: {type: Identity, image_size: 8, channels: 1}}", *overrides).startswith(message)


def test_a_missing_name_shows_the_names_there_are(refused):
    message = refused("components={codec: {type: Identity, image_size: 8, channels: 1}}", "model.codec=$codek")
    assert message.endswith("expected one of the shared components and prerequisites (codec); nearest match: 'codec'")
    assert refused("model.codec=$codek").endswith("prerequisites (there are none)")


def test_prerequisites_must_fit_and_be_used(tiny_file, tmp_path):
    path = tmp_path / "student.yaml"

    def line(*overrides, **prerequisites):
        recipe = load_recipe(RECIPES / "biflow_digits.yaml")
        recipe["prerequisites"] = prerequisites or {"teacher": tiny_file.name}
        path.write_text(dump_yaml(recipe))
        with pytest.raises(UserError) as caught:
            ComponentGraph.load(path, overrides)
        assert str(caught.value).startswith(f"{path}: ") and str(caught.value).isprintable()
        return str(caught.value).removeprefix(f"{path}: ")

    assert line("model.teacher=$techer").endswith("(teacher); nearest match: 'teacher'")
    assert line("model.codec=$teacher") == "model.codec: '$teacher' is a flow teacher, expected a codec"
    unused = line(teacher=tiny_file.name, other=tiny_file.name)
    assert unused == "prerequisites.other: is not used; refer to it as $other or remove it"
    wrong = line("prerequisites.teacher.recipe.model.flow.widht=3")
    assert wrong.startswith("prerequisites.teacher.recipe: model.flow.widht: TARFlow has no argument 'widht'")
    clash = line("components={teacher: {type: SquaredError}}")
    assert clash == "components.teacher: a prerequisite has the same name"


def test_what_a_recipe_trains_cannot_be_a_prerequisite(refused, tiny_file, tmp_path):
    teacher = tmp_path / "teacher.yaml"
    teacher.write_text(tiny_file.read_text())
    line = refused(f"prerequisites={{t: {teacher}}}", "model.flow=$t")
    assert line == "model.flow: '$t' is trained already, expected what is to be trained"


def test_sections_set_to_null_are_left_out(tiny_file):
    graph = ComponentGraph.load(tiny_file, ["evaluation=null", "train_cfg=null"])
    assert graph.recipe.arguments["evaluation"] is None and graph.section("evaluation") is None
    assert graph.section("train_cfg") is None


def test_sections_with_their_defaults(tiny_file):
    graph = ComponentGraph.load(tiny_file, ["published={params_m: 1, source: $5}", "seed=4"])
    assert graph.section("published") == {"params_m": 1, "source": "$5"} and graph.section("seed") == 4
    hooks = graph.section("default_hooks")
    assert hooks.samples.per_class == 1 and hooks.logger.interval == 50
    assert list(graph.section("ema")) == ["main", "slow"]
    assert graph.section("param_scheduler") == graph.section("custom_hooks") == []
    assert ComponentGraph.load(tiny_file, seed=7).section("seed") == 7
    assert graph.recipe.arguments.keys() == {field.name for field in dataclasses.fields(RecipeSections)}
    data = graph.section("train_dataloader")
    assert data.batch_size == 8 and len(data.dataset) == 898 and data.num_workers == 0


# Building


def test_two_slots_with_one_name_share_one_object():
    graph = small_biflow(
        "components={d: {type: SquaredError}}", "model.inverse.loss.loss=$d", "model.reconstruction.loss=$d"
    )
    objects = {}
    method = graph.build(objects=objects)
    assert method.inverse.loss.loss is method.reconstruction.loss is objects["components.d"]
    assert method.inverse.loss is not method.reconstruction
    assert objects["model.inverse"] is method.inverse and objects["model"] is method


def test_a_prerequisite_gets_its_weights_or_stays_on_the_meta_device():
    graph = small_biflow()
    assert next(graph.build().teacher.parameters()).device.type == "meta"
    teacher = graph.prerequisites["teacher"].graph.build_artifact()
    state = {name: torch.full_like(value, 0.5, device="cpu") for name, value in teacher.state_dict().items()}
    asked = []
    built = graph.build(lambda name: asked.append(name) or state)
    assert asked == ["teacher"]
    assert all(value.eq(0.5).all() for value in built.teacher.state_dict().values())
    state["out"] = torch.zeros(1)
    with pytest.raises(ValueError, match="'out' is not in the model"):
        graph.build(lambda _: state)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.flow.layers=[1]", "model.flow: layers lists 1 blocks, blocks is 2"),
        ("model.flow.patch_size=3", "model.flow: image_size 8 is not a multiple of patch_size 3"),
        ("model.flow.width=20", "model.flow: "),
        ("model.flow.width=2147483640", "model.flow: "),
    ],
)
def test_errors_of_constructors_are_one_line_with_the_path(refused, override, message):
    assert refused(override, build=True).startswith(message)


def test_errors_of_methods_and_shared_components_name_their_path():
    with pytest.raises(UserError) as caught:
        small_biflow("model.inverse.backbone.num_classes=9").build()
    path = RECIPES / "biflow_digits.yaml"
    assert str(caught.value) == f"{path}: model: teacher and backbone differ in num_classes: 10 and 9"


def test_errors_of_foreign_constructors_are_one_line_too(refused, register):
    class Failing(Loss):
        def __init__(self, how: str):
            super().__init__()
            if how == "lines":
                raise RuntimeError("first\nsecond")
            {}[how]

    register(LOSSES, Failing)
    with pytest.raises(UserError) as caught:
        small_biflow("model.reconstruction={type: Failing, how: lines}").build()
    assert re.search(r"model\.reconstruction: RuntimeError \(test_graph\.py, line \d+\): first$", str(caught.value))
    assert isinstance(caught.value.__cause__, RuntimeError)  # for whoever writes the component
    with pytest.raises(UserError, match=r"KeyError \(test_graph\.py, line \d+\): 'key'$"):
        small_biflow("model.reconstruction={type: Failing, how: key}").build()


def test_untyped_foreign_constructors_get_their_components_built(register):
    class Foreign(Loss):
        def __init__(self, parts, weights=None, **options):
            super().__init__()
            self.parts = nn.ModuleList(parts)
            self.weights = weights

    register(LOSSES, Foreign)
    graph = small_biflow(
        "components={d: {type: SquaredError}}",
        "model.reconstruction={type: Foreign, parts: [$d, {type: SquaredError, reduction: mean}], weights: {a: $d}}",
    )
    built = graph.build().reconstruction
    assert [part.reduction for part in built.parts] == ["sum", "mean"]
    assert built.weights == {"a": built.parts[0]}
    assert [row.path for row in describe(graph) if row.type == "SquaredError"][-2:] == [
        "components.d",
        "model.reconstruction.parts.1",
    ]


def test_keyword_arguments_reach_base_classes(register):
    class Parent(Loss):
        def __init__(self, power: float, name: str = "p"):
            super().__init__()
            self.power, self.name = power, name

    class Offspring(Parent):
        def __init__(self, extra: int, **kwargs):
            super().__init__(**kwargs)
            self.extra = extra

    register(LOSSES, Offspring)
    built = small_biflow("model.reconstruction={type: Offspring, extra: 1, power: 2}").build().reconstruction
    assert (built.extra, built.power, built.name) == (1, 2.0, "p") and isinstance(built.power, float)
    with pytest.raises(UserError, match=r"reconstruction\.power: found 'x', expected a number"):
        small_biflow("model.reconstruction={type: Offspring, extra: 1, power: x}")
    with pytest.raises(UserError, match=r"model\.reconstruction: TypeError .*missing.*'power'"):
        small_biflow("model.reconstruction={type: Offspring, extra: 1}").build()


def test_optimizers_and_schedulers_wait_for_what_the_engine_supplies(tiny_file):
    overrides = [
        "optim_wrapper.optimizer={type: SGD, lr: 2}",
        "param_scheduler=[{type: WarmupLR, warmup_iters: 4}, {type: LinearLR, start_factor: 0.5, by_epoch: false}]",
    ]
    graph = ComponentGraph.load(tiny_file, overrides)
    optimizer = graph.section("optim_wrapper").optimizer([nn.Parameter(torch.zeros(2))])
    assert type(optimizer) is torch.optim.SGD and optimizer.param_groups[0]["lr"] == 2.0
    warmup, linear = graph.section("param_scheduler")
    with pytest.raises(UserError, match=r"param_scheduler\.0: a cosine needs total_iters"):
        warmup(optimizer)
    warmup.fill("total_iters", 10)
    linear.fill("total_iters", 10)  # it has no such argument
    assert warmup(optimizer).total_iters == 10
    assert type(linear(optimizer)).__name__ == "LinearLR"
    bad = ComponentGraph.load(tiny_file, ["optim_wrapper.optimizer={type: SGD, nesterov: true}"])
    with pytest.raises(UserError) as caught:
        bad.section("optim_wrapper").optimizer([nn.Parameter(torch.zeros(2))])
    assert (
        str(caught.value)
        == f"{tiny_file}: optim_wrapper.optimizer: Nesterov momentum requires a momentum and zero dampening"
    )


def test_custom_hooks_are_built(tiny_file, register):
    from mmengine.hooks import Hook

    class Shout(Hook):
        def __init__(self, loud: bool = False):
            self.loud = loud

    register(HOOKS, Shout)
    graph = ComponentGraph.load(tiny_file, ["custom_hooks=[{type: Shout, loud: true}]"])
    hook = graph.section("custom_hooks")[0]
    assert type(hook) is Shout and hook.loud is True


# Custom imports


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("import no_such_module", "No module named 'no_such_module'"),
        ("def broken(:", "SyntaxError ("),
        ("1 / 0", "ZeroDivisionError (graph_broken_{n}.py, line 1): division by zero"),
        (
            "from genflow.registry import LOSSES\n@LOSSES.register_module()\nclass SquaredError: ...",
            "KeyError (registry.py, line ",
        ),
    ],
)
def test_custom_modules_that_cannot_be_imported(refused, tmp_path, monkeypatch, text, problem, request):
    number = request.node.callspec.indices["text"]
    (tmp_path / f"graph_broken_{number}.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    message = refused(f"custom_imports=[graph_broken_{number}]")
    assert message.startswith(f"custom_imports: cannot import 'graph_broken_{number}' from PYTHONPATH, {tmp_path}: ")
    assert problem.format(n=number) in message


def test_a_plain_dictionary_is_a_recipe_too(tiny_recipe):
    assert type(ComponentGraph.from_recipe(tiny_recipe).build()).__name__ == "MaximumLikelihood"
    tiny_recipe["model"]["flow"]["width"] = "x"
    with pytest.raises(UserError, match=r"^recipe: model\.flow\.width: found 'x', expected an integer$"):
        ComponentGraph.from_recipe(tiny_recipe)
    with pytest.raises(UserError, match=r"^recipe: model: missing, a recipe needs it \(a method\)$"):
        ComponentGraph.from_recipe({})
    tiny_recipe["model"]["flow"]["width"] = 16
    tiny_recipe["prerequisites"] = {"teacher": "file.yaml"}
    with pytest.raises(UserError, match=r"^recipe: prerequisites\.teacher: found 'file\.yaml', expected a recipe "):
        ComponentGraph.from_recipe(tiny_recipe)


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_builds_and_so_does_its_copy(path, tmp_path):
    recipe = load_recipe(path)
    copy = tmp_path / "recipe.yaml"
    copy.write_text(dump_yaml(recipe))
    with torch.device("meta"):
        ours, again = ComponentGraph.from_recipe(recipe).build(), ComponentGraph.load(copy).build()
    shapes = [{name: value.shape for name, value in method.state_dict().items()} for method in (ours, again)]
    assert shapes[0] == shapes[1]
