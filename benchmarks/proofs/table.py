"""From cells to claims: pooled success with Wilson's interval, differences paired over subsets, a plot.

Starts are the same for all arms of a task; subsets of demonstrations differ more than starts do, so that the honest
figure of a difference is the one over subsets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from pyramid.sim.rollouts import wilson

Cells = Mapping[tuple[str, str, int], Sequence[bool]]
"""(task, arm, subset) -> which starts were solved."""
BASELINE = "behaviour_cloning"
ALL = "all"
"""Where results of all tasks together stand, beside those of each."""


def summary(cells: Cells, tasks: Sequence[str], arms: Sequence[str]) -> dict[str, Any]:
    """Returns the results of each task, and of arms that were tried on all of them, together, on the same subsets."""
    found = {task: {arm: pooled(cells, [task], arm) for arm in arms} for task in tasks}
    if len(tasks) > 1:
        everywhere = [arm for arm in arms if all(found[task][arm]["n"] for task in tasks)]
        places = [{(task, subset) for task, one, subset in cells if one == arm} for arm in everywhere]
        shared = set.intersection(*places) if places else set()
        alike = {(task, arm, n): solved for (task, arm, n), solved in cells.items() if (task, n) in shared}
        found[ALL] = {arm: pooled(alike, tasks if arm in everywhere else [], arm) for arm in arms}
    return found


def pooled(cells: Cells, tasks: Sequence[str], arm: str) -> dict[str, Any]:
    """Returns an arm's success over subsets and tasks, and its difference to cloning on the same subsets."""
    found = {(task, subset): solved for (task, one, subset), solved in cells.items() if one == arm and task in tasks}
    solved = [one for cell in found.values() for one in cell]
    if not solved:
        return {"n": 0}
    low, high = wilson(sum(solved), len(solved))
    shares = {place: float(np.mean(cell)) for place, cell in found.items()}
    return {
        "success": sum(solved) / len(solved),
        "low": low,
        "high": high,
        "n": len(solved),
        "subsets": [round(share, 4) for _, share in sorted(shares.items())],
        **_gain(cells, shares),
    }


def _gain(cells: Cells, shares: Mapping[tuple[str, int], float]) -> dict[str, Any]:
    """Returns the mean difference to cloning over subsets, with Student's interval at 95 %, in shares of 1."""
    base = {place: cells.get((place[0], BASELINE, place[1])) for place in shares}
    gains = np.array([shares[place] - np.mean(solved) for place, solved in base.items() if solved is not None])
    if len(gains) < 2:
        return {}
    half = float(stats.t.ppf(0.975, len(gains) - 1) * gains.std(ddof=1) / np.sqrt(len(gains)))
    return {
        "gain": float(gains.mean()),
        "gain_low": float(gains.mean()) - half,
        "gain_high": float(gains.mean()) + half,
    }


def rows(results: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Returns the table's rows."""
    found = []
    for task, arms in results.items():
        for arm, one in arms.items():
            if one["n"]:
                interval = f"{one['low']:.0%} .. {one['high']:.0%}"
                gain = (
                    f"{one['gain']:+.0%} ({one['gain_low']:+.0%} .. {one['gain_high']:+.0%})" if "gain" in one else "-"
                )
                found.append([task, arm, f"{one['success']:.0%}", interval, str(one["n"]), gain])
    return found


def repeated(results: Mapping[str, Mapping[str, Any]], former: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Returns a table that holds the arms of both runs side by side, and says of each whether it came out again.

    A gain did if it lies in its former interval, cloning itself if its interval and the former one meet. All tasks
    together are compared if both runs had the same ones.
    """
    found = []
    for task, arms in results.items():
        if task == ALL and set(results) != set(former):
            continue
        for arm, one in arms.items():
            before = former.get(task, {}).get(arm, {"n": 0})
            if not (one["n"] and before["n"]):
                continue
            if arm == BASELINE or "gain" not in one or "gain" not in before:
                again = one["low"] <= before["high"] and before["low"] <= one["high"]
                gains = ["-", "-"]
            else:
                again = before["gain_low"] <= one["gain"] <= before["gain_high"]
                gains = [f"{before['gain']:+.0%} ({before['gain_low']:+.0%} .. {before['gain_high']:+.0%})"]
                gains += [f"{one['gain']:+.0%}"]
            shares = [f"{before['success']:.0%}", f"{one['success']:.0%}"]
            found.append([task, arm, *shares, *gains, "yes" if again else "NO"])
    return found


REPEATED_HEADER = ["task", "arm", "solved then", "now", "to cloning then (95 %)", "now", "again"]
_COLUMNS = 3
"""Panels of the plot side by side."""
HEADER = ["task", "arm", "solved", "95 % (Wilson)", "tries", "to cloning, over subsets (95 %)"]


def plot(results: Mapping[str, Mapping[str, Any]], path: str) -> None:
    """Draws success with its interval, a panel for each task."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    columns = min(len(results), _COLUMNS)
    lines = -(-len(results) // columns)
    figure, grid = pyplot.subplots(lines, columns, figsize=(5.5 * columns, 3.2 * lines), squeeze=False)
    panels = grid.ravel()
    for panel in panels[len(results) :]:
        panel.set_axis_off()
    for panel, (task, arms) in zip(panels, results.items(), strict=False):
        there = {arm: one for arm, one in arms.items() if one["n"]}
        for place, one in enumerate(reversed(there.values())):
            panel.barh(place, one["success"], color="#4c78a8")
            panel.plot([one["low"], one["high"]], [place, place], color="black", linewidth=1.5)
        panel.set_yticks(range(len(there)), [name.replace("_", " ") for name in reversed(there)])
        panel.set_xlim(0, 1)
        panel.set_title(f"{task}: share of starts solved")
    figure.tight_layout()
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
