"""Fan-out: a rollout to devices that are connected, counted as its offers come out of the broker."""

import time

from benchmarks.wire import PUBLISH, StalledError
from benchmarks.world import COHORT, PRODUCT, Gateways, World

_STALLED_SECONDS = 60.0


def measure_fanout(world: World, gateways: Gateways) -> float:
    """Offers per second at the broker, from the first to the last, to every device that is connected."""
    version = gateways.push(1)
    plan = {"most_in_flight": 1_000_000, "most_per_minute": 1_000_000}  # the pace is not what is measured
    with world.line() as line, gateways.api() as api:
        line.subscribe(f"{world.place.prefix}/+/offer")
        devices = int(api.get("/stats").raise_for_status().json()["totals"]["connected"])
        body = {"product": PRODUCT, "version": version, "cohorts": [COHORT], "plan": plan}
        api.post("/rollouts", json=body).raise_for_status()
        heard, first = 0, 0.0
        last = time.perf_counter()
        while heard < devices:
            line.wait(1.0)
            found = sum(kind & 0xF0 == PUBLISH for kind, _ in line.read())
            now = time.perf_counter()
            if found:
                first, last = first or now, now
                heard += found
            elif now - last > _STALLED_SECONDS:
                raise StalledError(f"{heard} of {devices} offers came, then nothing more")
    return (devices - 1) / (last - first)
