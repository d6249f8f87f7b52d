"""Coverage-guided fuzzing of what reads strangers' bytes: `make fuzz SECONDS=600`, or `run.py hello --seconds 60`.

Each target runs in a process of its own (atheris, which is libFuzzer for Python) from its seeds and from what
earlier runs found worth keeping, in build/fuzz/. Then a plain process, without instrumentation, weighs what was
kept: CPU time, and memory in a run of its own. Any finding leaves its input in build/fuzz/findings/ and makes the
exit code 1.
"""

import argparse
import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

HERE: Final = Path(__file__).resolve().parent
ROOT: Final = HERE.parents[1]
BUILD: Final = ROOT / "build" / "fuzz"
SAY_EVERY_SECONDS: Final = 15.0
HANG_SECONDS: Final = 10
"""libFuzzer ends an input that takes so long; what takes more than 50 ms is found by the weighing."""
MOST_RSS_MB: Final = 1024
"""Of the whole process; instrumented and with its corpus it holds about 250."""
MOST_INPUT_BYTES: Final = 17_000
"""A little above the 16 KiB of a message, so that the bound itself is tried."""
SLOWEST_KEPT: Final = 20
INSTRUMENTED: Final = (
    "provisioning",
    "gateway.prover",
    "gateway.device.messages",
    "gateway.device.updates",
    "gateway.http.downloads",
)


@dataclass(slots=True, kw_only=True)
class Row:
    """A line of the final table."""

    target: str
    executions: int = 0
    edges: int = 0
    cpu_ms: float = 0.0
    megabytes: float = 0.0
    findings: list[str] = field(default_factory=list)


