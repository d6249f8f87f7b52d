"""The growth curves as a picture that can be read on light and on dark paper: no background, middle grey text."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

_INK: Final = "#808080"
_COLORS: Final = ("#2f81f7", "#e8590c", "#2da44e")
_PANELS: Final = (
    ("one hello, µs of CPU time", ("first_us", "known_us"), False),
    ("reading, ms", ("stats_ms", "device_ms", "scan_ms"), True),
    ("memory of the gateway, MB", ("resident_mb",), False),
)
_NAMES: Final = {
    "first_us": "first hello",
    "known_us": "known device's hello",
    "stats_ms": "statistics from counters",
    "device_ms": "one device",
    "scan_ms": "the same statistics by a scan",
    "resident_mb": "resident",
}


def draw_growth(points: Mapping[int, Mapping[str, float]], path: Path) -> None:
    """Draws the figures over the number of known devices."""
    import matplotlib as mpl  # only `make bench` has it

    mpl.use("agg")
    from matplotlib import pyplot

    sizes = sorted(points)
    figure, axes = pyplot.subplots(1, len(_PANELS), figsize=(12, 3.6), layout="constrained")
    for place, (title, names, logarithmic) in zip(axes, _PANELS, strict=True):
        for name, color in zip(names, _COLORS, strict=False):
            values = [points[size][name] for size in sizes]
            place.plot(sizes, values, marker="o", color=color, label=_NAMES[name])
        place.set_xscale("log")
        if logarithmic:
            place.set_yscale("log")
        else:
            place.set_ylim(bottom=0)
        place.set_title(title, color=_INK, fontsize=11)
        place.set_xlabel("known devices", color=_INK)
        place.tick_params(colors=_INK, which="both")
        place.grid(color=_INK, alpha=0.25)
        for edge in place.spines.values():
            edge.set_color(_INK)
        place.legend(labelcolor=_INK, frameon=False, fontsize=9)
    figure.savefig(path, dpi=120, transparent=True, metadata={"Software": None})
    pyplot.close(figure)
