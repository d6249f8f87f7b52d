"""A process of a test's own, which says when it is ready and goes on when it is told to."""

import subprocess
import sys
from types import TracebackType
from typing import Final

DEADLINE_SECONDS: Final = 30


class Child:
    """Python code in a process of its own, up to the line that it prints; it ends with the block.

    Args:
        code: prints a line once it is ready, then reads standard input.
        arguments: its `sys.argv[1:]`.
    """

    def __init__(self, code: str, *arguments: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", code, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> "Child":
        assert self._process.stdout is not None
        assert self._process.stdout.readline(), f"the process ended with {self._process.wait()}"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()

    def go_on(self) -> None:
        """Ends its standard input, and waits until it has ended well."""
        self._process.communicate(timeout=DEADLINE_SECONDS)
        assert self._process.returncode == 0

    def kill(self) -> None:
        """`kill -9`, and waits until it is gone."""
        self._process.kill()
        self._process.wait(DEADLINE_SECONDS)
