"""What the suite's figures should be, beside what they are."""

from collections.abc import Iterator, Sequence
from typing import Any

#: Ratio of the paper's exact inverse to its one pass, by size (arXiv 2512.10953).
INVERSE = {"biflow_b2_imagenet": 224, "biflow_xl2_imagenet": 700}
#: Share of the matrix rate of an update of pMF-B/16.
SHARE = 0.5
#: Share of an update of Drifting that is not its networks, and of random numbers in any update.
OUTSIDE, DRAWS = 0.10, 0.01


def goals(report: dict[str, Any]) -> Iterator[Sequence[str]]:
    """(goal, measured, reached) of every goal.

    Args:
        report: content of ``suite.json``, of full size.
    """
    figures = [entry.get("figures", {}) for entry in report["entries"].values()]
    updates = [row for found in figures for row in found.get("updates", [])]
    plain = [row for row in updates if not row["compile"]]

    shares = {row["compile"]: row["share"] for row in updates if row["recipe"] == "pmf_b16_imagenet256"}
    words = [f"{_percent(share, 0)}{' compiled' if compiled else ''}" for compiled, share in shares.items()]
    best = max(shares.values(), default=None)
    goal = f"an update of `pmf_b16_imagenet256` at {_percent(SHARE, 0)} of the matrix rate"
    yield goal, ", ".join(words) or "-", _reached(best, best is not None and best >= SHARE)

    for recipe, ratio in INVERSE.items():
        batches = [row for found in figures if "inverse" in found for row in _of_recipe(found["inverse"], recipe)]
        row = max(batches, key=lambda row: row["ratio"], default=None)
        measured = "-" if row is None else f"{row['ratio']:.0f} times at batch {row['batch']}, the best"
        goal = f"one pass of `{recipe}` at least {ratio} times as fast as the exact inverse"
        yield goal, measured, _reached(row, row is not None and row["ratio"] >= ratio)

    for row in (row for row in plain if "networks" in row["parts"] and row["recipe"].endswith(("imagenet", "pixels"))):
        outside = 1 - row["parts"]["networks"]
        goal = f"an update of `{row['recipe']}` less than {_percent(OUTSIDE, 0)} outside of networks"
        yield goal, _percent(outside, 1), _reached(row, outside < OUTSIDE)

    drawn = [row for row in plain if row["parts"].get("draws") is not None and "imagenet" in row["recipe"]]
    most = max(drawn, key=lambda row: row["parts"]["draws"], default=None)
    measured = "-" if most is None else f"at most {_percent(most['parts']['draws'], 2)}, in `{most['recipe']}`"
    goal = f"random numbers less than {_percent(DRAWS, 0)} of an update"
    yield goal, measured, _reached(most, most is not None and most["parts"]["draws"] < DRAWS)


def _percent(share: float, digits: int) -> str:
    return f"{100 * share:.{digits}f} %"


def _of_recipe(inverse: dict[str, Any], recipe: str) -> list[dict[str, Any]]:
    return inverse["batches"] if inverse["recipe"] == recipe else []


def _reached(measured: object, yes: bool) -> str:
    return "not measured" if measured is None else "yes" if yes else "no"
