"""The suite: its order, budget and report, with processes and figures that are made up."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from genflow.benchmarks import suite, suite_entry, suite_parts, suite_runs, suite_updates
from genflow.benchmarks.suite import SuiteOptions, launch_entry, run_suite
from genflow.benchmarks.suite_entries import FULL, SMALL, Entry, entries
from genflow.benchmarks.suite_parts import measure_muon, measure_train_step
from genflow.benchmarks.suite_runs import measure_gpu_tests, measure_sampling, read_report
from genflow.benchmarks.suite_updates import measure_updates
from genflow.benchmarks.work import NothingToMeasure, Work
from genflow.errors import Stopped, UserError

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
TINY = [f"model.backbone.{option}" for option in ("width=16", "heads=2", "depth=2", "head_depth=1")]
TINY.append("model.backbone.auxiliary_depth=1")


def entry(name, seconds=1.0):
    return Entry(name, name, seconds, {"number": 7})


def options(folder, **choices):
    return SuiteOptions(
        **{"out": folder / "out", "recipes": ROOT / "recipes", "size": "small", "device": "cpu"} | choices
    )


@pytest.fixture
def stand_in(monkeypatch, tmp_path):
    monkeypatch.setattr(suite, "PROCESS", (str(Path(__file__).with_name("stand_in.py")),))
    monkeypatch.setenv("STAND_IN", str(tmp_path / "process"))


def test_what_ends_badly_is_reported_and_the_others_go_on(stand_in, tmp_path):
    lines, ticks = [], []
    names = ("works", "fails", "skips", "dies", "says nothing", "hangs")
    plan = [Entry(name, name, 0.5, {"number": 7}) for name in names]

    def launch(entry, options, seconds, look):
        return launch_entry(entry, options, 2.0 if entry.name == "hangs" else 60.0, look)

    report = run_suite(plan, options(tmp_path), lines.append, lambda *tick: ticks.append(tick), launch=launch)
    found = json.loads((tmp_path / "out" / "suite.json").read_text())["entries"]
    assert found == report.content["entries"] and list(found) == list(names)
    assert [result["state"] for result in found.values()] == ["done", "failed", "skipped", "failed", "failed", "failed"]
    why = [result.get("why") for result in found.values()]
    assert why[:3] == [None, "it is broken", "nothing is here"]
    assert why[3:] == ["ended by SIGABRT: the last  words", "ended with code 0", "stopped after 2 s"]
    assert all(result["figures"] == {"numbers": [7]} for result in found.values())  # what they had until then
    assert lines[1].startswith("fails: failed (") and lines[1].endswith("s): it is broken")
    assert next(tick[0] for tick in ticks) == "works" and all(0 <= done <= total == 3.0 for _, done, total in ticks)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["logs", "suite.json", "suite.md"]
    check_ended(tmp_path)  # the child of the one that hung


def check_ended(folder):
    for _ in range(200):
        if _has_ended(int((folder / "process").read_text())):
            return
        time.sleep(0.05)
    pytest.fail("a process is left")


def _has_ended(process):
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def done_at_once(entry, options, seconds, look):
    return {"state": "done", "figures": {}, "hardware": {"cpu": "a CPU"}, "versions": {"torch": "2"}}


def test_entries_that_do_not_fit_are_left_out_and_resumed(tmp_path):
    asked = []

    def launch(entry, options, seconds, look):
        asked.append((entry.name, seconds))
        return {**done_at_once(entry, options, seconds, look), "state": "failed" if entry.name == "c" else "done"}

    plan = [entry("a"), entry("b", 100.0), entry("c", 5.0)]
    report = run_suite(plan, options(tmp_path, minutes=1.0), launch=launch)
    assert [report.state(name) for name in "abc"] == ["done", "left out", "failed"]
    assert [name for name, _ in asked] == ["a", "c"] and all(59 < seconds <= 60 for _, seconds in asked)
    page = (tmp_path / "out" / "suite.md").read_text()
    assert "| b | left out | no time: takes about 100 s |" in page and "| a |" not in page

    asked.clear()
    report = run_suite([*plan, entry("d")], options(tmp_path, minutes=5.0, resume=True), launch=launch)
    assert [name for name, _ in asked] == ["b", "d"] and asked[0][1] == plan[1].limit
    assert [report.state(name) for name in "abcd"] == ["done", "done", "failed", "done"]

    asked.clear()
    run_suite(plan, options(tmp_path, resume=True), launch=launch, again=["a", "c"])
    assert [name for name, _ in asked] == ["c"]


def test_reports_are_not_overwritten_nor_mixed(tmp_path):
    run_suite([entry("a")], options(tmp_path), launch=done_at_once)
    before = (tmp_path / "out" / "suite.json").read_bytes()
    with pytest.raises(UserError, match=r"suite.json' is there already; --overwrite replaces it, --resume goes on"):
        options(tmp_path)
    with pytest.raises(UserError, match="found suite 'small', this suite's is 'full'"):
        run_suite([entry("b")], options(tmp_path, resume=True, size="full"), launch=done_at_once)

    def elsewhere(*arguments):
        return {**done_at_once(*arguments), "hardware": {"cpu": "another"}}

    with pytest.raises(UserError, match="is of cpu a CPU, this is cpu another; pass another --out"):
        run_suite([entry("b")], options(tmp_path, resume=True), launch=elsewhere)
    assert (tmp_path / "out" / "suite.json").read_bytes() == before
    run_suite([entry("b")], options(tmp_path, overwrite=True), launch=elsewhere)
    assert list(json.loads((tmp_path / "out" / "suite.json").read_text())["entries"]) == ["b"]
    (tmp_path / "out" / "suite.json").write_text("{")
    with pytest.raises(UserError, match="not a report of the suite"):
        run_suite([entry("b")], options(tmp_path, resume=True), launch=done_at_once)


def test_an_interruption_loses_nothing(tmp_path):
    def interrupted(entry, *rest):
        if entry.name == "b":
            raise KeyboardInterrupt
        return done_at_once(entry, *rest)

    with pytest.raises(KeyboardInterrupt):
        run_suite([entry("a"), entry("b")], options(tmp_path), launch=interrupted)
    report = run_suite([entry("a"), entry("b")], options(tmp_path, resume=True), launch=done_at_once)
    assert [report.state(name) for name in "ab"] == ["done", "done"]


def test_a_signal_ends_the_process_of_an_entry(stand_in, tmp_path):
    def look(entry, options, seconds, look):
        return launch_entry(entry, options, seconds, lambda _: ask())

    def ask():
        if (tmp_path / "process").exists() and (tmp_path / "process").read_text():
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped, match=r"stopped by SIGTERM; .*suite.json keeps what was measured") as stopped:
        run_suite([entry("works"), entry("hangs")], options(tmp_path), launch=look)
    assert stopped.value.exit_code == 143 and signal.getsignal(signal.SIGTERM) is before
    check_ended(tmp_path)
    assert list(json.loads((tmp_path / "out" / "suite.json").read_text())["entries"]) == ["works"]


def test_an_entry_ends_with_the_suite(tmp_path):
    program = "from genflow.benchmarks import suite_entry as s; s._end_with_the_suite(); import os, time; "
    program += f"open({str(tmp_path / 'process')!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    start = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {program!r}], start_new_session=True)"
    waiting = f"import pathlib, time\nfile = pathlib.Path({str(tmp_path / 'process')!r})\n"
    waiting += "while not (file.exists() and file.read_text()): time.sleep(0.1)"
    subprocess.run([sys.executable, "-c", f"{start}\n{waiting}"], check=True, cwd=ROOT)
    check_ended(tmp_path)


def test_names_of_entries():
    for plan in (FULL, SMALL):
        names = [entry.name for entry in plan]
        assert len(set(names)) == len(names)
        for one in plan:
            named = one.arguments.get("recipes", [one.arguments.get("recipe")])
            assert all((ROOT / "recipes" / f"{name}.yaml").is_file() for name in named if name)
            module, _, function = one.target.partition(":")
            assert hasattr(sys.modules[module], function)
    assert [one.name for one in entries("small", ["draws", "hardware"])] == ["hardware", "draws"]
    with pytest.raises(UserError, match="found 'muons', expected entries of the small suite; nearest match: 'muon-"):
        entries("small", ["muons"])


# Processes of entries, here without a process


@pytest.fixture
def short(monkeypatch):
    """Few timed runs."""
    for module in (suite_parts, suite_runs, suite_updates):
        monkeypatch.setattr(module, "_TIMED", 0.0)
        monkeypatch.setattr(module, "matrix_rate", lambda *_: 1e10)


def work(folder):
    return Work(CPU, ROOT / "recipes", folder, 60.0)


def result(folder):
    return json.loads((folder / "result.json").read_text())


def keeping(work, number):
    work.keep(number=number)
    if number < 0:
        raise RuntimeError("a device\nis lost")
    if not number:
        raise NothingToMeasure("there is nothing")
    work.keep(infinite=[float("inf")])


def test_outcomes_of_an_entry(tmp_path, capsys):
    def measured(number):
        code = suite_entry.measure(f"{__name__}:keeping", {"number": number}, work(tmp_path))
        return code, result(tmp_path)

    sys.modules.setdefault(__name__, sys.modules[keeping.__module__])
    code, found = measured(1)
    assert code == 0 and found["done"] and found["figures"] == {"number": 1, "infinite": [None]}
    assert found["hardware"]["cpu"] and found["versions"]["torch"] == torch.__version__
    code, found = measured(0)
    assert code == 0 and found["skipped"] == "there is nothing" and "done" not in found
    code, found = measured(-1)
    assert code == 1 and found["error"].endswith("a device") and found["figures"] == {"number": -1}
    assert "is lost" in capsys.readouterr().err


def test_updates_of_a_recipe(short, tmp_path):
    small = [
        "model.labels_per_update=2",
        "model.samples_per_label=3",
        "model.positives=3",
        "train_dataloader.batch_size=8",
    ]
    small += ["model.backbone.width=16", "model.backbone.depth=1", "model.backbone.heads=2"]
    measure_updates(work(tmp_path), ["drift_digits"], 2, overrides=small)
    (row,) = result(tmp_path)["figures"]["updates"]
    assert (row["rows"], row["images"], row["processes"], row["compile"]) == (1, 3, 2, False)
    assert row["low"] <= row["seconds"] <= row["high"] and row["runs"] >= 3 and not row["uncounted"]
    assert row["images_per_second"] == pytest.approx(3 / row["seconds"])
    assert row["share"] == pytest.approx(row["macs"] / 1e10 / row["seconds"])
    parts = row["parts"]
    assert parts.keys() == {"draws", "backward", "optimizer", "averages", "networks"}
    assert 0 < parts["backward"] < parts["networks"] < 1 and row["peak"] > 2**20


def test_rows_are_halved_until_they_fit(tmp_path, monkeypatch):
    asked = []

    def timed(work, name, overrides, processes, slowest):
        asked.append(processes)
        if processes < 4:
            raise RuntimeError("CUDA out of memory. Tried to allocate 1 GiB")
        return {"precision": "float32", "macs": 10, "seconds": 1.0}

    monkeypatch.setattr(suite_updates, "_timed", timed)
    monkeypatch.setattr(suite_updates, "matrix_rate", lambda *_: 40.0)
    measure_updates(work(tmp_path), ["pmf_digits"])
    (row,) = result(tmp_path)["figures"]["updates"]
    assert asked == [1, 2, 4] and row["share"] == 0.25 and "CUDA out of memory" in row["halved"]
    monkeypatch.setattr(suite_updates, "_HALVINGS", 1)
    with pytest.raises(UserError, match=r"pmf_digits: RuntimeError .*CUDA out of memory"):
        measure_updates(work(tmp_path), ["pmf_digits"])


def test_muon_and_sampling(short, tmp_path):
    measure_muon(work(tmp_path), "pmf_digits", TINY)
    rows = result(tmp_path)["figures"]["muon"]
    assert [row["precision"] for row in rows] == ["float32", "bfloat16"] and rows[0]["macs"] == rows[1]["macs"] > 0
    measure_sampling(work(tmp_path), ["pmf_digits"], [1, 3], "float32", overrides=TINY)
    rows = result(tmp_path)["figures"]["sampling"]
    assert [row["batch"] for row in rows] == [1, 3] and rows[0]["macs"] == rows[1]["macs"] > 0
    assert rows[1]["images_per_second"] > rows[1]["decoded_per_second"] > 0


def test_a_compiled_training_step_is_counted(tmp_path, monkeypatch):
    def compiled(function):
        def run(*arguments, **options):
            assert not torch.jit.is_tracing()  # which torch refuses
            return function(*arguments, **options)

        return run

    monkeypatch.setattr(torch, "compile", compiled)
    measure_train_step(work(tmp_path), "pmf_digits", TINY, batch=6, repeats=1, compile=True)
    step = result(tmp_path)["figures"]["train_step"]
    assert step["compile"] and step["macs"] > 0 and 0 < step["floor_share"] < 10


def test_tests_that_need_a_gpu(tmp_path):
    with pytest.raises(NothingToMeasure, match="there is no GPU"):
        measure_gpu_tests(work(tmp_path))
    cases = '<testcase classname="a" name="b"/><testcase classname="a" name="c"><failure/></testcase>'
    (tmp_path / "tests.xml").write_text(
        f'<testsuites><testsuite>{cases}<testcase classname="a" name="d"><skipped/></testcase></testsuite></testsuites>'
    )
    assert read_report(tmp_path / "tests.xml") == {"passed": 1, "skipped": 1, "failed": ["a.c"]}
