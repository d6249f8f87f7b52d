"""Doctor: all in order on a real installation with its broker; and each fault named with what to do."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

from broker_fixtures import InstalledBroker

from gateway import doctor
from gateway.cli.init import create_first_organization
from gateway.mqtt.broker import free_ports
from gateway.settings import Settings
from store import migrate


def settings_of(installed: InstalledBroker) -> Settings:
    return Settings.load(installed.installation.settings)


def test_all_is_well(installed_broker: InstalledBroker) -> None:
    settings = settings_of(installed_broker)
    create_first_organization(settings, "acme")
    findings = {finding.name: finding for finding in doctor.examine(settings)}
    # The tests' folders lie below one of mode 0700, which only its owner passes.
    assert [f for f in findings.values() if not f.ok] == []
    assert findings["broker"].detail.startswith(f"localhost:{settings.broker.port} answers, up for ")
    assert "broker version" in findings
    assert f"schema {migrate.head()}" in findings["database"].detail


def test_a_blob_store_that_cannot_be_used(installed_broker: InstalledBroker, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    settings = settings_of(installed_broker)
    broken = settings.model_copy(
        update={"blobs": settings.blobs.model_copy(update={"url": str(tmp_path / "file")})}
    )
    found = doctor.examine_blobs(broken)
    assert not found.ok
    assert "cannot be used" in found.detail
    assert found.advice is not None


def test_a_broker_that_is_away(installed_broker: InstalledBroker) -> None:
    broker = settings_of(installed_broker).broker
    (port,) = free_ports(1)
    found = doctor.examine_broker(broker.model_copy(update={"port": port}))
    assert (found.ok, found.detail) == (False, f"nobody listens on localhost:{port}")
    assert found.advice == "start the broker: mosquitto -c mosquitto.conf"


def test_a_broker_of_another_ca(installed_broker: InstalledBroker) -> None:
    broker = settings_of(installed_broker).broker
    other = installed_broker.installation.broker_files / "gateway-ca.pem"
    found = doctor.examine_broker(broker.model_copy(update={"cafile": other}))
    assert not found.ok
    assert "shows a certificate that does not fit" in found.detail


def test_a_folder_that_the_broker_cannot_pass(tmp_path: Path) -> None:
    capath = tmp_path / "closed" / "capath"
    capath.mkdir(parents=True, mode=0o750)
    (tmp_path / "closed").chmod(0o700)
    found = doctor.examine_capath(capath)
    if doctor._broker_account(capath).pw_uid == capath.stat().st_uid:
        assert found.ok
    else:
        assert not found.ok
        assert "cannot pass through" in found.detail


def test_a_capath_that_others_can_write(tmp_path: Path) -> None:
    place = tmp_path / "broker" / "capath"
    place.mkdir(parents=True)
    (tmp_path / "mosquitto.conf").write_text("user root\n", encoding="utf-8")
    place.chmod(0o777)
    found = doctor.examine_capath(place)
    assert not found.ok
    assert found.advice == f"chmod 2750 {place}"


def test_a_certificate_that_ends(installed_broker: InstalledBroker) -> None:
    file = installed_broker.installation.gateway_certificate
    assert doctor.examine_certificate(file, datetime.now(UTC)).ok
    assert not doctor.examine_certificate(file, datetime.now(UTC) + timedelta(days=100 * 365)).ok
    early = doctor.examine_certificate(file, datetime.now(UTC) - timedelta(days=365))
    assert early.advice is not None
    assert early.advice.startswith("set this machine's clock")


def test_a_database_that_is_not_there(tmp_path: Path) -> None:
    (found,) = doctor.examine_database(f"sqlite:///{tmp_path}/none.db")
    assert not found.ok
    assert "is not there" in found.detail
    assert not (tmp_path / "none.db").exists()
    (found,) = doctor.examine_database("postgresql://nobody@127.0.0.1:1/none?connect_timeout=2")
    assert not found.ok
    assert "is not available" in found.detail


def test_a_state_directory_that_is_not_there(tmp_path: Path) -> None:
    found = doctor.examine_state(tmp_path / "none")
    assert (found.ok, found.detail) == (
        False,
        f"{tmp_path}/none cannot be written: No such file or directory",
    )
