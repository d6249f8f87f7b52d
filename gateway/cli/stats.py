"""`fleetgate stats`: the fleet in figures, from counters."""

from collections.abc import Mapping

from gateway.cli.api import ConfigOption, open_api
from gateway.cli.output import JsonOption, print_json, print_line, print_rows


def stats(
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Devices by state, product and cohort, who is connected, connects and refusals by reason, versions."""
    with open_api(config) as api:
        figures = api.get("stats")
    if as_json:
        print_json(figures)
        return
    _print(figures)


def _print(figures: Mapping[str, object], title: str = "") -> None:
    """Plain figures as a table under their name; lists of objects as tables of their own; the rest below."""
    plain = {key: value for key, value in figures.items() if not isinstance(value, Mapping | list)}
    if plain:
        _heading(title)
        print_rows(
            [{"what": key.replace("_", " "), "count": value} for key, value in plain.items()],
            [("", "what"), ("", "count")],
            as_json=False,
        )
    for key, value in figures.items():
        name = f"{title} {key.replace('_', ' ')}".strip()
        if isinstance(value, Mapping) and value:
            _print(value, name)
        elif isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
            _heading(name)
            print_rows(value, [(column.replace("_", " "), column) for column in value[0]], as_json=False)


def _heading(title: str) -> None:
    if title:
        print_line(title)
