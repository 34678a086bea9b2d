"""What a recipe may ask its training data: ``$data.num_classes`` stands for a number that only the data know."""

from collections.abc import Callable
from typing import Any

from genflow.config.slots import Mismatch, Node, Reference, check_component, signature_of, walk
from genflow.data.base import Dataset
from genflow.errors import nearest

_MARK = "$data."
_DATASET = "train_dataloader.dataset"
#: What can be asked, and how a data set answers.
FACTS: dict[str, Callable[[Dataset], int]] = {
    "num_classes": lambda dataset: dataset.num_classes,
    "image_size": lambda dataset: dataset.image_shape[-1],
    "channels": lambda dataset: dataset.image_shape[0],
}


def fill_facts(plain: dict[str, Any], build: Callable[[Node], Dataset]) -> None:
    """Put the numbers in the places that ask for them, in place.

    What the recipe states of its data set under the same name is taken from there; the data are then read, and compared
    with it, only when they are needed. A run's recipe holds the numbers, so that it opens where the data are not. A
    prerequisite has data of its own.

    Args:
        plain: a recipe, plain dictionaries and lists.
        build: makes the checked data set.

    Raises:
        Mismatch: what is asked is not known, or the data set is missing or cannot be read.
    """
    asked = [entry for key, value in plain.items() if key != "prerequisites" for entry in _asked(value, plain, key)]
    if not asked:
        return
    node = dataset = None
    for holder, key, path in asked:
        name = holder[key].removeprefix(_MARK)
        if name not in FACTS:
            known = ", ".join(f"{_MARK}{fact}" for fact in FACTS)
            raise Mismatch(path, f"found '{holder[key]}', expected one of {known}{nearest(name, FACTS)}")
        if path.startswith(_DATASET):
            raise Mismatch(path, f"found '{holder[key]}', but the data cannot be asked about themselves")
        node = node or _dataset(plain, path)
        stated = _stated(node, name)
        if stated is None:
            dataset = build(node) if dataset is None else dataset
        holder[key] = FACTS[name](dataset) if stated is None else stated


def _stated(node: Node, name: str) -> int | None:
    """A number that the recipe gives the data set, or that is its default."""
    argument = signature_of(node.cls).get(name)
    value = node.arguments.get(name, None if argument is None or argument.required else argument.default)
    return value if type(value) is int else None


def _asked(value: Any, holder: Any, key: Any, path: str = "") -> list[tuple[Any, Any, str]]:
    """Every place of ``value`` that asks the data: what holds it, its key there, its path in the recipe."""
    path = f"{path}.{key}".lstrip(".")
    if isinstance(value, str) and value.startswith(_MARK):
        return [(holder, key, path)]
    if isinstance(value, dict | list):
        entries = value.items() if isinstance(value, dict) else enumerate(value)
        return [place for name, entry in entries for place in _asked(entry, value, name, path)]
    return []


def _dataset(plain: dict[str, Any], path: str) -> Node:
    loader = plain.get("train_dataloader")
    if not isinstance(loader, dict) or "dataset" not in loader:
        raise Mismatch(path, f"asks the training data, but there is no {_DATASET}")
    node = check_component(loader["dataset"], _DATASET)
    if node.kind != Dataset.kind:
        raise Mismatch(_DATASET, f"found a {node.kind}, expected a {Dataset.kind}")
    for item in walk(node.arguments):
        if isinstance(item, Reference):
            raise Mismatch(item.path, f"'${item.name}' is not built yet when {path} asks the data; write it out")
    return node
