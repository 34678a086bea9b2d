"""From a recipe to a graph of components, and from the graph to built objects.

:meth:`ComponentGraph.load` checks a whole recipe before anything is built: every slot against its
kind, every argument against the constructor's signature. :meth:`ComponentGraph.build` then constructs by
dependency injection: a component receives built objects, never configs.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from genflow.config import slots
from genflow.config.building import built_on_meta, construct
from genflow.config.data_facts import fill_facts
from genflow.config.imports import AllowImports, Imports
from genflow.config.locations import make_absolute
from genflow.config.recipe import load_recipe, parse_yaml
from genflow.config.sections import PrerequisiteSection, RecipeSections
from genflow.config.slots import Mismatch, Node, Reference, Section
from genflow.errors import UserError, nearest, shown
from genflow.generators.base import Generator
from genflow.methods.base import Method
from genflow.weights import check_state

#: Given the name of a prerequisite, returns the weights of its artifact, or the artifact itself; None leaves it on the
#: meta device.
WeightLoader = Callable[[str], Mapping[str, Tensor] | nn.Module | None]


@dataclass(frozen=True)
class Prerequisite:
    """A recipe whose artifact another one needs.

    Args:
        graph: its components.
        name: of its run folder.
        run: its run folder, where the recipe says so; None: it lies beside the run that needs it.
    """

    graph: "ComponentGraph"
    name: str
    run: Path | None = None

    def folder(self, work_dir: Path) -> Path:
        """Its run folder, for a run in ``work_dir``."""
        return work_dir.parent / self.name if self.run is None else self.run


class ComponentGraph:
    """The checked components of one recipe, and the recipe itself.

    Args:
        source: the recipe's file, for messages.
        plain: the resolved recipe, plain dictionaries and lists.
        recipe: its checked sections, all of them.
        components: checked shared components by name.
        prerequisites: the recipes that this one needs, by name.
    """

    def __init__(
        self,
        source: str,
        plain: dict[str, Any],
        recipe: Section,
        components: dict[str, Node],
        prerequisites: dict[str, Prerequisite],
    ):
        self.source = source
        self.plain = plain
        self.recipe = recipe
        self.components = components
        self.prerequisites = prerequisites

    @classmethod
    def load(
        cls,
        path: str | Path,
        overrides: Mapping[str, Any] | Iterable[str] | None = None,
        seed: int | None = None,
        allow_imports: AllowImports | Imports = False,
    ) -> "ComponentGraph":
        """Read and check a recipe file.

        Args:
            path, overrides: as in :func:`genflow.config.recipe.load_recipe`.
            seed: in the place of the recipe's; None leaves it.
            allow_imports: which modules of its ``custom_imports`` may be imported, beside those that ``overrides``
                name; see :class:`~genflow.config.imports.Imports`.

        Raises:
            UserError: as :func:`genflow.config.recipe.load_recipe` and :meth:`from_recipe`.
        """
        overrides = overrides if overrides is None or isinstance(overrides, Mapping) else list(overrides)
        recipe = load_recipe(path, overrides)
        if not isinstance(allow_imports, Imports):
            allow_imports = Imports.consented(allow_imports, path, overrides or {})
        if allow_imports.take(recipe, str(path)):
            recipe = load_recipe(path, overrides)  # the new components say which overrides are text
        if seed is not None:
            recipe["seed"] = seed
        return cls.from_recipe(recipe, str(path), allow_imports)

    @classmethod
    def from_recipe(
        cls, recipe: Mapping[str, Any], source: str = "recipe", imports: Imports | None = None
    ) -> "ComponentGraph":
        """Check a resolved recipe (see :func:`genflow.config.recipe.load_recipe`).

        Args:
            recipe: plain data.
            source: what messages call it.
            imports: which modules may be imported; None for no others than are already.

        Raises:
            UserError: one line with the file, the path in the recipe, what was found, what was expected.
        """
        plain = _plain(recipe)
        (imports or Imports()).take(plain, source)
        try:
            slots.check_finite(plain, "")
            fill_facts(plain, lambda node: cls._build_alone(node, source))
            checked = slots.check_section(plain, RecipeSections, "")
            prerequisites = {
                name: cls._from_prerequisite(entry, name, source)
                for name, entry in plain.get("prerequisites", {}).items()
            }
            components = {
                name: slots.check_component(config, f"components.{name}")
                for name, config in plain.get("components", {}).items()
            }
            make_absolute(plain, checked)
            for name, node in components.items():
                make_absolute(plain["components"][name], node)
            for name, prerequisite in prerequisites.items():
                plain["prerequisites"][name]["recipe"] = prerequisite.graph.plain
            for name, argument in slots.section_signature(RecipeSections).items():
                if checked.arguments.get(name) is None:
                    checked.arguments[name] = argument.default
            graph = cls(source, plain, checked, components, prerequisites)
            graph._check_references()
            graph.artifact  # noqa: B018 (it says what is wrong)
            for name, section in checked.arguments.items():
                if not any(slots.walk(section)):  # those with components are built when they are needed
                    graph.section(name)
        except Mismatch as error:
            raise UserError(f"{source}: {error}") from None
        return graph

    @classmethod
    def _from_prerequisite(cls, entry: Any, name: str, source: str) -> Prerequisite:
        if not isinstance(entry, dict) or not isinstance(entry.get("recipe"), dict):
            found = shown(entry)
            raise Mismatch(f"prerequisites.{name}", f"found {found}, expected a recipe that load_recipe has resolved")
        slots.check_section(entry, PrerequisiteSection, f"prerequisites.{name}")
        graph = cls.from_recipe(entry["recipe"], f"{source}: prerequisites.{name}.recipe")
        run = Path(entry["run"]) if entry.get("run") else None
        return Prerequisite(graph, entry.get("name", name), run)

    def _targets(self) -> dict[str, str]:
        """What ``$name`` can refer to, with its kind."""
        clash = self.components.keys() & self.prerequisites.keys()
        if clash:
            raise Mismatch(f"components.{min(clash)}", "a prerequisite has the same name")
        kinds = {name: node.kind for name, node in self.components.items()}
        return kinds | {name: entry.graph.artifact.kind for name, entry in self.prerequisites.items()}

    def _check_references(self) -> None:
        targets, used = self._targets(), set()

        def visit(value: Any, trail: tuple[str, ...]) -> None:
            for item in slots.walk(value):
                if isinstance(item, Node):
                    visit(item.arguments, trail)
                    continue
                if item.name not in targets:
                    raise Mismatch(
                        item.path,
                        f"found '${item.name}', expected one of the shared components and prerequisites "
                        f"({', '.join(sorted(targets)) or 'there are none'}){nearest(item.name, targets)}",
                    )
                if item.kind == Generator.kind:
                    if item.name not in self.prerequisites:
                        raise Mismatch(item.path, f"'${item.name}' is no prerequisite, which alone trains a generator")
                elif item.kind not in (None, targets[item.name]):
                    raise Mismatch(item.path, f"'${item.name}' is a {targets[item.name]}, expected a {item.kind}")
                if item.family is not None:
                    slots.check_family(self.target(item).cls, item.family, item.path)
                if item.name in trail:
                    raise Mismatch(item.path, f"cycle: {' -> '.join((*trail, item.name))}")
                used.add(item.name)
                if item.name in self.components:
                    visit(self.components[item.name].arguments, (*trail, item.name))

        for name, node in self.components.items():
            visit(node.arguments, (name,))
        used.clear()
        visit(self.recipe, ())
        for name in sorted(targets.keys() - used):
            section = "components" if name in self.components else "prerequisites"
            raise Mismatch(f"{section}.{name}", f"is not used; refer to it as ${name} or remove it")

    @property
    def model(self) -> Node:
        """The method's node."""
        return self.recipe.arguments["model"]

    @property
    def artifact(self) -> Node:
        """The node that a recipe gets which names this one as a prerequisite; errors as :meth:`_find_artifact`."""
        found = self._find_artifact()
        return self.prerequisites[found.name].graph.artifact if isinstance(found, Reference) else found

    def _find_artifact(self) -> Node | Reference:
        """The artifact's node, or the prerequisite whose generator, and so whose artifact, is trained further.

        Raises:
            Mismatch: the recipe leaves it out, or puts a prerequisite there.
        """
        node: Any = _without(self.model, self.model.cls.training_only)
        for part in self.model.cls.artifact.split("."):
            if part not in node.arguments:
                raise Mismatch(f"{node.path}.{part}", "missing, it is what the recipe trains")
            node = node.arguments[part]
            if isinstance(node, Reference) and node.kind == Generator.kind:
                return node
            if isinstance(node, Reference):
                if node.name in self.prerequisites:
                    raise Mismatch(node.path, f"'${node.name}' is trained already, expected what is to be trained")
                node = self.components[node.name]
        return node

    def section(self, name: str, weights: WeightLoader | None = None) -> Any:
        """Build one section of the recipe, e.g. ``train_dataloader``, with its defaults.

        Sections of components are built anew at every call; None where the recipe has none and needs none.

        Args:
            name: of the section.
            weights: loads the artifacts of prerequisites; without it they are built on the meta device.
        """
        return self._build(self.recipe.arguments[name], {}, weights)

    def build(
        self,
        weights: WeightLoader | None = None,
        objects: dict[str, Any] | None = None,
        for_training: bool = True,
    ) -> Method:
        """Build the model.

        Args:
            weights: loads the artifacts of prerequisites; without it they are built on the meta device,
                which is enough for counting.
            objects: filled with every built component by its path in the recipe.
            for_training: without it the arguments that the method calls ``training_only`` are left out.

        Raises:
            UserError: a component refuses its arguments; the line names its path in the recipe.
        """
        model = self.model if for_training else _without(self.model, self.model.cls.training_only)
        return self._build(model, {} if objects is None else objects, weights)

    def build_artifact(self, state: Mapping[str, Tensor] | None = None) -> nn.Module:
        """Build the artifact alone and load its weights, or leave it on the meta device without them.

        Raises:
            ValueError: the weights do not fit.
        """
        node = self._find_artifact()
        if isinstance(node, Reference):
            return self.prerequisites[node.name].graph.build_artifact(state)
        if state is None:
            return built_on_meta(lambda: self._build(node, {}, None))
        module = self._build(node, {}, None)
        check_state(module.state_dict(), state)
        module.load_state_dict(state)
        return module

    def build_generator(self, state: Mapping[str, Tensor] | None = None) -> Generator:
        """Build what samples and load its weights, or leave it on the meta device without them.

        Raises:
            UserError: the method trains no generator, or one that needs weights of prerequisites of its own.
            ValueError: the weights do not fit.
        """

        start = self._find_artifact()

        def weights(name: str) -> Mapping[str, Tensor] | None:
            # A start has the weights of this very artifact.
            return state if isinstance(start, Reference) and name == start.name else None

        def build() -> Method:
            return self.build(weights, for_training=False)

        method = built_on_meta(build) if state is None else build()
        generator = method.generator
        if generator is None:
            raise UserError(f"{self.source}: {type(method).__name__} trains no generator")
        if state is not None:
            check_state(method.artifact_module.state_dict(), state)
            method.artifact_module.load_state_dict(state)
            if any(tensor.is_meta for tensor in generator.state_dict().values()):
                raise UserError(f"{self.source}: its samples take the weights of a prerequisite, beside its own")
        return generator

    def build_argument(self, name: str) -> Any:
        """Build one argument of the model alone, such as its codec; None where the recipe does not give it."""
        return self._build(self.model.arguments.get(name), {}, None)

    def _build(self, value: Any, objects: dict[str, Any], weights: WeightLoader | None) -> Any:
        def make(node: Node) -> Any:
            if node.path not in objects:
                arguments = {key: slots.build(entry, make, resolve) for key, entry in node.arguments.items()}
                objects[node.path] = construct(node, arguments, self.source)
            return objects[node.path]

        def resolve(reference: Reference) -> Any:
            if reference.name in self.components:
                return make(self.components[reference.name])
            path = _place(reference)
            if path not in objects:
                given = None if weights is None else weights(reference.name)
                graph = self.prerequisites[reference.name].graph
                if reference.kind == Generator.kind:
                    state = given.state_dict() if isinstance(given, nn.Module) else given
                    objects[path] = graph.build_generator(state)
                else:
                    objects[path] = given if isinstance(given, nn.Module) else graph.build_artifact(given)
            return objects[path]

        try:
            return slots.build(value, make, resolve)
        except Mismatch as error:
            raise UserError(f"{self.source}: {error}") from None

    @classmethod
    def component(cls, text: str, where: str) -> Any:
        """Build a component that refers to no other, written as in a recipe.

        Args:
            text: ``{type: NAME, ...}``.
            where: what messages call it.

        Raises:
            UserError: it is none, or refuses its arguments.
        """
        try:
            return cls._build_alone(slots.check_component(parse_yaml(text, where), where), "command line")
        except Mismatch as error:
            raise UserError(str(error)) from None

    @classmethod
    def _build_alone(cls, node: Node, source: str) -> Any:
        """A checked component that refers to no other."""
        return cls(source, {}, Section("", RecipeSections, {}), {}, {})._build(node, {}, None)

    def nodes(self) -> Iterator[tuple[Node, list[Node]]]:
        """Every component under the model with its children, shared ones once, parents first."""
        seen: set[str] = set()

        def visit(node: Node) -> Iterator[tuple[Node, list[Node]]]:
            if node.path in seen:
                return
            seen.add(node.path)
            children = [self.target(item) for item in slots.walk(node.arguments)]
            yield node, children
            for child in children:
                yield from visit(child)

        yield from visit(self.model)

    def target(self, item: Node | Reference) -> Node:
        """The node itself, or the one a reference means; a prerequisite's stands for its artifact, or its generator."""
        if isinstance(item, Node):
            return item
        if item.name in self.components:
            return self.components[item.name]
        graph = self.prerequisites[item.name].graph
        if item.kind == Generator.kind:
            return Node(_place(item), Generator.kind, graph.model.cls)
        return Node(_place(item), graph.artifact.kind, graph.artifact.cls)


def _place(reference: Reference) -> str:
    """Where a prerequisite's artifact, or its generator, lies among built objects."""
    return f"prerequisites.{reference.name}{'.generator' if reference.kind == Generator.kind else ''}"


def _without(node: Node, paths: Iterable[str]) -> Node:
    """The node without some arguments, named by dotted paths; what they lead through must be a component."""
    arguments = dict(node.arguments)
    for path in paths:
        name, _, rest = path.partition(".")
        if not rest:
            arguments.pop(name, None)
        elif isinstance(arguments.get(name), Node):
            arguments[name] = _without(arguments[name], [rest])
    return replace(node, arguments=arguments)


def _plain(value: Any) -> Any:
    """Mappings and sequences as plain dictionaries and lists."""
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, (list, tuple)) else value
