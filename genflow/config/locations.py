"""Where files and folders lie that a recipe names."""

import os
import typing
from typing import Any

from genflow.config.slots import Node, Section, section_signature, signature_of
from genflow.data.folder_listing import is_address
from genflow.ranges import OnThisMachine


def is_local(annotation: Any) -> bool:
    """Whether an annotation is, or allows, the path of a file or folder."""
    parts = typing.get_args(annotation)
    return any(isinstance(part, OnThisMachine) or is_local(part) for part in parts)


def make_absolute(plain: Any, checked: Any) -> None:
    """Make paths absolute in plain data, in place; relative ones are of the working folder, as on a command line.

    Addresses (``s3://...``) are absolute.

    So the recipe of a run means the same files whatever folder it is opened from.

    Args:
        plain: dictionaries and lists.
        checked: what :func:`genflow.config.slots.check` made of them.
    """
    if isinstance(checked, (Node, Section)):
        signature = signature_of(checked.cls) if isinstance(checked, Node) else section_signature(checked.cls)
        for name, value in checked.arguments.items():
            if name not in plain:  # a default
                continue
            if isinstance(value, str) and name in signature and is_local(signature[name].annotation):
                plain[name] = value if is_address(value) else os.path.abspath(value)
            else:
                make_absolute(plain[name], value)
    elif isinstance(checked, dict):
        for key, value in checked.items():
            make_absolute(plain[key], value)
    elif isinstance(checked, (list, tuple)):
        for entry, value in zip(plain, checked, strict=True):
            make_absolute(entry, value)
