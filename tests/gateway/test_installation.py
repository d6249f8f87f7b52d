"""What `create_installation` makes: owners, modes, contents, and that it overwrites nothing."""

import os
import ssl
import stat
import tomllib
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from gateway import installation as module
from gateway.installation import Installation, create_installation
from gateway.secrets import load_root_secret
from gateway.settings import Settings
from provisioning.errors import InvalidError, SetupError

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def make(directory: Path, **changes: object) -> Installation:
    arguments: dict[str, object] = {"device_host": "mqtt.example.com", "now": NOW}
    return create_installation(directory, **(arguments | changes))  # type: ignore[arg-type]


def test_the_tree_and_its_modes(tmp_path: Path) -> None:
    place = make(tmp_path / "new" / "fleetgate")
    modes = {
        str(path.relative_to(place.directory)): oct(stat.S_IMODE(path.stat().st_mode))
        for path in (place.directory, *place.directory.rglob("*"))
    }
    assert modes == {
        ".": "0o710",
        "fleetgate.toml": "0o600",
        "mosquitto.conf": "0o640",
        "blobs": "0o700",
        "broker": "0o2750",
        "broker/capath": "0o2750",
        "broker/broker-ca.pem": "0o640",
        "broker/gateway-ca.pem": "0o640",
        "broker/server.pem": "0o640",
        "broker/server.key": "0o640",
        "broker/gateway.acl": "0o640",
        "broker/devices.acl": "0o640",
        "broker-data": "0o700",
        "private": "0o700",
        "private/broker-ca.key": "0o600",
        "private/gateway-ca.key": "0o600",
        "private/gateway.pem": "0o600",
        "private/gateway.key": "0o600",
        "private/signing-key.pem": "0o600",
        "private/root-secret": "0o600",
        "state": "0o700",
    }


def test_settings_name_what_was_made(tmp_path: Path) -> None:
    place = make(tmp_path / 'quo"te', prefix="acme/v1", audience="gateway-1", http_port=9999)
    settings = tomllib.loads(place.settings.read_text())
    assert settings["audience"] == "gateway-1"
    assert settings["prefix"] == "acme/v1"
    assert settings["database"]["url"] == f'sqlite:///{tmp_path}/quo"te/fleetgate.db'
    assert settings["http"] == {"host": "127.0.0.1", "port": 9999}
    assert settings["broker"]["port"] == 8884
    for path in (
        settings["state_directory"],
        settings["root_secret_file"],
        settings["signing_key_file"],
        *(settings["broker"][name] for name in ("cafile", "certfile", "keyfile", "capath")),
    ):
        assert Path(path).exists()


def test_the_settings_load_as_they_are(tmp_path: Path) -> None:
    place = make(tmp_path / "fleetgate")
    settings = Settings.load(place.settings)
    assert settings.broker.client_id == "", "made from the root secret and the worker's name"
    assert settings.broker.group == place.group
    assert settings.broker.capath == place.capath
    assert settings.database.url == place.database_url
    assert settings.audience == "mqtt.example.com"
    assert len(load_root_secret(settings.root_secret_file)) == 32


def test_secrets_are_random_and_long(tmp_path: Path) -> None:
    first, second = make(tmp_path / "1"), make(tmp_path / "2")
    assert first.group != second.group
    assert len(first.group.removeprefix("fg-")) == 32
    roots = [bytes.fromhex(place.root_secret.read_text()) for place in (first, second)]
    assert roots[0] != roots[1]
    assert {len(root) for root in roots} == {32}
    key = load_pem_private_key(first.signing_key.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert key.curve.name == "secp256r1"


@pytest.mark.parametrize(
    ("host", "names", "addresses"),
    [
        ("mqtt.example.com", ["mqtt.example.com", "localhost"], ["127.0.0.1"]),
        ("192.0.2.7", ["localhost"], ["192.0.2.7", "127.0.0.1"]),
        ("localhost", ["localhost"], ["127.0.0.1"]),
    ],
)
def test_the_brokers_certificate_names_its_hosts(
    tmp_path: Path, host: str, names: list[str], addresses: list[str]
) -> None:
    place = make(tmp_path / "fleetgate", device_host=host)
    certificate = x509.load_pem_x509_certificate((place.broker_files / "server.pem").read_bytes())
    found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert found.get_values_for_type(x509.DNSName) == names
    assert [str(address) for address in found.get_values_for_type(x509.IPAddress)] == addresses
    ssl.create_default_context(cafile=str(place.broker_ca))


def test_the_gateways_certificate_is_of_the_gateways_ca(tmp_path: Path) -> None:
    place = make(tmp_path / "fleetgate")
    client = x509.load_pem_x509_certificate(place.gateway_certificate.read_bytes())
    authority = x509.load_pem_x509_certificate((place.broker_files / "gateway-ca.pem").read_bytes())
    client.verify_directly_issued_by(authority)
    assert client.subject.rfc4514_string() == "CN=gateway"
    assert list(place.capath.iterdir()) == [], "and that CA is none of the devices'"


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    place = make(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(SetupError, match="exists already: an installation is never overwritten"):
        make(tmp_path)
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    place.settings.unlink()
    with pytest.raises(SetupError, match="exists already"):
        make(tmp_path)
    assert not place.settings.exists()


def test_what_else_is_in_the_directory_stays(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    make(tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_failure_takes_away_what_it_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def full(path: Path, *arguments: int) -> int:
        if Path(path).name == "root-secret":
            raise OSError(28, "No space left on device")
        return real(path, *arguments)

    monkeypatch.setattr(module.os, "open", full)
    with pytest.raises(SetupError, match=r"cannot make the installation in .*No space left on device"):
        make(tmp_path / "fleetgate")
    monkeypatch.undo()
    assert not (tmp_path / "fleetgate").exists()
    make(tmp_path / "fleetgate")


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"prefix": "a//b"}, InvalidError, "'a//b' cannot be a topic prefix"),
        ({"prefix": "fg/+"}, InvalidError, "cannot be a topic prefix"),
        ({"device_host": ""}, InvalidError, "'' is no host name"),
        ({"device_host": "a\nb"}, InvalidError, "is no host name"),
        ({"device_host": "bücher.example"}, InvalidError, "is no host name"),
        ({"broker_user": "no-such-user"}, SetupError, "there is no account 'no-such-user'"),
    ],
)
def test_what_cannot_be_used_is_refused(
    tmp_path: Path, changes: dict[str, object], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        make(tmp_path / "fleetgate", **changes)
    assert not (tmp_path / "fleetgate").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files to other accounts")
def test_owners(tmp_path: Path) -> None:
    place = make(tmp_path / "fleetgate", owner="daemon", broker_user="nobody")
    owners = {
        path.name: (path.owner(), path.group())
        for path in (place.directory, place.capath, place.configuration, place.broker_data, place.private,
                     place.settings, place.root_secret)
    }  # fmt: skip
    assert owners == {
        "fleetgate": ("daemon", "nogroup"),
        "capath": ("daemon", "nogroup"),
        "mosquitto.conf": ("daemon", "nogroup"),
        "broker-data": ("nobody", "nogroup"),
        "private": ("daemon", "daemon"),
        "fleetgate.toml": ("daemon", "daemon"),
        "root-secret": ("daemon", "daemon"),
    }
