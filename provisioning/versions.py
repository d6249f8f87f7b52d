"""Versions of a product's firmware: how they are written, and what a requirement on them means (protocol, section 13).

Two schemes. `semver` is Semantic Versioning 2.0.0; build metadata orders nothing (§10 there). `sequence` is free
text that orders nothing at all: only a bundle's `bundle_seq` does. Which bundle is newer is never decided here.
"""

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import semver

from provisioning.errors import InvalidError

MAX_VERSION_CHARACTERS: Final = 64
"""As in a bundle statement and in a hello's `firmware.version`."""
MAX_COMPARISONS: Final = 8
"""In one requirement; a range needs 2."""

_FREE_TEXT: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+_~-]*")
_COMPARISON: Final = re.compile(r"(>=|<=|==|!=|>|<)[ ]*([0-9A-Za-z.+-]+)")
_OPERATORS: Final[dict[str, Callable[[int, int], bool]]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
}


class VersionScheme(StrEnum):
    """How a product writes its versions."""

    SEMVER = "semver"
    SEQUENCE = "sequence"


def check_version(text: str, scheme: VersionScheme) -> None:
    """Refuse a version that its product's scheme does not allow.

    Args:
        text: the version as a statement says it.
        scheme: the product's.

    Raises:
        InvalidError: it is longer than 64 characters, has others than A–Z a–z 0–9 . + _ ~ -, or is no
            MAJOR.MINOR.PATCH where the scheme is `semver`.
    """
    if len(text) > MAX_VERSION_CHARACTERS or _FREE_TEXT.fullmatch(text) is None:
        raise InvalidError(
            f"a version is 1–{MAX_VERSION_CHARACTERS} of A–Z a–z 0–9 . + _ ~ -, and begins with a letter or "
            f"digit; got {text[:80]!r}",
            field="version",
        )
    if scheme is VersionScheme.SEMVER and _parse_semver(text) is None:
        raise InvalidError(
            f"a version of scheme semver is MAJOR.MINOR.PATCH, with -PRERELEASE and +BUILD where wanted "
            f"(semver.org, 2.0.0); got {text!r}",
            field="version",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionRequirement:
    """What a version must satisfy: all of its comparisons, such as `>=1.2,<2.0`.

    Attributes:
        text: as it was written.
        comparisons: operator and version.
    """

    text: str
    comparisons: tuple[tuple[str, semver.Version], ...]

    def matches(self, version: str) -> bool:
        """Whether `version` satisfies every comparison; one that is no semantic version satisfies none.

        Versions are ordered as Semantic Versioning §11 says, so that 2.0.0-rc.1 is below 2.0.0 and satisfies
        `<2.0`.
        """
        found = _parse_semver(version)
        return found is not None and all(
            _OPERATORS[sign](found.compare(wanted), 0) for sign, wanted in self.comparisons
        )


def parse_requirement(text: str, scheme: VersionScheme = VersionScheme.SEMVER) -> VersionRequirement:
    """Read a requirement: comparisons with `>= <= == != > <`, separated by commas.

    A version may leave out its patch, or its minor too: `>=1.2` is `>=1.2.0`.

    Raises:
        InvalidError: naming the comparison that cannot be read; or the scheme orders no versions.
    """
    if scheme is not VersionScheme.SEMVER:
        raise InvalidError(
            f"versions of scheme {scheme} have no order, so nothing can be required of them; a floor on "
            "bundle_seq can",
            field="version_requirement",
        )
    parts = text.split(",")
    if len(parts) > MAX_COMPARISONS:
        raise InvalidError(
            f"a version requirement has at most {MAX_COMPARISONS} comparisons, got {len(parts)}",
            field="version_requirement",
        )
    return VersionRequirement(text=text, comparisons=tuple(_parse_comparison(part) for part in parts))


def _parse_comparison(text: str) -> tuple[str, semver.Version]:
    found = _COMPARISON.fullmatch(text.strip(" "))
    version = None if found is None else _parse_semver(found[2], optional=True)
    if found is None or version is None:
        raise InvalidError(
            f"a version requirement is such as '>=1.2,<2.0'; {text[:80]!r} is no comparison",
            field="version_requirement",
        )
    return found[1], version


def _parse_semver(text: str, *, optional: bool = False) -> semver.Version | None:
    if len(text) > MAX_VERSION_CHARACTERS:  # also keeps digits far below Python's limit for int()
        return None
    try:
        return semver.Version.parse(text, optional_minor_and_patch=optional)
    except ValueError:
        return None
