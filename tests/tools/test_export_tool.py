"""tools/export.py as a user runs it, on a tiny BiFlow: files that say what they are, refusals, the page's script."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import started
import torch
from PIL import Image

import genflow
from genflow.draws import Draws
from genflow.errors import UserError
from genflow.export import run as export
from genflow.export.formats import FORMATS
from genflow.runs.folder import open_run

ROOT = Path(__file__).parents[2]


def run_tool(*arguments):
    command = [sys.executable, ROOT / "tools" / "export.py", *map(str, arguments)]
    done = started.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def drawn(run, count):
    """What the generator draws for the images of a seed, and the images."""
    generator, labels = run.generator(), torch.arange(count) % 10
    noise, condition = generator.draw(Draws(7, torch.arange(count)), labels, 1.5)
    inputs = {"noise": noise, "labels": labels, "guidance": condition.guidance}
    return inputs, generator.sample(labels, seed=7, guidance=1.5)


def check_metadata(texts, run):
    assert texts["genflow_version"] == genflow.__version__ and texts["system"] == "BiFlow"
    assert "arXiv 2512.10953" in texts["paper"] and texts["average"] == run.exported_average
    assert texts["recipe"] in run.recipe_file.read_text() and "type: GroupedTransformer" in texts["recipe"]
    assert json.loads(texts["class_names"]) == [str(digit) for digit in range(10)]
    assert json.loads(texts["multiply_adds"])["generator_macs"] > 1000 and texts["network_evaluations"] == "1"
    inputs = json.loads(texts["inputs"])
    assert inputs["labels"]["range"] == [0, 9] and inputs["guidance"]["lowest"] == 0
    assert json.loads(texts["outputs"])["pictures"]["range"] == [-1, 1]


def test_onnx_and_the_script_of_the_page_without_torch(biflow_run, here):
    text = run_tool(biflow_run, "--format", "onnx", "--out", "pmf_digits.onnx")
    assert "inputs noise, labels, guidance, output pictures in [-1, 1]" in text
    assert float(re.search(r"largest difference (\S+),", text)[1]) < 1e-4
    import onnxruntime

    session = onnxruntime.InferenceSession("pmf_digits.onnx", providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == ["batch", 1, 8, 8]
    run = open_run(biflow_run)
    check_metadata(session.get_modelmeta().custom_metadata_map, run)
    inputs, images = drawn(run, 5)
    (pictures,) = session.run(None, {name: value.numpy() for name, value in inputs.items()})
    assert np.abs(pictures - images.numpy()).max() < 1e-4 and images.std() > 0.1

    page = (ROOT / "docs" / "export.md").read_text(encoding="utf-8")
    script = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)[0]
    Path("script.py").write_text(script)
    Path("torch.py").write_text("raise ImportError('the script must do without torch')\n")
    subprocess.run([sys.executable, "script.py"], check=True, env={"OMP_NUM_THREADS": "1"}, timeout=120)
    picture = Image.open("pictures.png")
    assert picture.size == (80, 8) and len(np.unique(np.array(picture))) > 10


@pytest.mark.slow
def test_pt2_of_one_batch_size_in_float16(biflow_run, here):
    text = run_tool(biflow_run, "--format", "pt2", "--out", "x.pt2", "--batch", 2, "--precision", "float16")
    assert "4 pictures compared" in text
    texts = dict.fromkeys(("genflow_version", "system", "paper", "recipe", "average", "class_names", "inputs"), "")
    texts |= dict.fromkeys(("multiply_adds", "network_evaluations", "outputs", "precision"), "")
    program = torch.export.load("x.pt2", extra_files=texts)
    run = open_run(biflow_run)
    check_metadata(texts, run)
    assert texts["precision"] == "float16" and torch.float16 in {value.dtype for value in program.state_dict.values()}
    inputs, images = drawn(run, 2)
    difference = (program.module()(**inputs) - images).square().mean().sqrt()
    assert 1e-6 < difference < export.ROOT_MEAN_SQUARE["float16"]


def test_refusals(biflow_run, here, refused, monkeypatch):
    Path("mine.onnx").write_bytes(b"mine")
    line = refused("export", biflow_run, "--format", "onnx", "--out", "mine.onnx")
    assert "'mine.onnx' is there already; --overwrite replaces it" in line
    line = refused("export", biflow_run, "--format", "pt2", "--out", "x.onnx")
    assert "found 'x.onnx', expected a name ending in .pt2" in line
    line = refused("export", biflow_run.parent / "itarflow_digits", "--format", "onnx", "--out", "x.onnx")
    assert "the exact inverse of a flow is not exported: its 33 evaluations run one after the other" in line
    assert "found '0', expected dynamic" in refused("export", biflow_run, "--format", "pt2", "--batch", 0)
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    line = refused("export", biflow_run, "--format", "onnx", "--out", "x.onnx")
    assert "needs the package 'onnxscript': pip install \"genflow[export]\"" in line


def test_a_file_that_differs_is_not_kept(biflow_run, here, monkeypatch):
    write, open_file = FORMATS["pt2"]

    def off(path):
        session = open_file(path)
        return lambda inputs: session(inputs) + 2e-4

    monkeypatch.setitem(FORMATS, "pt2", (write, off))
    Path("x.pt2").write_bytes(b"old")
    with pytest.raises(UserError, match=r"the largest difference is 0\.0002, above 0\.0001; it was not kept"):
        export.export_run(open_run(biflow_run), Path("x.pt2"), "pt2", batch=2)
    assert [path.name for path in Path().iterdir()] == ["x.pt2"] and Path("x.pt2").read_bytes() == b"old"
