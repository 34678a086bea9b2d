"""A folder of packed pictures for the recipes that ask their data how many classes there are."""

import numpy as np
import pytest

from genflow.data.packed_writing import Made, Packing, write_packed


@pytest.fixture(autouse=True, scope="session")
def packed_folder(tmp_path_factory):
    """Two pictures of 64 x 64 pixels in two classes, where the recipes for any folder look."""
    folder = tmp_path_factory.mktemp("folder64") / "packed"

    def make(indices):
        return Made(np.zeros((len(indices), 64, 64, 3), dtype=np.uint8), np.ones(len(indices), dtype=bool))

    write_packed(folder, Packing("images", (64, 64, 3), np.arange(2), 2, ["ants", "bees"], {}, make))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GENFLOW_FOLDER", str(folder))
        yield folder