def main() -> int:
    """Runs the targets that are named, or all."""
    sys.path[:0] = [str(HERE), str(ROOT / "tests"), str(ROOT)]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("targets", nargs="*", metavar="TARGET")
    parser.add_argument("--seconds", type=int, default=600, help="of wall time in all, without the weighing")
    parser.add_argument("--processes", type=int, default=2, help="targets at once")
    parser.add_argument("--step", choices=("fuzz", "weigh"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step == "fuzz":
        return fuzz(arguments.targets[0], arguments.seconds)
    if arguments.step == "weigh":
        return weigh(arguments.targets[0])
    try:
        import atheris  # noqa: F401
    except ImportError:
        print("atheris is not here: pip install --require-hashes -r requirements-fuzz.lock (Linux on x86-64,"
              " Python 3.11 to 3.13)", file=sys.stderr)  # fmt: skip
        return 2
    from fuzz_targets import TARGETS

    unknown = set(arguments.targets) - set(TARGETS)
    if unknown:
        parser.error(f"no target {', '.join(sorted(unknown))}; there are {', '.join(TARGETS)}")
    rows = run_all(arguments.targets or list(TARGETS), arguments.seconds, arguments.processes)
    print(table(rows), flush=True)
    return 1 if any(row.findings for row in rows) else 0


def run_all(targets: list[str], seconds: int, processes: int) -> list[Row]:
    """Fuzzes, `processes` targets at a time, each for its share; then weighs."""
    shutil.rmtree(BUILD / "findings", ignore_errors=True)
    shutil.rmtree(BUILD / "tmp", ignore_errors=True)
    for folder in ("findings", "tmp", "state"):
        (BUILD / folder).mkdir(parents=True, exist_ok=True)
    processes = min(processes, len(targets))
    share = max(1, seconds * processes // len(targets))
    print(f"{len(targets)} targets, {share} s each, {processes} at a time; logs in {BUILD.relative_to(ROOT)}/",
          flush=True)  # fmt: skip
    waiting, running, ended = list(targets), {}, []
    said_at = began = time.monotonic()
    while waiting or running:
        while waiting and len(running) < processes:
            target = waiting.pop(0)
            running[target] = _start(target, share)
        for target, child in list(running.items()):
            if child.poll() is not None:
                del running[target]
                ended.append(_row(target, child.returncode))
                print(f"{_clock(began)} {target}: {ended[-1].executions} executions", flush=True)
        if time.monotonic() - said_at >= SAY_EVERY_SECONDS:
            said_at = time.monotonic()
            now = ", ".join(f"{target} {_state(target).get('executions', 0)}" for target in running)
            print(f"{_clock(began)} {now}; {len(waiting)} to come", flush=True)
        time.sleep(0.2)
    for row in ended:
        _weighed(row)
    shutil.rmtree(BUILD / "tmp", ignore_errors=True)
    return sorted(ended, key=lambda row: targets.index(row.target))


def table(rows: list[Row]) -> str:
    """The figures, for people."""
    lines = [
        "",
        f"{'target':<12} {'executions':>10} {'edges':>6} {'worst CPU ms':>12} {'worst MB':>8}  findings",
    ]
    for row in rows:
        found = ", ".join(row.findings) or "none"
        lines.append(
            f"{row.target:<12} {row.executions:>10} {row.edges:>6} {row.cpu_ms:>12.2f} {row.megabytes:>8.2f}  {found}"
        )
    lines.append(f"{'in all':<12} {sum(row.executions for row in rows):>10}")
    return "\n".join(lines)


def _start(target: str, seconds: int) -> subprocess.Popen[bytes]:
    """A process of our own kind for one target."""
    with (BUILD / f"{target}.log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, __file__, target, "--step", "fuzz", "--seconds", str(seconds)],
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env=os.environ | {"TMPDIR": str(BUILD / "tmp")},
        )


def _row(target: str, code: int) -> Row:
    """What libFuzzer said at its end."""
    log = (BUILD / f"{target}.log").read_text(encoding="utf-8", errors="replace")
    counts = re.findall(r"stat::number_of_executed_units: (\d+)|^Done (\d+) runs", log, flags=re.MULTILINE)
    executions = max(
        (int(one or other) for one, other in counts), default=_state(target).get("executions", 0)
    )
    edges = re.findall(r" cov: (\d+) ", log)
    row = Row(target=target, executions=executions, edges=int(edges[-1]) if edges else 0)
    row.findings += [f.name for f in (BUILD / "findings").glob(f"{target}-*")]
    if code != 0 and not row.findings:
        row.findings.append(f"ended with {code}, see {target}.log")
    return row


def _weighed(row: Row) -> None:
    """Adds what the plain process measured."""
    done = subprocess.run(
        [sys.executable, __file__, row.target, "--step", "weigh"],
        capture_output=True,
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(BUILD / "tmp")},
        check=False,
    )
    if done.returncode != 0:
        row.findings.append("the weighing failed")
        (BUILD / f"{row.target}-weigh.log").write_bytes(done.stdout + done.stderr)
        return
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    row.cpu_ms, row.megabytes = found["cpu_ms"], found["megabytes"]
    row.findings += found["findings"]


# --- Within the process of one target


def fuzz(name: str, seconds: int) -> int:
    """Never returns: libFuzzer ends the process."""
    import atheris

    with atheris.instrument_imports(include=list(INSTRUMENTED)):
        import fuzz_guard as guard
        from fuzz_seeds import seeds
        from fuzz_targets import TARGETS
    target = TARGETS[name]
    corpus, start = BUILD / "corpus" / name, BUILD / "tmp" / f"seeds-{name}"
    for folder in (corpus, start, BUILD / "slowest" / name):
        folder.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(seeds(name)):
        (start / f"seed-{number}").write_bytes(data)
        guard.run(target, data)  # the warm-up
    keeper = _Keeper(name)

    def one(data: bytes) -> None:
        keeper.note(data, guard.run(target, data))

    def mutate(data: bytes, most: int, seed: int) -> bytes:
        chance = random.Random(seed)
        if chance.random() < 0.5:
            return bytes(target.mutate(data, chance.randrange)[:most])
        return bytes(atheris.Mutate(data, most))

    options = [
        f"-max_total_time={seconds}",
        f"-timeout={HANG_SECONDS}",
        f"-rss_limit_mb={MOST_RSS_MB}",
        f"-max_len={MOST_INPUT_BYTES}",
        f"-artifact_prefix={BUILD / 'findings' / name}-",
        "-print_final_stats=1",
    ]
    atheris.Setup([name, *options, str(corpus), str(start)], one, custom_mutator=mutate)
    atheris.Fuzz()
    return 0


class _Keeper:
    """Counts, and keeps the slowest inputs for the weighing."""

    def __init__(self, name: str) -> None:
        self._state = BUILD / "state" / f"{name}.json"
        self._folder = BUILD / "slowest" / name
        self._slowest: list[float] = []
        self._executions = 0
        self._said_at = 0.0

    def note(self, data: bytes, seconds: float) -> None:
        """After each input."""
        self._executions += 1
        if len(self._slowest) < SLOWEST_KEPT or seconds > self._slowest[0]:
            self._slowest = sorted([*self._slowest, seconds])[-SLOWEST_KEPT:]
            (self._folder / f"{self._executions % SLOWEST_KEPT}").write_bytes(data)
        now = time.monotonic()
        if now - self._said_at >= 1:
            self._said_at = now
            self._state.write_text(json.dumps({"executions": self._executions}), encoding="utf-8")


def weigh(name: str) -> int:
    """Measures everything that was kept, without instrumentation, and prints the worst as JSON."""
    import warnings

    import fuzz_guard as guard
    from fuzz_seeds import seeds
    from fuzz_targets import TARGETS

    warnings.simplefilter("ignore")
    target = TARGETS[name]
    folders = [BUILD / "slowest" / name, BUILD / "corpus" / name]
    inputs = [*seeds(name), *(file.read_bytes() for folder in folders for file in sorted(folder.glob("*")))]
    for data in seeds(name):
        guard.run(target, data)
    seconds = [(guard.measure_seconds(target, data), data) for data in inputs]
    held = [(guard.measure_bytes(target, data), data) for data in inputs]
    findings = []
    for kind, worst, most in (("slow", seconds, guard.MOST_CPU_SECONDS), ("large", held, guard.MOST_BYTES)):
        cost, data = max(worst)
        if cost > most:
            (BUILD / "findings" / f"{name}-{kind}").write_bytes(data)
            findings.append(f"{name}-{kind}")
    print(
        json.dumps({"cpu_ms": max(seconds)[0] * 1000, "megabytes": max(held)[0] / 1e6, "findings": findings})
    )
    return 0


def _state(target: str) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads((BUILD / "state" / f"{target}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found


def _clock(began: float) -> str:
    return f"{time.monotonic() - began:5.0f} s"


if __name__ == "__main__":
    sys.exit(main())
