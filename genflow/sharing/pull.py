"""A run folder made of a run on the hub."""

import shutil
from pathlib import Path

from genflow.config.imports import AllowImports
from genflow.errors import UserError
from genflow.runs.converted import check_free, whole_or_not
from genflow.runs.folder import RunFolder, open_run
from genflow.runs.hub import SHARED_FILES, HubName, fetch, files_of
from genflow.sharing.check import check_weights
from genflow.weights import naming_disk


def pull(name: HubName, out: Path, allow_imports: AllowImports = False) -> list[str]:
    """Fetch a run and write its folder, whole or not at all.

    Args:
        name: of the run on the hub.
        out: the folder; not there, or empty.
        allow_imports: as in :func:`~genflow.runs.folder.open_run`.

    Returns:
        the files, by their relative paths.

    Raises:
        UserError: something is there, the hub has no finished run of that name, its recipe is wrong, or its weights are
            damaged or others.
    """
    check_free(out)
    source = fetch(name, SHARED_FILES)
    files = files_of(source)
    for needed in (RunFolder(source).recipe_file, RunFolder(source).weights_file()):
        if needed.name not in files:
            raise UserError(f"{name}: not a run of GenFlow: {needed.name} missing")
    with whole_or_not(out) as partial:
        with naming_disk(out):
            for file in files:
                (partial / file).parent.mkdir(exist_ok=True)
                shutil.copyfile(source / file, partial / file)  # through the cache's links
        try:
            check_weights(open_run(partial, allow_imports=allow_imports))
        except UserError as error:
            raise UserError(str(error).replace(str(partial), str(name))) from None
    return files
