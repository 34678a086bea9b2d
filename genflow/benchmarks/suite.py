"""One command that measures what a GPU has to be asked for: entries in processes of their own, within a time.

Every entry's figures are on disk before the next one begins. What fails, hangs or takes the device with it is a line
in the report; the suite goes on.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import genflow
from genflow.benchmarks.suite_entries import Entry, Size
from genflow.benchmarks.suite_page import suite_page
from genflow.benchmarks.work import RESULT
from genflow.errors import Stopped, UserError
from genflow.weights import write_text

State = Literal["done", "failed", "skipped", "left out"]
#: Called again and again: an entry's name, and the seconds that are done of those that all entries should take.
Tick = Callable[[str, float, float], None]
REPORT, PAGE, LOGS = "suite.json", "suite.md", "logs"
#: Seconds between two looks at a process.
_LOOK = 0.2
#: What Python runs as the process of an entry.
PROCESS = ("-m", "genflow.benchmarks.suite_entry")


@dataclass(frozen=True)
class SuiteOptions:
    """Where and how long.

    Args:
        out: folder of the report.
        recipes: folder of the recipes.
        size: which entries these are.
        device: where to compute.
        minutes: in all; an entry that would take longer than what is left is left out.
        overwrite: replace a report.
        resume: go on with one: entries that it lacks or that were left out.

    Raises:
        UserError: no time, or a report is there and neither to be replaced nor continued.
    """

    out: Path
    recipes: Path
    size: Size = "full"
    device: str = "cuda"
    minutes: float = 20.0
    overwrite: bool = False
    resume: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.minutes <= 100_000:
            raise UserError(f"--minutes: found {self.minutes:g}, expected a number above 0")
        if self.overwrite and self.resume:
            raise UserError("--overwrite and --resume exclude each other")
        if self.out.exists() and not self.out.is_dir():
            raise UserError(f"--out: '{self.out}' is no folder")
        for name in (REPORT, PAGE):
            if (self.out / name).exists() and not (self.overwrite or self.resume):
                raise UserError(
                    f"--out: '{self.out / name}' is there already; --overwrite replaces it, --resume goes on with it"
                )


class Report:
    """The figures so far, as ``suite.json`` and ``suite.md`` hold them.

    Args:
        options: of the suite.

    Raises:
        UserError: the report to go on with is damaged, or of another size or kind of device.
    """

    def __init__(self, options: SuiteOptions):
        self.file, self._page = options.out / REPORT, options.out / PAGE
        self.content: dict[str, Any] = {"suite": options.size, "device": options.device.partition(":")[0]}
        kept = _read(self.file) if options.resume and self.file.exists() else {}
        for name, value in self.content.items():
            if kept and kept.get(name) != value:
                raise UserError(f"{self.file}: found {name} '{kept.get(name)}', this suite's is '{value}'")
        self.content = {"hardware": {}, "versions": {}, "entries": {}, **self.content, **kept}

    def state(self, name: str) -> State | None:
        """How an entry ended; None if it has not been tried."""
        return self.content["entries"].get(name, {}).get("state")

    def add(self, name: str, result: dict[str, Any]) -> None:
        """Take an entry's result in, and write report and page anew.

        Args:
            name: of the entry.
            result: what :func:`launch_entry` returns, and ``seconds``.

        Raises:
            UserError: it comes from another machine than the report; nothing is written.
        """
        result = dict(result)
        for part in ("hardware", "versions"):
            found, known = result.pop(part, {}), self.content[part]
            for key in ("cpu", "gpu", "torch"):
                if known and found and known.get(key) != found.get(key):
                    here = f"{key} {found.get(key)}"
                    raise UserError(f"{self.file}: is of {key} {known.get(key)}, this is {here}; pass another --out")
            self.content[part] = known or found
        self.content["entries"][name] = result
        write_text(self.file, json.dumps(self.content, indent=2) + "\n")
        write_text(self._page, suite_page(self.content))


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: not a report of the suite: {error}") from None
    if not isinstance(content, dict) or not isinstance(content.get("entries"), dict):
        raise UserError(f"{file}: not a report of the suite: it has no entries")
    return content


#: Measures an entry within so many seconds; the last argument is called while it runs, with the seconds it has.
Launch = Callable[[Entry, SuiteOptions, float, Callable[[float], None]], dict[str, Any]]


def run_suite(
    plan: Sequence[Entry],
    options: SuiteOptions,
    tell: Callable[[str], None] = lambda line: None,
    tick: Tick = lambda name, done, total: None,
    again: Sequence[str] = (),
    launch: Launch | None = None,
) -> Report:
    """Measure one entry after the other, as long as there is time.

    Args:
        plan: the entries, the most important first.
        options: where and how long.
        tell: gets a line after every entry.
        tick: see :data:`Tick`.
        again: entries that a resumed suite measures though they have failed, or been skipped, before.
        launch: measures an entry; None for :func:`launch_entry`.

    Returns:
        the report, which is on disk.

    Raises:
        UserError: as :class:`Report`.
        Stopped: a signal came; the report keeps what was measured.
        OSError: a file cannot be written.
    """
    began = time.perf_counter()
    report = Report(options)
    tried = ("done", "failed", "skipped")
    todo = [entry for entry in plan if report.state(entry.name) not in (tried[:1] if entry.name in again else tried)]
    total, done = sum(entry.seconds for entry in todo), 0.0
    for entry in todo:
        left = 60 * options.minutes - (time.perf_counter() - began)
        if left < entry.seconds:
            result: dict[str, Any] = {"state": "left out", "why": f"no time: takes about {entry.seconds:.0f} s"}
        else:
            start = time.perf_counter()
            so_far = done

            def look(seconds: float, entry: Entry = entry, so_far: float = so_far) -> None:
                tick(entry.name, so_far + min(seconds, entry.seconds), total)

            with _stopping(report.file):
                result = (launch or launch_entry)(entry, options, min(entry.limit, left), look)
            result["seconds"] = time.perf_counter() - start
        report.add(entry.name, result)
        took = f" ({result['seconds']:.1f} s)" if "seconds" in result else ""
        tell(f"{entry.name}: {result['state']}{took}{': ' + result['why'] if result.get('why') else ''}")
        done += entry.seconds
    return report


@contextlib.contextmanager
def _stopping(file: Path) -> Iterator[None]:
    """Raise an error when a signal asks the process to end, so that it ends its entry's process too."""

    def stop(number: int, _: Any) -> None:
        raise Stopped(f"stopped by {signal.Signals(number).name}; {file} keeps what was measured", 128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {each: signal.signal(each, stop) for each in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def launch_entry(
    entry: Entry, options: SuiteOptions, seconds: float, look: Callable[[float], None] = lambda seconds: None
) -> dict[str, Any]:
    """Measure an entry in a process of its own, and of a group of its own, which is ended after ``seconds``.

    Returns:
        ``state``, ``why`` unless it is done, ``figures`` as far as there are any, ``hardware`` and ``versions``.
    """
    log = options.out / LOGS / f"{entry.name}.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=options.out, prefix=f".{entry.name}-", ignore_cleanup_errors=True) as folder:
        given = {
            "target": entry.target,
            "arguments": entry.arguments,
            "device": options.device,
            "recipes": str(options.recipes.absolute()),
            "folder": str(Path(folder).absolute()),
            "seconds": seconds,
        }
        command = [sys.executable, *PROCESS, json.dumps(given)]
        with open(log, "wb") as output, _started(command, output) as process:
            ended = _wait(process, seconds, look)
        file = Path(folder) / RESULT
        result = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    outcome = {name: result.pop(name) for name in ("done", "skipped", "error") if name in result}
    if not ended:
        return {"state": "failed", "why": f"stopped after {seconds:.0f} s", **result}
    if "error" in outcome:
        return {"state": "failed", "why": outcome["error"], **result}
    if process.returncode or not outcome:
        return {"state": "failed", "why": _ending(process.returncode, log), **result}
    if "skipped" in outcome:
        return {"state": "skipped", "why": outcome["skipped"], **result}
    return {"state": "done", **result}


@contextlib.contextmanager
def _started(command: Sequence[str], output: Any) -> Iterator[subprocess.Popen]:
    """A process that imports this very package; what is left of its group at the end is ended."""
    here = str(Path(genflow.__file__).parents[1])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([here, *filter(None, [os.environ.get("PYTHONPATH")])])}
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        env=environment,
        start_new_session=True,  # Ctrl-C reaches the suite alone, which then ends the process
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait(process: subprocess.Popen, seconds: float, look: Callable[[float], None]) -> bool:
    """Whether the process ends within ``seconds``."""
    start = time.perf_counter()
    while (passed := time.perf_counter() - start) < seconds:
        look(passed)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(min(_LOOK, seconds - passed))
            return True
    return False


def _ending(code: int, log: Path) -> str:
    """How a process ended that did not say it, with the last line that it printed."""
    how = f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return f"{how}: {re.sub(r'[^ -~]', ' ', lines[-1])[:200]}" if lines else how
