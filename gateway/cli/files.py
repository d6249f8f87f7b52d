"""Files that commands take and make: read and written with errors that say what to do."""

import json
from pathlib import Path
from typing import Any

from provisioning.errors import InvalidError, SetupError


def read_file(file: Path) -> bytes:
    """The bytes of a small file.

    Raises:
        SetupError: it cannot be read.
    """
    try:
        return file.read_bytes()
    except OSError as error:
        raise SetupError(f"{file} cannot be read: {error.strerror}") from error


def write_file(file: Path, data: bytes) -> None:
    """Writes a file, over one that is there.

    Raises:
        SetupError: it cannot be written.
    """
    try:
        file.write_bytes(data)
    except OSError as error:
        raise SetupError(f"{file} cannot be written: {error.strerror}") from error


def read_json(file: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        InvalidError: it holds something else, or cannot be read.
    """
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidError(f"{file} is not a JSON file: {error}") from error
    if not isinstance(data, dict):
        raise InvalidError(f"{file} must hold a JSON object, got {type(data).__name__}")
    return data
