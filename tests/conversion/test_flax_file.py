"""Files of Flax parameters, made with msgpack: arrays of every kind, and what is refused."""

import sys
from pathlib import Path

import msgpack
import numpy as np
import pytest
import torch

from genflow.conversion.flax_file import read_flax
from genflow.errors import UserError

CHUNKED = "__msgpack_chunked_array__"
FOUR = np.zeros(4, dtype=np.float32)


def packed(array, code=1):
    """An array as flax.serialization packs it; one of NumPy, or (shape, name of the type, content)."""
    if isinstance(array, np.ndarray):
        array = (array.shape, array.dtype.name, array.tobytes())
    return msgpack.ExtType(code, msgpack.packb(array, use_bin_type=True))


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)


def refusal(content):
    """The one line about ``a.msgpack`` with this content, without what all of them begin with."""
    Path("a.msgpack").write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_flax(Path("a.msgpack"))
    start = "a.msgpack: not a complete file of Flax parameters: "
    line = str(caught.value)
    assert line.isprintable() and line.startswith(start) and line != start
    return line.removeprefix(start)


def test_arrays_of_every_kind():
    many = np.arange(36, dtype=np.float32).reshape(12, 3)
    chunks = {str(index): packed(many.reshape(-1)[3 * index : 3 * index + 3]) for index in range(12)}
    brain = torch.tensor([1.0, -2.5, 3e38], dtype=torch.bfloat16)
    content = {
        "half": packed(np.array([0.5, 65504], dtype=np.float16)),
        "double": packed(np.array([[1 / 3]])),
        "brain": packed(((3,), "bfloat16", brain.view(torch.int16).numpy().tobytes())),
        "bytes": packed(((1, 1), b"float32", np.float32(7).tobytes())),
        "scalar": packed(np.array(3.0, dtype=np.float32), code=3),
        "deep": {"deeper": {"array": packed(many[:, 1])}, "nothing": {}},
        # Sorted as text, so that "10" comes before "2".
        "large": {CHUNKED: True, "shape": {"0": 12, "1": 3}, "chunks": dict(sorted(chunks.items()))},
    }
    Path("all.msgpack").write_bytes(msgpack.packb(content))
    found = read_flax(Path("all.msgpack"))
    assert list(found) == ["half", "double", "brain", "bytes", "scalar", "deep/deeper/array", "large"]
    assert found["half"].tolist() == [0.5, 65504] and found["half"].dtype == torch.float16
    assert found["double"].tolist() == [[1 / 3]] and found["double"].dtype == torch.float64
    assert found["brain"].equal(brain)
    assert found["bytes"].tolist() == [[7]]
    assert found["scalar"].shape == () and found["scalar"] == 3
    assert found["deep/deeper/array"].equal(torch.from_numpy(many[:, 1]))
    assert found["large"].equal(torch.from_numpy(many))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": packed(((5,), "float32", bytes(16)))}, "an array of 16 bytes, which is not float32 of shape (5,)"),
        ({"a": packed(((-2, -2), "float32", bytes(16)))}, ""),
        ({"a": packed(((2, 2), "float16", bytes(16)))}, "an array of 16 bytes, which is not float16 of shape (2, 2)"),
        ({"a": packed(((2**40, 2**40), "float32", bytes(16)))}, "an array of 16 bytes, which is not float32"),
        ({"a": packed(((0,), "float32", b""))}, ""),
        ({"a": packed(np.zeros(4, dtype=np.int32))}, "an array of type int32, expected floating-point numbers"),
        ({"a": packed(((4,), "object", bytes(16)))}, "an array of type object, expected floating-point numbers"),
        ({"a": packed((["4"], "float32", bytes(16)))}, ""),
        ({"a": packed((4, "float32", bytes(16)))}, ""),
        ({"a": packed(((4,), ["float32"], bytes(16)))}, ""),
        ({"a": packed(((4,), "float32", 16))}, ""),
        ({"a": packed(((4,), "float32"))}, ""),
        ({"a": packed({})}, ""),
        ({"a": msgpack.ExtType(1, b"")}, ""),
        ({"a": msgpack.ExtType(2, bytes(3))}, "an extension of type 2"),
        ({"a": {"b": 3}}, "'a/b' is not an array"),
        ({"a": [packed(FOUR)]}, "'a' is not an array"),
        ({"a/b": packed(FOUR), "a": {"b": packed(FOUR)}}, "'a/b' is there twice"),
        ([packed(FOUR)], "not a mapping"),
        (packed(FOUR), "not a mapping"),
        ({CHUNKED: True, "shape": {}, "chunks": {"0": packed(FOUR)}}, ""),
        ({"a": {CHUNKED: True, "shape": {"0": 5}, "chunks": {"0": packed(FOUR)}}}, ""),
        ({"a": {CHUNKED: True, "shape": {"0": 4}, "chunks": {"1": packed(FOUR)}}}, ""),
        ({"a": {CHUNKED: True, "shape": {"0": 4}}}, ""),
        ({"a": {CHUNKED: True, "shape": 4, "chunks": [packed(FOUR)]}}, ""),
    ],
)
def test_contents_of_another_kind(content, message):
    assert refusal(msgpack.packb(content)).startswith(message)


def test_a_file_that_is_cut_short_or_something_else():
    whole = msgpack.packb({"a": {"b": packed(FOUR), "c": packed(FOUR)}})
    nested = b"\x81\xa1a" * 3000 + b"\xc0"
    for content in (*(whole[:size] for size in range(len(whole))), whole + b"\x80", b"\xc1", b"no weights", nested):
        refusal(content)
    Path("a.msgpack").write_bytes(whole)
    assert list(read_flax(Path("a.msgpack"))) == ["a/b", "a/c"]
    with pytest.raises(UserError, match=r"^b\.msgpack: no such weights file$"):
        read_flax(Path("b.msgpack"))


def test_without_the_package(monkeypatch):
    Path("a.msgpack").write_bytes(msgpack.packb({}))
    monkeypatch.setitem(sys.modules, "msgpack", None)
    with pytest.raises(UserError) as caught:
        read_flax(Path("a.msgpack"))
    assert str(caught.value) == "this feature needs the package 'msgpack': pip install \"genflow[convert]\""
