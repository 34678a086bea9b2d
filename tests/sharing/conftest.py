"""A hub of this machine, which the real client asks in the place of the one on the network."""

import shutil

import pytest
from hub_stand_in import Hub
from huggingface_hub import constants

from genflow.runs.folder import open_run
from genflow.runs.hub import HubName
from genflow.sharing.push import contents


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """An empty hub and an empty cache."""
    made = Hub()
    monkeypatch.setattr(constants, "ENDPOINT", made.address)
    where = made.address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", where)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_of_this_test")
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture
def copied(finished_run, tmp_path):
    """A copy of the finished run that a test may change."""
    return shutil.copytree(finished_run, tmp_path / "copied")


@pytest.fixture(scope="session")
def published(finished_run) -> dict[str, bytes]:
    """What is published of the finished run, as bytes."""
    files, _ = contents(open_run(finished_run), HubName("me/tiny"), "mit")
    return {name: value if isinstance(value, bytes) else value.read_bytes() for name, value in files.items()}
