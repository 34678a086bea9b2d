"""Files of tensors: atomic writes, damaged files, pickled code, strict keys and shapes.

``GENFLOW_BIT_FLIPS=600`` flips so many bits of each kind of file.
"""

import errno
import json
import os
import pickle
import random
import stat
import warnings
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch.serialization import set_crc32_options

from genflow.errors import UserError
from genflow.weights import (
    check_file,
    check_state,
    naming_disk,
    read_checkpoint,
    read_state,
    read_weights,
    target_of,
    write_atomically,
    write_checkpoint,
    write_text,
    write_weights,
)

BIT_FLIPS = int(os.environ.get("GENFLOW_BIT_FLIPS", "60"))
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


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS])
def test_a_full_or_broken_disk_is_told_with_file_and_disk(tmp_path, number):
    path = tmp_path / "new" / "file.pt"
    try:
        raise OSError(number, os.strerror(number))
    except OSError as error:
        behind = RuntimeError("unexpected pos 192 vs 86")  # as torch.save says it
        behind.__context__ = error
    for problem in (OSError(number, os.strerror(number)), behind):
        with pytest.raises(OSError, match="cannot be written") as caught, naming_disk(path):
            raise problem
        line = str(caught.value)
        assert line.startswith(f"{path}: cannot be written: {os.strerror(number)}; disk /")
        assert line.endswith(" MiB free") and line.isprintable()
    for other in (FileNotFoundError(errno.ENOENT, "no such file"), RuntimeError("of another sort"), UserError("mine")):
        with pytest.raises(type(other)) as caught, naming_disk(path):
            raise other
        assert caught.value is other


def test_files_that_a_kill_left_half_written_are_known_by_their_names(tmp_path):
    seen = []

    def write(temporary):
        seen.append(temporary)

    write_atomically(tmp_path / "step_00000003.process_0_of_2", write)
    write_weights(tmp_path / "w.safetensors", STATE)
    assert target_of(seen[0]) == tmp_path / "step_00000003.process_0_of_2"
    for other in ("file.partial", ".file.partial", ".file.mine.partial", ".file.ABCDEFGH.partial", ".x.abcdefgh", "x"):
        assert target_of(Path(other)) is None
    assert target_of(Path("a/.b.c.abcdefg1.partial")) == Path("a/b.c")


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
            read(path)  # of the older format, damage to the numbers alone cannot be seen
        except UserError as error:
            refusals += 1
            assert str(error).isprintable()
    assert refusals > 50


def equal(ours, expected):
    if isinstance(expected, torch.Tensor):
        return ours.dtype == expected.dtype and ours.shape == expected.shape and ours.equal(expected)
    if isinstance(expected, dict):
        return ours.keys() == expected.keys() and all(equal(ours[key], expected[key]) for key in expected)
    return ours == expected


@pytest.mark.parametrize(
    ("write", "read", "state"),
    [(write_checkpoint, read_checkpoint, CHECKPOINT), (write_weights, read_weights, STATE)],
    ids=["checkpoint", "weights"],
)
def test_flipped_bits_are_never_loaded_as_other_values(tmp_path, write, read, state):
    path, choose, refusals = tmp_path / "file", random.Random(0), 0
    write(path, state)
    content = path.read_bytes()
    for _ in range(BIT_FLIPS):
        bit = choose.randrange(8 * len(content))
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            assert equal(read(path), state), f"bit {bit}"  # padding and dates do not matter
        except UserError as error:
            refusals += 1
            assert str(error).startswith(f"{path}: ") and str(error).isprintable()
    assert refusals > BIT_FLIPS / 3


def test_a_flipped_bit_in_every_tensor_is_named_or_refused(tmp_path):
    path = tmp_path / "c.pt"
    write_checkpoint(path, CHECKPOINT)
    content = path.read_bytes()
    place = content.index(STATE["layer.weight"].numpy().tobytes()) + 9
    path.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
    assert refused(read_checkpoint, path).startswith("not a complete checkpoint: 'archive/data/0' in it is damaged")
    assert refused(check_file, path) == "not a complete file: 'archive/data/0' in it is damaged"
    path.write_bytes(content[:-1])
    assert refused(check_file, path) == "not a complete file: its end is missing"
    path.write_bytes(content)
    check_file(path)
    # Flagged as a folder, an entry was loaded as whatever was in memory.
    place = content.rindex(b"archive/data/0") - 8
    path.write_bytes(content[:place] + b"\x10" + content[place + 1 :])
    assert "'archive/data/0' in it is damaged" in refused(read_checkpoint, path)


def test_weights_that_differ_from_their_digest_are_refused(tmp_path):
    path = tmp_path / "w.safetensors"
    write_weights(path, STATE)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    assert list(metadata) == ["genflow.sha256"]
    problem = "damaged: its weights are not those of the digest that it was written with"
    other = {name: value.clone() for name, value in STATE.items()}
    other["count"] += 1
    transposed = {**STATE, "layer.weight": STATE["layer.weight"].reshape(4, 3)}
    renamed = {("layer.bias" if name == "half" else name): value for name, value in STATE.items()}
    retyped = {**STATE, "half": STATE["half"].view(torch.float16)}
    for state in (other, transposed, renamed, retyped):
        save_file(state, path, metadata)
        assert refused(read_weights, path) == refused(read_state, path) == problem
    for kept in (metadata, None, {"format": "pt"}):  # files of others and of before have no digest
        save_file(STATE, path, kept)
        assert same(read_weights(path), STATE)


def test_digests_of_every_type_and_shape(tmp_path):
    types = [torch.bool, torch.uint8, torch.int64, torch.float16, torch.float64, torch.complex64, torch.float8_e4m3fn]
    state = {str(dtype): torch.ones(3, 2).to(dtype) for dtype in types}
    state |= {"empty": torch.ones(2, 0), "scalar": torch.tensor(True), "ü\n": torch.ones(1)}
    write_weights(tmp_path / "w", state)
    assert equal(read_weights(tmp_path / "w"), state)


def test_files_of_others_without_checksums_are_read(tmp_path):
    try:
        set_crc32_options(False)
        torch.save(STATE, tmp_path / "w.pt")
    finally:
        set_crc32_options(True)
    assert same(read_state(tmp_path / "w.pt"), STATE)
    torch.save(STATE, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert same(read_state(tmp_path / "old.pt"), STATE)


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
