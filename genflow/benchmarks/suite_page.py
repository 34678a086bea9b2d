"""The suite's report as a page of Markdown tables, ready for docs/performance.md."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from genflow.benchmarks.suite_goals import goals
from genflow.errors import reason

Rows = Iterable[Sequence[object]]


def suite_page(report: dict[str, Any]) -> str:
    """The page of what is in a report; it has no date, so that equal figures give an equal page.

    Args:
        report: content of ``suite.json``.
    """
    parts = [f"# Measured by the suite ({report['suite']} size)", _machine(report)]
    if report["suite"] == "full":
        parts.append(_shown(_goals, report))
    figures = [entry.get("figures", {}) for entry in report["entries"].values()]
    parts += [_shown(make, figures) for make in _SECTIONS]
    parts.append(_section("Not measured", ("entry", "state", "why"), _not_measured(report)))
    return "\n\n".join(part for part in parts if part) + "\n"


def _shown(make: Callable[[Any], str], given: Any) -> str:
    """A section; if its figures are of a form that nobody has thought of, a line that says so: others do not suffer."""
    try:
        return make(given)
    except Exception as error:
        return f"Section {make.__name__.strip('_').replace('_', ' ')}: cannot be shown: {reason(error)}"


def _goals(report: dict[str, Any]) -> str:
    return _section("Goals", ("goal", "measured", "reached"), goals(report))


def _machine(report: dict[str, Any]) -> str:
    hardware, versions = report["hardware"], report["versions"]
    gpu = hardware.get("gpu")
    where = [f"{gpu}, {_gib(hardware['gpu_memory'])} GiB"] if gpu else []
    where.append(f"{hardware.get('cpu', 'unknown CPU')}, {hardware.get('threads')} threads")
    where += [f"{name} {value}" for name, value in versions.items()]
    what = "made-up data; random weights in the place of files; medians (lowest to highest)"
    return f"`python tools/benchmark.py suite`; {what}. {'; '.join(where)}."


def _section(title: str, heads: Sequence[str], rows: Rows, text: str = "") -> str:
    """A title, a table and a text; nothing without rows."""
    lines = [f"| {' | '.join('' if cell is None else str(cell) for cell in row)} |" for row in rows]
    if not lines:
        return ""
    table = "\n".join([f"| {' | '.join(heads)} |", "|---" * len(heads) + "|", *lines])
    return f"## {title}\n\n{table}" + (f"\n\n{text}" if text else "")


def _not_measured(report: dict[str, Any]) -> Rows:
    for name, entry in report["entries"].items():
        if entry["state"] != "done":
            yield name, entry["state"], str(entry.get("why", "")).replace("|", "\\|")


def _number(value: float | None, digits: int = 3) -> str:
    """Significant digits, thousands marked; a dash where there is no number."""
    if value is None:
        return "-"
    if abs(value) >= 10 ** (digits - 1):
        return f"{value:,.0f}"
    return f"{value:#.{digits}g}".rstrip(".")


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{_number(100 * value, 2)} %"


def _gib(size: float | None) -> str:
    return "-" if size is None else _number(size / 2**30)


def _range(entry: dict[str, Any]) -> str:
    return f"{_number(entry['seconds'])} ({_number(entry['low'])} to {_number(entry['high'])})"


def _tera(value: float | None) -> str:
    return "-" if value is None else _number(value / 1e12)


def _all(figures: Sequence[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """The entries of a list of that name, of all results."""
    return [row for found in figures for row in found.get(name, [])]


def _matrix_rates(figures: Sequence[dict[str, Any]]) -> str:
    rates = next((found["matrix_rates"] for found in figures if "matrix_rates" in found), {})
    rows = ((name, _tera(rate)) for name, rate in rates.items())
    return _section("Square matrix products", ("type", "10^12 multiply-adds per second"), rows)


def _updates(figures: Sequence[dict[str, Any]]) -> str:
    rows, notes = [], []
    for row in _all(figures, "updates"):
        name = f"`{row['recipe']}`"
        size = f"{row['rows']:,} of {row['rows'] * row['processes']:,} / {row['micro_batches']}, {row['precision']}"
        compiled = f"yes, {_number(row['first_seconds'])} s" if row["compile"] else "no"
        share, peak = _percent(row["share"]), _gib(row["peak"])
        numbers = (_range(row), _number(row["images_per_second"]), _tera(row["macs"]), share, peak)
        rows.append((name, size, compiled, *numbers))
        if row.get("halved"):
            notes.append(f"{name} has the rows of one of {row['processes']} processes: {row['halved']}.")
        if row.get("uncounted"):
            notes.append(f"{name} has products that are not counted: {', '.join(row['uncounted'])}.")
    text = (
        "Rows are those of one process, of all rows of the recipe's batch; labels in Drifting, whose images are the "
        "samples that are generated. Multiply-adds are those that an update executes, frozen networks and optimizer "
        "included. "
    )
    heads = ("recipe", "rows / micro-batches", "compiled", "seconds per update", "images per second")
    heads += ("10^12 multiply-adds", "share of the matrix rate", "peak GiB")
    return _section("Updates", heads, rows, (text + " ".join(notes)).strip())


def _parts(figures: Sequence[dict[str, Any]]) -> str:
    names = ("draws", "backward", "optimizer", "averages", "networks")
    rows = [
        (
            f"`{row['recipe']}`{', compiled' if row['compile'] else ''}",
            *(_percent(row["parts"].get(name)) for name in names),
        )
        for row in _all(figures, "updates")
    ]
    text = "Shares of an update in which the device is waited for before and after each part. Networks: all passes of "
    text += "generator and encoders, the backward one included; the rest is the drift, the queues and the optimizer."
    return _section("Parts of an update", ("recipe", *names), rows, text)


def _inverse(figures: Sequence[dict[str, Any]]) -> str:
    rows = []
    for report in (found["inverse"] for found in figures if "inverse" in found):
        for row in report["batches"]:
            ratio = f"{_number(row['ratio'])} ({_number(row['low'])} to {_number(row['high'])})"
            decoded = row.get("with_decoder", {})
            seconds = (_number(row["a"]), _number(row["b"]), ratio, _number(decoded.get("ratio")))
            share, memory = _percent(row["share_of_matrix_rate"]), _gib(row["memory_b"]["working"])
            rows.append((f"`{report['recipe']}`", row["batch"], report["precision"], *seconds, share, memory))
    heads = ("recipe", "batch", "precision", "one pass, s per image", "exact inverse, s per image", "ratio")
    heads += ("ratio with decoder", "one pass, share of the matrix rate", "exact inverse, GiB beyond weights")
    return _section("One pass against the exact inverse", heads, rows)


def _drift_loss(figures: Sequence[dict[str, Any]]) -> str:
    rows = []
    for row in (found["drift_loss"] for found in figures if "drift_loss" in found):
        sizes = [_gib(size) for size in row["memory"]]
        what = f"`{row['recipe']}`, {row['labels']} labels, {row['features']} features, {row['precision']}"
        rows.append((what, _number(row["a"]), _number(row["b"]), _number(row["time_ratio"]), *sizes))
    heads = ("drift loss and gradient", "seconds", "line by line", "ratio", "GiB", "line by line")
    return _section("The drift loss", heads, rows)


def _train_step(figures: Sequence[dict[str, Any]]) -> str:
    rows = []
    for row in (found["train_step"] for found in figures if "train_step" in found):
        what = f"`{row['recipe']}`, batch {row['batch']}, {row['precision']}{', compiled' if row['compile'] else ''}"
        rate, sizes = _number(row["images_per_second"]), [_gib(size) for size in row["memory"]]
        ratios = (_number(row["a"]), _number(row["b"]), _number(row["time_ratio"]))
        rows.append((what, *ratios, rate, _percent(row["floor_share"]), *sizes))
    heads = ("forward and backward pass", "seconds", "plain way", "ratio", "images per second", "share of the floor")
    return _section("A training step of pMF against the plain way", (*heads, "GiB", "plain way"), rows)


def _muon(figures: Sequence[dict[str, Any]]) -> str:
    rows = [
        (f"`{row['recipe']}`", row["precision"], f"{row['parameters'] / 1e6:.1f}", _range(row), _percent(row["share"]))
        for row in _all(figures, "muon")
    ]
    heads = ("recipe", "products", "10^6 parameters", "seconds per update", "share of the matrix rate")
    return _section("Muon", heads, rows)


def _draws(figures: Sequence[dict[str, Any]]) -> str:
    rows, notes = [], []
    for row in _all(figures, "draws"):
        per_second = [_number(row["numbers"] / row[side]["seconds"] / 1e9) for side in ("ours", "torch")]
        rows.append((row["device"], row["law"], f"{row['numbers'] / 1e6:.1f}", *per_second, _number(row["ratio"])))
        notes += [note for note in row["warnings"] if note not in notes]
    heads = ("device", "law", "10^6 numbers", "10^9 per second", "torch's own", "seconds, ours / torch's")
    return _section("Random numbers", heads, rows, " ".join(notes))


def _sampling(figures: Sequence[dict[str, Any]]) -> str:
    rows = []
    for row in _all(figures, "sampling"):
        compiled = f"yes, {_number(row['first_seconds'])} s" if row["compile"] else "no"
        rates = (_number(row["images_per_second"]), _percent(row["share"]), _number(row["decoded_per_second"]))
        rows.append((f"`{row['recipe']}`", row["nfe"], row["batch"], row["precision"], compiled, _range(row), *rates))
    heads = ("recipe", "evaluations", "batch", "precision", "compiled", "seconds per batch", "images per second")
    heads += ("share of the matrix rate", "images per second, decoded")
    return _section("Sampling", heads, rows)


def _data(figures: Sequence[dict[str, Any]]) -> str:
    rows = []
    for report in (found["data"] for found in figures if "data" in found):
        for part in ("decode", "packed_images", "latents"):
            for way, row in report[part].items():
                if isinstance(row, dict):
                    low, high = _number(row["lowest"]), _number(row["highest"])
                    rate = f"{_number(row['samples_per_second'])} ({low} to {high})"
                    rows.append(
                        (f"{part.replace('_', ' ')}, {way}", rate, _number(row["limit"]), _percent(row["share"]))
                    )
    return _section("Pictures and latents, one thread of the CPU", ("", "per second", "limit", "share"), rows)


def _gpu_tests(figures: Sequence[dict[str, Any]]) -> str:
    tests = [found["gpu_tests"] for found in figures if "gpu_tests" in found]
    rows = [(row["passed"], len(row["failed"]), row["skipped"], ", ".join(row["failed"])) for row in tests]
    return _section("Tests that need a GPU", ("passed", "failed", "skipped", "which failed"), rows)


def _trainings(figures: Sequence[dict[str, Any]]) -> str:
    rows = []
    for training in (found["training"] for found in figures if "training" in found):
        for name, metrics in training["runs"].items():
            own = metrics.get("training", {})
            merits = metrics.get("evaluation", {}).get("model", {})
            figures_of = ", ".join(
                f"{key} {_number(value)}" for key, value in merits.items() if isinstance(value, float)
            )
            whole = _number(training["seconds"]) if name == training["recipe"] else ""
            rows.append((f"`{name}`", metrics.get("updates"), _number(own.get("seconds")), whole, figures_of))
    heads = ("run", "updates", "seconds of them", "seconds in all, prerequisites included", "figures of merit")
    return _section("Trainings", heads, rows)


_SECTIONS: tuple[Callable[[Sequence[dict[str, Any]]], str], ...] = (
    _matrix_rates,
    _updates,
    _parts,
    _inverse,
    _drift_loss,
    _train_step,
    _muon,
    _draws,
    _sampling,
    _data,
    _gpu_tests,
    _trainings,
)
