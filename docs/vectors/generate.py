"""Writes the test vectors beside this file: `python docs/vectors/generate.py`; `--check` only compares.

Needs Python 3.11 and the package `cryptography`, and nothing of Fleetgate. The same input gives the same bytes.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from making import certificates, challenges, configurations, envelopes, offers, replies, statements

HERE = Path(__file__).resolve().parent

ABOUT = {
    "envelopes": ("Messages from devices: what a gateway accepts. Sections 4 to 8 and 15.", envelopes.make),
    "statements": ("Bundle statements: what a device installs. Section 13.", statements.make),
    "challenges": ("Freshness of a hello: for authors of servers. Section 9.", challenges.make),
    "replies": ("Replies: what a device does next. Sections 7 and 11.", replies.make),
    "offers": ("Offers: what a device does with them. Section 14.", offers.make),
    "configurations": ("Merged settings. RFC 7396; delivering them is coming.", configurations.make),
    "certificates": ("Chains of certificates: what a gateway accepts. Section 5.", certificates.make),
}


def render(name: str) -> str:
    """One file's text."""
    about, make = ABOUT[name]
    head: dict[str, Any] = {
        "$schema": f"vectors.schema.json#/$defs/{name}",
        "format": 1,
        "protocol": 1,
        "about": about,
    }
    return json.dumps(head | make(), indent=1, ensure_ascii=False) + "\n"


def main() -> int:
    """Writes or compares; 1 where a file differs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit with 1 where a file differs"
    )
    check = parser.parse_args().check
    differing = []
    for name in ABOUT:
        file, text = HERE / f"{name}.json", render(name)
        if not check:
            file.write_text(text, encoding="utf-8")
        elif not file.exists() or file.read_text(encoding="utf-8") != text:
            differing.append(file.name)
    if differing:
        sys.stderr.write(f"differ from what is generated: {', '.join(differing)}\n")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
