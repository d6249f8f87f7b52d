"""`fleetgate verify-store`: whether the invariants hold, by SQL that shares nothing with the code that writes."""

from dataclasses import asdict

import typer

from gateway.cli.api import ConfigOption
from gateway.cli.output import ExitCode, JsonOption, print_json, print_line, text_of
from gateway.settings import Settings
from store import migrate
from store.database import Database
from store.verify import verify


def verify_store(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Check the database's invariants in one snapshot; ends with 1 if one is broken."""
    database = Database(Settings.load(config).database.url)
    try:
        migrate.check(database)
        report = verify(database)
    finally:
        database.close()
    if as_json:
        print_json({"ok": report.ok, "findings": [asdict(finding) for finding in report.findings]})
    else:
        for finding in report.findings:
            mark = "BREACH" if finding.breaches else "ok"
            print_line(f"{mark:6} {finding.invariant} {finding.what}: {finding.checked} checked")
            for breach in finding.breaches:
                print_line(f"       {text_of(breach)}")
    if not report.ok:
        raise typer.Exit(ExitCode.FAILURE)
