"""Recipes that tests write, load, and see refused."""

import pytest

from genflow.config.recipe import load_recipe
from genflow.errors import UserError


def write(folder, **texts):
    """Files of a folder by stem; returns the path of the first."""
    for name, text in texts.items():
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    return folder / f"{next(iter(texts))}.yaml"


def load(folder, text, overrides=None):
    return load_recipe(write(folder, recipe=text), overrides)


def refused(path, overrides=None):
    """The one line with which a recipe is refused."""
    with pytest.raises(UserError) as caught:
        load_recipe(path, overrides)
    message = str(caught.value)
    assert message.isprintable()
    return message
