"""`fleetgate doctor`: looks at everything the gateway needs, and says for each fault what to do."""

from dataclasses import asdict

import typer

from gateway.cli.api import ConfigOption
from gateway.cli.output import ExitCode, JsonOption, print_json, print_line, text_of
from gateway.doctor import examine
from gateway.settings import Settings


def doctor(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Check broker, database, capath, certificates, secrets, folders and clock; ends with 1 if one has a fault."""
    settings = Settings.load(config)
    findings = []
    for finding in examine(settings):
        findings.append(finding)
        if not as_json:
            print_line(f"{'ok   ' if finding.ok else 'FAULT'} {finding.name}: {text_of(finding.detail)}")
            if finding.advice:
                print_line(f"      → {finding.advice}")
    ok = all(finding.ok for finding in findings)
    if as_json:
        print_json({"ok": ok, "findings": [asdict(finding) for finding in findings]})
    if not ok:
        raise typer.Exit(ExitCode.FAILURE)
