"""Files of tensors: atomic writes, damaged files, pickled code, strict keys and shapes."""

import json
import os
import pickle
import random
import stat
import warnings

import pytest
import torch

from genflow.errors import UserError
from genflow.weights import (
    check_state,
    read_checkpoint,
    read_weights,
    write_atomically,
    write_checkpoint,
    write_text,
    write_weights,
)

STATE = {"layer.weight": torch.arange(12.0).view(3, 4), "count": torch.tensor(3), "half": torch.ones(2).bfloat16()}
CHECKPOINT = {
    "step": 3,
    "format": 1,
    "seed": 0,
    "model": STATE,
    "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 0.1, "betas": (0.9, 0.95)}]},
    "schedulers": [{"last_step": 3, "base": [0.1]}],
    "averages": {},
    "more": None,
}


class Payload:
    """Pickles as a call that creates a folder."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


def same(ours, expected):
    assert ours.keys() == expected.keys()
    return all(ours[key].equal(value) and ours[key].dtype == value.dtype for key, value in expected.items())


def refused(read, path):
    with warnings.catch_warnings(), pytest.raises(UserError) as caught:
        warnings.simplefilter("error")  # they would be further lines
        read(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and message.isprintable() and len(message) < 500
    return message.removeprefix(f"{path}: ")


# Writing


def test_round_trips(tmp_path):
    write_weights(tmp_path / "deep" / "w.safetensors", {**STATE, "strided": torch.ones(4, 6).t()[::2]})
    assert same(read_weights(tmp_path / "deep" / "w.safetensors"), {**STATE, "strided": torch.ones(3, 4)})
    write_checkpoint(tmp_path / "c.pt", CHECKPOINT)
    again = read_checkpoint(tmp_path / "c.pt")
    assert type(again["optimizer"]["param_groups"][0]["betas"]) is tuple
    assert same(again.pop("model"), STATE)
    assert again == {key: value for key, value in CHECKPOINT.items() if key != "model"}
    write_text(tmp_path / "t.txt", "ü\n")
    assert (tmp_path / "t.txt").read_bytes() == "ü\n".encode()


@pytest.mark.parametrize("when", ["at once", "half way", "interrupted"])
def test_a_failing_writer_leaves_the_old_file_and_nothing_else(tmp_path, when):
    path = tmp_path / "file.pt"
    write_text(path, "old")

    def write(temporary):
        assert temporary.parent == tmp_path  # a rename is atomic within one file system only
        if when != "at once":
            temporary.write_text("half of the new")
        raise KeyboardInterrupt if when == "interrupted" else OSError("no space left")

    with pytest.raises((OSError, KeyboardInterrupt)):
        write_atomically(path, write)
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["file.pt"]
    with pytest.raises((OSError, KeyboardInterrupt)):
        write_atomically(tmp_path / "new.pt", write)
    assert os.listdir(tmp_path) == ["file.pt"]


def test_a_reader_never_sees_a_partial_file(tmp_path):
    path = tmp_path / "file"
    write_text(path, "old")
    seen = []

    def write(temporary):
        for part in ("new ", "text"):
            with open(temporary, "a") as file:
                file.write(part)
            seen.append(path.read_text())

    write_atomically(path, write)
    assert seen == ["old", "old"] and path.read_text() == "new text"
    assert os.listdir(tmp_path) == ["file"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


@pytest.mark.parametrize(
    "write",
    [
        lambda path: write_text(path, "new"),
        lambda path: write_weights(path, STATE),
        lambda path: write_checkpoint(path, CHECKPOINT),
    ],
)
def test_every_file_is_replaced_and_never_written_over(tmp_path, write):
    path, opened = tmp_path / "file", tmp_path / "opened"
    path.write_text("old")
    os.link(path, opened)  # as a process that is reading it holds it
    write(path)
    assert opened.read_text() == "old" and path.read_bytes() != b"old"


def test_tied_tensors_are_written_under_each_name(tmp_path):
    tied = torch.arange(4.0)
    state = {"a": tied, "b": tied, "c": tied.view(2, 2), "d": tied[2:]}
    write_weights(tmp_path / "w", state)
    assert same(read_weights(tmp_path / "w"), state)


# Reading


def test_missing_files(tmp_path):
    assert refused(read_weights, tmp_path / "w.safetensors") == "no such weights file"
    assert refused(read_checkpoint, tmp_path / "c.pt") == "no such checkpoint"
    assert refused(read_weights, tmp_path) == "no such weights file"
    assert refused(read_checkpoint, tmp_path) == "no such checkpoint"


@pytest.mark.parametrize("kept", [0, 1, 8, 40, 0.5, -1])
def test_truncated_files(tmp_path, kept):
    weights, checkpoint = tmp_path / "w.safetensors", tmp_path / "c.pt"
    write_weights(weights, STATE)
    write_checkpoint(checkpoint, CHECKPOINT)
    for path, read, problem in (
        (weights, read_weights, "not a complete safetensors file: "),
        (checkpoint, read_checkpoint, ("not a complete checkpoint: ", "refused: a checkpoint may hold")),
    ):
        content = path.read_bytes()
        path.write_bytes(content[: int(kept * len(content))] if isinstance(kept, float) else content[:kept])
        assert refused(read, path).startswith(problem)


@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
def test_damaged_files_are_never_a_traceback(tmp_path, form):
    path, read = tmp_path / "file", read_checkpoint
    if form == "safetensors":
        read = read_weights
        write_weights(path, STATE)
    else:
        torch.save(CHECKPOINT, path, _use_new_zipfile_serialization=form == "zip")
    content = path.read_bytes()
    choose = random.Random(0)
    refusals = 0
    for _ in range(150):
        damaged = bytearray(content)
        for _ in range(choose.choice([1, 3, 30])):
            damaged[choose.randrange(len(damaged))] = choose.randrange(256)
        path.write_bytes(damaged)
        try:
            read(path)  # damage to the numbers alone cannot be seen
        except UserError as error:
            refusals += 1
            assert str(error).isprintable()
    assert refusals > 50


@pytest.mark.parametrize("content", [b"", b"text", b"\x80\x04.", pickle.dumps({"step": 1}), b"PK\x03\x04"])
def test_files_of_another_sort(tmp_path, content):
    path = tmp_path / "file"
    path.write_bytes(content)
    assert refused(read_weights, path).startswith("not a complete safetensors file: ")
    assert refused(read_checkpoint, path).startswith(("not a complete checkpoint: ", "refused: "))


def test_weights_are_not_a_checkpoint_and_the_other_way_round(tmp_path):
    write_weights(tmp_path / "w", STATE)
    write_checkpoint(tmp_path / "c", CHECKPOINT)
    assert refused(read_checkpoint, tmp_path / "w").startswith(("not a complete checkpoint", "refused"))
    assert refused(read_weights, tmp_path / "c").startswith("not a complete safetensors file")
    for state in ({"model": {}}, [1, 2], torch.ones(2)):
        torch.save(state, tmp_path / "other.pt")
        line = refused(read_checkpoint, tmp_path / "other.pt")
        assert line == "not a training checkpoint of GenFlow: it has no 'step'"


@pytest.mark.parametrize("name", sorted(CHECKPOINT.keys() - {"more"}))
def test_a_checkpoint_has_all_its_parts(tmp_path, name):
    path = tmp_path / "c.pt"
    line = f"not a training checkpoint of GenFlow: it has no '{name}'"
    write_checkpoint(path, {key: value for key, value in CHECKPOINT.items() if key != name})
    assert refused(read_checkpoint, path) == line
    write_checkpoint(path, {**CHECKPOINT, name: "text"})
    assert refused(read_checkpoint, path) == line


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
@pytest.mark.parametrize("place", ["alone", "inside"])
def test_pickled_code_is_refused_and_does_not_run(tmp_path, form, place):
    marker, path = tmp_path / "marker", tmp_path / "c.pt"
    state = Payload(marker) if place == "alone" else {**CHECKPOINT, "model": {**STATE, "code": Payload(marker)}}
    if form == "pickle":
        path.write_bytes(pickle.dumps(state))
    else:
        torch.save(state, path, _use_new_zipfile_serialization=form == "zip")
    line = refused(read_checkpoint, path)
    assert line == "refused: a checkpoint may hold tensors and plain values only"
    assert not marker.exists()
    if form != "pickle":  # the file does carry the call
        torch.load(path, weights_only=False)  # harmless here: it makes the folder
        assert marker.exists()


def test_a_safetensors_header_that_lies_about_sizes(tmp_path):
    path = tmp_path / "w.safetensors"
    for shape, end in (([2], 4), ([2**62], 8), ([-1], 8), ([2], 2**40)):
        header = json.dumps({"a": {"dtype": "F32", "shape": shape, "data_offsets": [0, end]}}).encode()
        path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
        assert refused(read_weights, path).startswith("not a complete safetensors file: ")


# Keys and shapes


def test_check_state():
    own = {"a": torch.ones(2, 3), "b": torch.ones(1)}
    check_state(own, {"b": torch.zeros(1), "a": torch.zeros(2, 3)})
    for state, problem in (
        ({"a": torch.ones(2, 3)}, "'b' is missing from the file"),
        ({**own, "c": torch.ones(1)}, "'c' is not in the model"),
        ({**own, "a": torch.ones(3, 2)}, "'a' has shape (3, 2), expected (2, 3)"),
        ({**own, "b": torch.ones(())}, "'b' has shape (), expected (1,)"),
        ({}, "'a' is missing from the file"),
    ):
        with pytest.raises(ValueError) as caught:
            check_state(own, state)
        assert str(caught.value) == problem
