"""The page of the suite's figures, and its goals."""

from genflow.benchmarks.suite_goals import goals
from genflow.benchmarks.suite_page import suite_page


def update(recipe, seconds, share, **more):
    row = {"recipe": recipe, "compile": False, "processes": 8, "rows": 128, "micro_batches": 1, "precision": "bfloat16"}
    row |= {
        "seconds": seconds,
        "low": seconds,
        "high": 2 * seconds,
        "images_per_second": 128 / seconds,
        "macs": 3.63e13,
    }
    row |= {"share": share, "macs": 3.63e13, "peak": 68 * 2**30, "first_seconds": 41.0, "halved": "", "uncounted": []}
    return {**row, "parts": {"draws": 0.004, "backward": 0.5}, **more}


def full_report():
    batches = [
        {"batch": batch, "a": 0.01, "b": 0.01 * ratio, "ratio": ratio, "low": ratio - 1, "high": ratio + 1}
        | {"share_of_matrix_rate": 0.1, "memory_b": {"working": 2**29}}
        for batch, ratio in ((1, 250.0), (16, 60.0))
    ]
    figures = {
        "updates": [
            update("pmf_b16_imagenet256", 0.25, 0.41),
            update("pmf_b16_imagenet256", 0.2, 0.52, compile=True),
            update("drift_ablation_imagenet", 0.5, 0.3, parts={"draws": 0.02, "networks": 0.85}, halved="too slow"),
        ],
        "inverse": {"recipe": "biflow_b2_imagenet", "precision": "bfloat16", "batches": batches},
    }
    entries = {"all": {"state": "done", "figures": figures}, "odd": {"state": "failed", "why": "a|b"}}
    hardware = {"gpu": "a GPU", "gpu_memory": 80 * 2**30, "cpu": "a CPU", "threads": 8}
    return {"suite": "full", "hardware": hardware, "versions": {"torch": "2.14"}, "entries": entries}


def test_page_of_tables():
    page = suite_page(full_report())
    assert "a GPU, 80.0 GiB; a CPU, 8 threads; torch 2.14." in page
    size = "128 of 1,024 / 1, bfloat16"
    plain, compiled = (
        "0.250 (0.250 to 0.500) | 512 | 36.3 | 41 % | 68.0 |",
        "0.200 (0.200 to 0.400) | 640 | 36.3 | 52 %",
    )
    assert f"| `pmf_b16_imagenet256` | {size} | no | {plain}" in page
    assert f"| `pmf_b16_imagenet256` | {size} | yes, 41.0 s | {compiled}" in page
    assert "`drift_ablation_imagenet` has the rows of one of 8 processes: too slow." in page
    assert "| `biflow_b2_imagenet` | 16 | bfloat16 | 0.0100 | 0.600 | 60.0 (59.0 to 61.0) | - | 10 % | 0.500 |" in page
    assert "| odd | failed | a\\|b |" in page and "## Muon" not in page
    for table in page.replace("\\|", "").split("\n\n"):  # as many cells in every row
        if table.startswith("|"):
            assert len({line.count("|") for line in table.splitlines()}) == 1


def test_goals_beside_what_was_measured():
    reached = {goal: (measured, yes) for goal, measured, yes in goals(full_report())}
    assert list(reached.values()) == [
        ("41 %, 52 % compiled", "yes"),
        ("250 times at batch 1, the best", "yes"),
        ("-", "not measured"),
        ("15.0 %", "no"),
        ("at most 2.00 %, in `drift_ablation_imagenet`", "no"),
    ]
    empty = {**full_report(), "entries": {}}
    assert {yes for _, _, yes in goals(empty)} == {"not measured"}


def test_a_section_that_cannot_be_shown_is_said():
    report = full_report()
    report["entries"]["all"]["figures"]["muon"] = [{"recipe": "pmf"}]
    page = suite_page(report)
    assert "Section muon: cannot be shown: KeyError" in page and "## Updates" in page
