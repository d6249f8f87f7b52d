"""Settings: file, environment, errors that say what to do, and a document that leaves none out."""

import re
from pathlib import Path

import pytest

from gateway.settings import Settings, describe
from provisioning.errors import SetupError

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FLEETGATE_CONFIG", raising=False)


def written(folder: Path, text: str) -> Path:
    folder.mkdir(exist_ok=True)
    file = folder / "fleetgate.toml"
    file.write_text(text, encoding="utf-8")
    return file


def test_everything_has_a_default(tmp_path: Path) -> None:
    settings = Settings.load()
    assert settings.broker.port == 8884
    assert settings.broker.capath == tmp_path / "broker/capath"
    assert settings.http.url == "http://127.0.0.1:8080"


def test_file_and_environment_meet_and_the_environment_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = written(tmp_path, "[broker]\nport = 1000\nhost = 'b'\n[log]\njson = true\n")
    monkeypatch.setenv("FLEETGATE_BROKER__PORT", "2000")
    settings = Settings.load(file)
    assert (settings.broker.host, settings.broker.port, settings.log.as_json) == ("b", 2000, True)
    monkeypatch.setenv("FLEETGATE_LOG__JSON", "false")
    assert Settings.load(file).log.as_json is False


def test_paths_count_from_the_file(tmp_path: Path) -> None:
    folder = tmp_path / "elsewhere"
    file = written(
        folder, "[broker]\ncafile = 'x/ca.pem'\nkeyfile = '/abs.key'\n[database]\nurl = 'sqlite:///a.db'\n"
    )
    settings = Settings.load(file)
    assert settings.broker.cafile == folder / "x/ca.pem"
    assert settings.broker.keyfile == Path("/abs.key")
    assert settings.state_directory == folder / "state"
    assert settings.database.url == f"sqlite:///{folder}/a.db"


def test_fleetgate_config_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = written(tmp_path / "named", "audience = 'mqtt.example.com'\n")
    monkeypatch.setenv("FLEETGATE_CONFIG", str(file))
    assert Settings.load().audience == "mqtt.example.com"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "[broker]\nport = 'x'\n",
            "setting broker.port in {file}: got 'x', expected a valid integer, unable to parse string as an "
            "integer",
        ),
        (
            "[broker]\nprot = 1\n",
            "setting broker.prot in {file} is not known; docs/settings.md lists them all",
        ),
        ("[broker]\nport = 0\n", "setting broker.port in {file}: got 0, expected greater than or equal to 1"),
        (
            "[retention]\nminutes_days = 59\n",
            "setting retention.minutes_days in {file}: got 59, expected 0 or at least 60: figures per hour go back "
            "as far as 1440 hours",
        ),
        (
            "prefix = 'a//b'\n",
            "setting prefix in {file}: got 'a//b', expected one to four topic levels of A–Z, a–z, 0–9 and "
            ". _ -, joined by /",
        ),
    ],
)
def test_an_error_names_field_got_expected_and_file(tmp_path: Path, text: str, message: str) -> None:
    file = written(tmp_path, text)
    with pytest.raises(SetupError) as caught:
        Settings.load(file)
    assert str(caught.value) == message.format(file=file)


def test_an_error_names_the_environment_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEETGATE_HTTP__PORT", "many")
    with pytest.raises(
        SetupError, match=r"setting http.port in environment variable FLEETGATE_HTTP__PORT: got 'many'"
    ):
        Settings.load()


def test_a_missing_or_broken_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"is not there; `fleetgate init` makes one"):
        Settings.load(tmp_path / "none.toml")
    with pytest.raises(SetupError, match=r"is not TOML: .*line 2"):
        Settings.load(written(tmp_path, "a = 1\nbroker = x\n"))


def test_every_setting_is_described_and_documented() -> None:
    text = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    documented = set(re.findall(r"^\| `([a-z_.]+)` \|", text, flags=re.M))
    settings = {name: description for name, description, _ in describe()}
    assert documented == set(settings)
    assert all(settings.values())
