"""Every `fleetgate …` line in the documents is one that the command line knows, options and all."""

import importlib
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])


def command_lines(text: str) -> list[str]:
    """The command lines in code: blocks with their continuation lines, and in running text."""
    lines = re.findall(r"`(fleetgate [^`\n]+)`", text)
    for block in re.findall(r"^```(?:console|sh)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL):
        joined = block.replace("\\\n", " ")
        lines += re.findall(
            r"^(?:\$ )?(?:sudo (?:-\S+ )*(?:-u \S+ )?)?(?:\S*/)?(fleetgate .+)$", joined, flags=re.M
        )
    return [line.partition(" #")[0].strip() for line in lines if "…" not in line and "NOUN" not in line]


CASES = [
    pytest.param(line, id=f"{path.relative_to(ROOT).as_posix()}: {line}")
    for path in DOCUMENTS
    for line in dict.fromkeys(command_lines(path.read_text(encoding="utf-8")))
]


@pytest.fixture(scope="module")
def root() -> Any:
    if not (ROOT / "gateway" / "cli" / "main.py").exists():
        pytest.skip("gateway/cli/main.py is not there yet: the commands in the documents are unchecked")
    module = importlib.import_module("gateway.cli.main")
    return typer.main.get_command(next(v for v in vars(module).values() if isinstance(v, typer.Typer)))


def complaint(command: Any, words: list[str]) -> str | None:
    """What is wrong with `words` as arguments of `command`, or None."""
    path = "fleetgate"
    while words and hasattr(command, "commands") and not words[0].startswith("-"):
        if words[0] not in command.commands:
            return f"{path} has {sorted(command.commands)}, not {words[0]!r}"
        command, path = command.commands[words[0]], f"{path} {words[0]}"
        words = words[1:]
    options = {name: option for option in command.params for name in option.opts + option.secondary_opts}
    arguments = [parameter for parameter in command.params if parameter.param_type_name == "argument"]
    given = 0
    while words:
        word, *words = words
        name, equals, _ = word.partition("=")
        if not word.startswith("-"):
            given += 1
        elif name not in options:
            return f"{path} has no option {name}; it has {sorted(o for o in options if o.startswith('-'))}"
        elif not (options[name].is_flag or equals):
            words = words[1:]
    if given > len(arguments) and not any(argument.nargs == -1 for argument in arguments):
        return f"{path} takes {len(arguments)} arguments, got {given}"
    return None


@pytest.mark.parametrize("line", CASES)
def test_a_documented_command_exists(root: Any, line: str) -> None:
    assert complaint(root, shlex.split(line)[1:]) is None
