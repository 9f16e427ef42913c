"""check.json as Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def table(found: Mapping[str, Any]) -> str:
    """The tables for docs/benchmarks.md."""
    machine = found["machine"]
    agreeing = [name for name, path in found.get("agreement", {}).items() if path["ok"]]
    lines = [
        f"{machine['device']}, torch {machine['torch']}, {machine['date']}",
        "",
        f"{len(agreeing)} of {len(found.get('agreement', {}))} paths agree with the CPU.",
        "",
        "| what | largest difference | allowed |",
        "| --- | --- | --- |",
    ]
    for name, path in found.get("agreement", {}).items():
        worst = path.get("error") or f"{max(path['differences'].values()):.1e}"
        lines.append(f"| {name} | {worst} | {path['tolerance']:g} |")
    lines += ["", "| what | waits for the device |", "| --- | --- |"]
    waits = found.get("waits", {})
    if "error" in waits:
        lines.append(f"| all | {waits['error']} |")
    else:
        lines += [f"| {name} | {sum(places.values())} |" for name, places in waits.items()]
    lines += [
        "",
        "| measured | figures |",
        "| --- | --- |",
        f"| rates | {_told(found.get('rates', {}))} |",
    ]
    for name, figures in found.items():
        if name.startswith("times/"):
            lines.append(f"| {name.removeprefix('times/')} | {_told(figures)} |")
    return "\n".join(lines)


def _told(figures: Mapping[str, Any]) -> str:
    shown = (f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in figures.items())
    return ", ".join(shown)
