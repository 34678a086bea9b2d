"""Files that say which picture is of which class."""

import csv
import io
import json
import posixpath
import re
from collections.abc import Iterable
from typing import Any

from genflow.data.pictures import read_bytes
from genflow.errors import UserError, shown

Label = int | str


def read_labels(path: str) -> dict[str, Label]:
    """Read the labels of pictures.

    A ``.json`` file holds ``{"file": label, ...}`` or, as StyleGAN's ``dataset.json``, ``{"labels": [["file", label],
    ...]}``; a ``.csv`` file two columns, file and label, under a header or not. Files are relative to the folder of the
    pictures. Labels are numbers from 0, or names: all of them the one or all the other.

    Args:
        path: a file, or an address (see :func:`~genflow.data.pictures.read_bytes`).

    Returns:
        {file: label}, in the file's order.

    Raises:
        UserError: one line that names the file and what is wrong in it.
    """
    content = read_bytes(path, "file of labels")
    try:
        text = content.decode("utf-8-sig")
        pairs = _from_csv(text) if path.lower().endswith(".csv") else _from_json(text)
        labels = _checked(pairs)
    except (ValueError, RecursionError, csv.Error) as error:
        raise UserError(f"labels {path!r}: {error}") from None
    if not labels:
        raise UserError(f"labels {path!r}: has no labels")
    return labels


def number_classes(labels: dict[str, Label], path: str, num_classes: int | None) -> tuple[dict[str, int], list[str]]:
    """Labels to numbers of classes, and the classes' names, which are none where the labels are numbers.

    Args:
        labels, path: of :func:`read_labels`.
        num_classes: that the recipe expects; None takes as many as there are.

    Raises:
        UserError: a number is out of range, a class has no pictures, or there are fewer or more names.
    """
    values = set(labels.values())
    if any(isinstance(value, str) for value in values):
        names = sorted(values)
        if num_classes not in (None, len(names)):
            raise UserError(f"labels {path!r}: has {len(names)} classes, the recipe has {num_classes}")
        numbers = {name: number for number, name in enumerate(names)}
        return {file: numbers[name] for file, name in labels.items()}, names
    classes = max(values) + 1 if num_classes is None else num_classes
    for file, value in labels.items():
        if not 0 <= value < classes:
            expected = "0 or above" if num_classes is None else f"0 to {classes - 1}"
            raise UserError(f"labels {path!r}: {file!r} has label {value}, expected {expected}")
    if len(values) < classes:
        empty = next(number for number in range(classes) if number not in values)
        raise UserError(f"labels {path!r}: class {empty} of {classes} has no pictures")
    return dict(labels), []


def _from_json(text: str) -> list[tuple[Any, Any]]:
    found = json.loads(text, object_pairs_hook=list)  # of equal keys a dictionary would keep the last alone
    # Lists of pairs are what objects have become; an array of pairs is told apart by what stands around it.
    if text.lstrip()[:1] != "{":
        raise ValueError(f'found {shown(found)}, expected {{"file": label}} or {{"labels": [["file", label]]}}')
    rows = next((value for key, value in found if key == "labels" and isinstance(value, list)), None)
    if rows is None:
        return found
    for number, row in enumerate(rows):
        if not isinstance(row, list) or len(row) != 2:
            raise ValueError(f'labels.{number}: found {shown(row)}, expected ["file", label]')
    return [tuple(row) for row in rows]


def _from_csv(text: str) -> list[tuple[str, Label]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    pairs: list[tuple[str, Label]] = []
    for row in reader:
        if not row:
            continue
        if len(row) != 2:
            raise ValueError(f"line {reader.line_num}: found {len(row)} columns, expected file,label")
        pairs.append((row[0].strip(), row[1].strip()))
    if pairs and "." not in pairs[0][0]:  # names of files have an ending, those of columns have none
        del pairs[0]
    if all(re.fullmatch(r"[+-]?\d{1,9}", label) for _, label in pairs):
        return [(file, int(label)) for file, label in pairs]
    return pairs


def _checked(pairs: Iterable[tuple[Any, Any]]) -> dict[str, Label]:
    labels: dict[str, Label] = {}
    for file, label in pairs:
        if not isinstance(file, str) or not file:
            raise ValueError(f"found {shown(file)}, expected the name of a file")
        name = posixpath.normpath(file)
        if name.startswith(("/", "..")) or name == ".":
            raise ValueError(f"{file!r} does not lie under data_root")
        if type(label) not in (int, str) or label == "":
            raise ValueError(f"{file!r} has label {shown(label)}, expected a number or a name")
        if name in labels:
            raise ValueError(f"{name!r} is named twice")
        labels[name] = label
        if type(label) is not type(first := next(iter(labels.values()))):
            raise ValueError(f"{file!r} has label {label!r}, others have {first!r}; expected numbers or names")
    return labels
