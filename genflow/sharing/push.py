"""A finished run published on the hub."""

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from genflow.config.recipe import dump_yaml
from genflow.errors import UserError
from genflow.runs.converted import check_free, whole_or_not
from genflow.runs.folder import Run
from genflow.runs.hub import HubName, hub, in_one_line, is_shared
from genflow.runs.ownership import signed
from genflow.sharing.card import Facts, model_card
from genflow.sharing.check import check_weights
from genflow.sharing.private import without_paths
from genflow.weights import naming_disk

#: By relative path: a file as it lies in the run folder, or what is written in its place.
Contents = dict[str, Path | bytes]


def check_licence(licence: str | None) -> str:
    """The licence that the user names; there is none that could be guessed.

    Raises:
        UserError: it is missing, or no identifier.
    """
    some = "an SPDX identifier such as Apache-2.0, MIT, CC-BY-4.0, CC-BY-NC-4.0, or 'other'"
    if licence is None:
        raise UserError(f"--licence: missing; under which may others use the weights? {some}")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.+-]*", licence):
        raise UserError(f"--licence: found '{licence}', expected {some}")
    return licence


def contents(run: Run, name: HubName, licence: str, scalars: bool = False) -> tuple[Contents, dict[str, str]]:
    """What is published of a run: weights, recipe, figures, the newest grid of samples and a model card.

    Absolute paths in recipe and figures are cut down to last names; logs and checkpoints stay.

    Args:
        run: the run, opened without overrides.
        name: where on the hub.
        licence: as :func:`check_licence` returns it.
        scalars: also the scalars of every update.

    Returns:
        the contents, and what paths became, by place.

    Raises:
        UserError: weights are missing, damaged or others.
    """
    weights = check_weights(run)
    recipe, cut = without_paths(run.graph.plain)
    metrics, cut_metrics = without_paths(run.metrics)
    files: Contents = {file.relative_to(run.path).as_posix(): file for file in weights}
    files["recipe.yaml"] = signed(dump_yaml(recipe)).encode()
    files["metrics.json"] = (json.dumps(metrics, indent=2) + "\n").encode()
    grids = sorted((run.path / "samples").glob("step_*.png"))
    if grids:
        files[f"samples/{grids[-1].name}"] = grids[-1]
    if scalars and run.scalars_file.is_file():
        files[run.scalars_file.name] = run.scalars_file
    card = model_card(run, Facts(name.repository, licence, recipe, metrics, cut, sorted(files)))
    files["README.md"] = str(card).encode()
    changed = {f"recipe.yaml: {place}": text for place, text in cut.items()}
    return files, changed | {f"metrics.json: {place}": text for place, text in cut_metrics.items()}


def size_of(content: Path | bytes) -> int:
    """Bytes."""
    return len(content) if isinstance(content, bytes) else content.stat().st_size


def write_folder(files: Contents, out: Path) -> None:
    """Write what would be published, to look at; a run folder like any other.

    Raises:
        UserError: something is there already.
    """
    check_free(out)
    with whole_or_not(out) as partial, naming_disk(out):
        for file, content in files.items():
            (partial / file).parent.mkdir(exist_ok=True)
            if isinstance(content, bytes):
                (partial / file).write_bytes(content)
            else:
                shutil.copyfile(content, partial / file)


def check_place(name: HubName, private: bool, overwrite: bool) -> list[str]:
    """See that a run can be published under a name.

    Returns:
        the files that are there, and that a run would have.

    Raises:
        UserError: there is something and ``overwrite`` is False, it is public and ``private`` is True, or as
            :func:`~genflow.runs.hub.in_one_line`.
    """
    if name.revision is not None:
        raise UserError(f"{name}: a run is published as the newest revision, name none")
    client = hub()
    with in_one_line(name):
        try:
            found: Any = client.HfApi(library_name="genflow").model_info(name.repository)
        except client.errors.RepositoryNotFoundError:
            return []
    there = [entry.rfilename for entry in found.siblings or [] if entry.rfilename != ".gitattributes"]
    if there and not overwrite:
        raise UserError(f"{name}: is there already, with '{there[0]}'; --overwrite adds a revision in its place")
    if private and not found.private:
        raise UserError(f"{name}: is there already and public, which is changed in the settings of its page")
    return [file for file in there if is_shared(file)]


def push(name: HubName, files: Contents, private: bool, there: list[str], message: str) -> str:
    """Publish files as one commit.

    Args:
        name: where.
        files: of :func:`contents`.
        private: whether a new repository is for its owner alone.
        there: of :func:`check_place`; what of it is not in ``files`` goes, and stays in older revisions.
        message: of the commit.

    Returns:
        the commit's hash.

    Raises:
        UserError: as :func:`~genflow.runs.hub.in_one_line`, or the hub refuses the card.
    """
    client = hub()
    added = [client.CommitOperationAdd(file, _as_given(content)) for file, content in sorted(files.items())]
    gone = [client.CommitOperationDelete(file) for file in there if file not in files]
    with in_one_line(name):
        client.ModelCard(_text(files, "README.md")).validate()
        api = client.HfApi(library_name="genflow")
        api.create_repo(name.repository, private=private, exist_ok=True)
        return api.create_commit(name.repository, [*added, *gone], commit_message=message).oid


def _as_given(content: Path | bytes) -> str | bytes:
    return content if isinstance(content, bytes) else str(content)


def _text(files: Mapping[str, Path | bytes], name: str) -> str:
    content = files[name]
    return (content if isinstance(content, bytes) else content.read_bytes()).decode()
