"""Where pictures lie: nested, in one folder, behind links that may go in circles, at addresses."""

import functools
import http.server
import io
import threading
from typing import ClassVar

import numpy as np
import pytest
import torch
from mmengine import fileio
from PIL import Image

from genflow.config.graph import ComponentGraph
from genflow.data import ImageFolder
from genflow.data.stream import build_loader
from genflow.draws import Draws
from genflow.errors import UserError

SIDE = 4


def picture(value, form="PNG"):
    file = io.BytesIO()
    Image.new("L", (SIDE, SIDE), value).save(file, form)
    return file.getvalue()


def fill(root, names):
    """Grey pictures whose values are their places in the list."""
    for value, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(picture(value, "JPEG" if name.lower().endswith("jpg") else "PNG"))
    return root


def paths(dataset):
    return [dataset.path(index).removeprefix(f"{dataset.data_root}/") for index in range(len(dataset))]


def read(root, **options):
    return ImageFolder(str(root), SIDE, **options)


def test_pictures_of_a_class_may_lie_deeper_and_are_sorted_by_path(tmp_path):
    fill(tmp_path, ["b/x.png", "a/z/9.png", "a/z/y/1.JPG", "a/10.PNG", "a/z-1.png", "b/c/b.webp.png"])
    dataset = read(tmp_path)
    assert dataset.class_names == ["a", "b"] and dataset.num_classes == 2
    assert paths(dataset) == ["a/10.PNG", "a/z-1.png", "a/z/9.png", "a/z/y/1.JPG", "b/c/b.webp.png", "b/x.png"]
    assert dataset.labels.tolist() == [0, 0, 0, 0, 1, 1] and dataset.labels.dtype == np.int64
    assert [dataset.read(index)[0, 0, 0] for index in range(6)] == [3, 4, 1, 2, 5, 0]


def test_one_flat_folder_says_what_to_do_and_trains_without_classes(tmp_path):
    fill(tmp_path, ["2.png", "1.png", "README.txt"])
    with pytest.raises(UserError) as caught:
        read(tmp_path)
    assert str(caught.value) == (
        f"data_root '{tmp_path}' has 2 pictures and no folders of classes; 'labels: none' trains without classes"
        "; left out: 1 files ending in .txt ('README.txt')"
    )
    for options in ({"labels": "none"}, {"num_classes": 0}, {"labels": "none", "num_classes": 0}):
        dataset = read(tmp_path, **options)
        batch = dataset.batch(torch.tensor([1, 0]), None)
        assert dataset.num_classes == 0 and dataset.class_names == [] and batch["labels"].tolist() == [0, 0]
        assert paths(dataset) == ["1.png", "2.png"]
    assert dataset.notes[0].startswith(f"data_root '{tmp_path}': 2 pictures, without classes; left out: ")


def test_without_classes_folders_are_only_places(tmp_path):
    fill(tmp_path, ["b/1.png", "a/c/2.png", "0.png"])
    assert paths(read(tmp_path, labels="none")) == ["0.png", "a/c/2.png", "b/1.png"]


def test_contradictions_and_nothing_at_all(tmp_path):
    fill(tmp_path, ["a/1.png"])
    with pytest.raises(UserError, match=r"^labels: none: has no classes, the recipe has num_classes 2$"):
        read(tmp_path, labels="none", num_classes=2)
    with pytest.raises(UserError, match=r"^labels: found 'folder', expected folders, none, or .*'folders'$"):
        read(tmp_path, labels="folder")
    (tmp_path / "a" / "1.png").rename(tmp_path / "a" / "1.gif")
    with pytest.raises(UserError, match=r"has no pictures; left out: 1 files ending in .gif \('a/1.gif'\)$"):
        read(tmp_path)


def test_links_are_followed_and_circles_end(tmp_path):
    fill(tmp_path / "elsewhere", ["deep/1.png", "2.png"])
    root = fill(tmp_path / "root", ["a/0.png"])
    (root / "a" / "picture.png").symlink_to(tmp_path / "elsewhere" / "2.png")
    (root / "a" / "folder").symlink_to(tmp_path / "elsewhere")
    (root / "a" / "up").symlink_to(root)
    (root / "a" / "self").symlink_to(root / "a")
    (tmp_path / "elsewhere" / "deep" / "back").symlink_to(tmp_path / "elsewhere")
    (root / "b").symlink_to(tmp_path / "elsewhere")
    (root / "c").symlink_to(root / "c")
    dataset = read(root)
    assert paths(dataset) == [
        "a/0.png",
        "a/folder/2.png",
        "a/folder/deep/1.png",
        "a/picture.png",
        "b/2.png",
        "b/deep/1.png",
    ]
    assert dataset.class_names == ["a", "b"]
    assert dataset.left_out == {
        "links to folders that are read already": (4, "a/self"),
        "links to nothing, pipes or devices": (1, "c"),
    }


def test_of_several_ways_to_a_folder_the_first_is_taken(tmp_path):
    fill(tmp_path / "elsewhere", ["0.png"])
    for name in ("y", "x", "z"):
        (tmp_path / "root" / "a" / name).mkdir(parents=True)
        (tmp_path / "root" / "a" / name / "link").symlink_to(tmp_path / "elsewhere")
    assert paths(read(tmp_path / "root")) == ["a/x/link/0.png"]


def test_folders_that_all_link_to_each_other_are_read_once_each(tmp_path):
    names = [f"f{number}" for number in range(12)]
    fill(tmp_path, [f"{name}/x.png" for name in names])
    for one in names:
        for other in names:
            (tmp_path / one / f"to_{other}").symlink_to(tmp_path / other)
    assert len(read(tmp_path)) == 12 * 12  # every class sees all twelve folders, each once


