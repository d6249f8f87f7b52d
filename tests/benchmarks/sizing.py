"""What a fleet needs, reckoned from what a run measured. Pure.

Each row says its arithmetic; the capital letters are what was measured: B1 connections, K and F the gateway's CPU
time for a known device's hello and a first one, D the database's bytes and G the gateway's for one device.
"""

from collections.abc import Callable
from typing import Final

from benchmarks.results import Results

FLEETS: Final = (1_000, 10_000, 100_000, 1_000_000)
BROKER_BYTES: Final = 20 * 1024
"""Of mosquitto 2.0.11 for one idle TLS connection: measured apart, once."""
DEFAULT_PACE: Final = 600  # offers a minute (provisioning.rollouts, Plan)
_HEARTBEATS: Final = 500  # a second, at most (provisioning.sessions, heartbeat_seconds)
_LEAST_INTERVAL: Final = 60
Cell = Callable[[int], str]


def sizing_table(results: Results) -> list[tuple[str, ...]]:
    """Rows of what is needed, its arithmetic, and a column for each size; the sizes are the first row."""
    found = _measured(results)
    if found is None:
        return [("what", "arithmetic")]
    b1, first, known, base, own, row = found
    rows: list[tuple[str, str, Cell]] = [
        ("heartbeats a second", "N ÷ max(60, N ÷ 500)", lambda n: f"{_heartbeats(n):,.0f}"),
        (
            "gateway for them, share of a core",
            "at most heartbeats × K",
            lambda n: f"{_heartbeats(n) * known / 1e6:.0%}",
        ),
        ("everybody comes back at once: broker", "N ÷ B1", lambda n: _duration(n / b1)),
        ("the same: gateway, one worker", "N × K", lambda n: _duration(n * known / 1e6)),
        (
            "everybody comes for the first time: gateway, one worker",
            "N × F",
            lambda n: _duration(n * first / 1e6),
        ),
        (
            "a rollout to all at the default pace",
            "N ÷ 600 a minute",
            lambda n: _duration(n / DEFAULT_PACE * 60),
        ),
        ("database (SQLite)", "N × D", lambda n: _bytes(n * row)),
        ("gateway's memory", "base + N × G", lambda n: _bytes(base + n * own)),
        ("broker's memory, all connected", "N × 20 KiB", lambda n: _bytes(n * BROKER_BYTES)),
    ]
    sizes = tuple(f"{size:,} devices" for size in FLEETS)
    return [("what", "arithmetic", *sizes), *((t, a, *(cell(n) for n in FLEETS)) for t, a, cell in rows)]


def sizing_figures(results: Results) -> str:
    """The measured figures that the table uses, in one sentence."""
    found = _measured(results)
    if found is None:
        return ""
    b1, first, known, base, own, row = found
    return (
        f"Measured in this run: B1 = {b1:,.0f} connections/s, F = {first:,.0f} µs, K = {known:,.0f} µs, "
        f"D = {row:,.0f} B, base = {_bytes(base)}, G = {own:,.0f} B. Measured apart: 20 KiB a connection.\n\n"
    )


def _measured(results: Results) -> tuple[float, float, float, float, float, float] | None:
    b1 = results.figure("B1")
    if b1 is None or len(results.points) < 2:
        return None
    least, most = min(results.points), max(results.points)
    small, large = results.points[least], results.points[most]
    grown = most - least
    own = max(0.0, (large["resident_mb"] - small["resident_mb"]) * 1e6 / grown)
    return (
        b1.median,
        large["first_us"],
        large["known_us"],
        small["resident_mb"] * 1e6,
        own,
        (large["database_mb"] - small["database_mb"]) * 1e6 / grown,
    )


def _heartbeats(devices: int) -> float:
    return devices / max(_LEAST_INTERVAL, devices / _HEARTBEATS)


def _duration(seconds: float) -> str:
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:,.0f} {unit}"
    return f"{seconds:,.0f} s" if seconds >= 1 else "below 1 s"


def _bytes(count: float) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.0f} MB"
