"""Results as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def table(result: dict[str, Any], systems: Sequence[str]) -> str:
    """The result for people."""
    lines = []
    for name, rows in result["workloads"].items():
        difference = rows["max_model_diff"]
        compared = (
            "no two models to compare" if difference is None else f"models differ by at most {difference:.1e}"
        )
        if difference is not None and rows["rounding_diff"] is not None:
            compared += (
                f" (by rounding alone {rows['rounding_diff']:.1e}, trained by {rows['model_change']:.1e})"
            )
        lines.append(f"{name}: {rows['clients']} clients, cohort {rows['cohort']}; {compared}")
        for system in systems:
            if system not in rows:
                lines.append(f"  {system:14s} failed, see the errors")
                continue
            row, ratio = rows[system], result["ratios"][name].get(system)
            ours = "" if ratio is None else f"  ours x{ratio:.2f}"
            lines.append(
                f"  {system:14s} {row['updates_per_s']:9.1f} updates/s {row['peak_mb']:8.0f} MB "
                f"{row['startup_s']:6.1f} s to start{ours}"
            )
    lines += [f"ERROR {e['system']} on {e['workload']}: {e['error']}" for e in result["errors"]]
    return "\n".join(lines)


def population_table(result: dict[str, Any]) -> str:
    """The population's table for people."""
    lines = [
        f"{'clients':>9s} {'cohort':>6s} {'start s':>8s} {'round s':>8s} {'updates/s':>9s} {'peak MB':>8s}"
    ]
    lines += [
        f"{r['clients']:9d} {r['cohort']:6d} {r['startup_s']:8.2f} {r['round_s']:8.3f} "
        f"{r['updates_per_s']:9.1f} {r['peak_mb']:8.0f}"
        for r in result["population"]
    ]
    lines += [f"ERROR {e['clients']} clients, cohort {e['cohort']}: {e['error']}" for e in result["errors"]]
    return "\n".join(lines)