def test_a_class_of_one_and_fewer_pictures_than_a_batch(tmp_path):
    fill(tmp_path, ["only/1.png", "only/2.png"])
    dataset = read(tmp_path)
    batch = next(iter(build_loader(dataset, 5, seed=0)))
    assert dataset.num_classes == 1 and batch["labels"].tolist() == [0] * 5
    assert sorted(((batch["images"][:, 0, 0, 0] + 1) * 127.5).round().int().tolist()) in (
        [0, 0, 0, 1, 1],
        [0, 0, 1, 1, 1],
    )


def test_names_without_text_are_found_again(tmp_path):
    name = b"\xff\xfe.png".decode(errors="surrogateescape")
    fill(tmp_path, [f"a/{name}", "a/ä b#?.png"])
    dataset = read(tmp_path)
    found = {path: int(dataset.read(index).max()) for index, path in enumerate(paths(dataset))}
    assert found == {f"a/{name}": 0, "a/ä b#?.png": 1}


# Addresses


class InMemory(fileio.LocalBackend):
    """Files by their addresses, as object stores keep them."""

    files: ClassVar[dict[str, bytes]] = {}

    def get(self, filepath):
        return self.files[filepath]

    def list_dir_or_file(self, dir_path, list_dir=True, list_file=True, suffix=None, recursive=False):
        assert recursive and not list_dir
        return (path.removeprefix(f"{dir_path}/") for path in reversed(self.files) if path.startswith(f"{dir_path}/"))


@pytest.fixture
def store(monkeypatch):
    monkeypatch.setitem(fileio.backends.prefix_to_backends, "memory", InMemory)
    monkeypatch.setattr(InMemory, "files", {})
    return InMemory.files


def test_an_address_is_listed_and_read_by_its_backend(store):
    for value, name in enumerate(["b/1.png", "a/n/2.png", "a/.thumbs/3.png", "a/4.gif", "5.png", "a/.6.png"]):
        store[f"memory://bucket/set/{name}"] = picture(value)
    dataset = read("memory://bucket/set")
    assert paths(dataset) == ["a/n/2.png", "b/1.png"] and dataset.class_names == ["a", "b"]
    assert dataset.path(0) == "memory://bucket/set/a/n/2.png" and dataset.read(0)[0, 0].tolist() == [1, 1, 1]
    assert dataset.left_out == {
        "files in hidden folders": (1, "a/.thumbs/3.png"),
        "files ending in .gif": (1, "a/4.gif"),
        "hidden files": (1, "a/.6.png"),
        "pictures beside the folders of classes": (1, "5.png"),
    }
    assert len(read("memory://bucket/set/", labels="none")) == 3
    store["memory://bucket/set/b/1.png"] = b"text"
    with pytest.raises(UserError, match=r"^memory://bucket/set/b/1.png: not a readable picture: expected BMP"):
        dataset.read(1)
    store.clear()
    with pytest.raises(UserError, match=r"^memory://bucket/set/b/1.png: not a readable picture: KeyError"):
        dataset.read(1)


def test_labels_lie_at_an_address_too(store):
    store["memory://b/labels.csv"] = b"file,label\nx.png,1\ny.png,0\n"
    store |= {"memory://b/x.png": picture(7), "memory://b/y.png": picture(8)}
    dataset = read("memory://b", labels="labels.csv")
    assert [dataset.read(index)[0, 0, 0] for index in range(2)] == [8, 7]


@pytest.fixture
def web(tmp_path, monkeypatch):
    """The address of ``tmp_path`` on this machine."""
    monkeypatch.setenv("no_proxy", "*")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(tmp_path)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_web_cannot_be_listed_but_read(web, tmp_path):
    fill(tmp_path, ["a b/ä#1.png", "c.png"])
    with pytest.raises(UserError) as caught:
        read(web)
    assert (
        str(caught.value) == f"data_root '{web}' cannot be listed; name the pictures in a file: 'labels: labels.json'"
    )
    (tmp_path / "labels.json").write_text('{"a b/ä#1.png": "cat", "c.png": "bird", "gone.png": "cat"}')
    dataset = read(web, labels="labels.json")
    assert dataset.class_names == ["bird", "cat"] and dataset.labels.tolist() == [0, 1, 1]
    assert [dataset.read(index)[0, 0, 0] for index in range(2)] == [1, 0]
    with pytest.raises(UserError, match=r"gone.png: not a readable picture: HTTP Error 404"):
        dataset.read(2)
    skipping = read(web, labels="labels.json", unreadable="skip")
    assert skipping.read(2)[0, 0, 0] == 0


def test_addresses_that_nobody_serves_are_one_line():
    with pytest.raises(
        UserError, match=r"^data_root 'ftp://x/y': no backend for 'ftp', expected one of http://, https://"
    ):
        read("ftp://x/y")
    with pytest.raises(UserError, match=r"^data_root 's3://x/y' cannot be listed: Please install petrel_client"):
        read("s3://x/y")


def test_an_address_in_a_recipe_stays_what_it_is(tiny_file, store):
    store |= {f"memory://b/{name}/1.png": picture(9) for name in "ab"}
    data = "{type: ImageFolder, data_root: memory://b, image_size: 8, channels: 1}"
    graph = ComponentGraph.load(tiny_file, [f"train_dataloader.dataset={data}"])
    assert graph.plain["train_dataloader"]["dataset"]["data_root"] == "memory://b"
    batch = graph.section("train_dataloader").dataset.batch(torch.arange(2), Draws(0, torch.arange(2)))
    assert batch["images"].allclose(torch.tensor(9 / 127.5 - 1)) and batch["labels"].tolist() == [0, 1]
