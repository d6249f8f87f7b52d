"""The shipped configuration: what is replaced in it, and that it runs as the account it names."""

import difflib
import os
import pwd
import shutil
import stat
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from broker_fixtures import Party, device_pair, install, wait_until

from gateway.mqtt import broker, pki
from gateway.mqtt.broker import BrokerPlace, render_acl, render_configuration, shipped
from gateway.mqtt.capath import CaPath
from provisioning.errors import SetupError

PLACE = BrokerPlace(
    files=Path("/srv/fg/broker"), data=Path("/srv/fg/data"), user="nobody", device_port=1, gateway_port=2
)


def test_only_ports_paths_and_user_are_replaced() -> None:
    old, new = shipped("mosquitto.conf").splitlines(), render_configuration(PLACE).splitlines()
    changed = [line for line in difflib.ndiff(old, new) if line.startswith("+ ")]
    assert changed == [
        "+ user nobody",
        "+ persistence_location /srv/fg/data/",
        "+ listener 2 127.0.0.1",
        "+ cafile /srv/fg/broker/gateway-ca.pem",
        "+ certfile /srv/fg/broker/server.pem",
        "+ keyfile /srv/fg/broker/server.key",
        "+ acl_file /srv/fg/broker/gateway.acl",
        "+ listener 1",
        "+ capath /srv/fg/broker/capath",
        "+ certfile /srv/fg/broker/server.pem",
        "+ keyfile /srv/fg/broker/server.key",
        "+ acl_file /srv/fg/broker/devices.acl",
    ]
    assert len(old) == len(new)


def test_every_setting_of_the_shipped_file_is_explained() -> None:
    paragraphs = shipped("mosquitto.conf").split("\n\n")
    settings = [paragraph for paragraph in paragraphs if not paragraph.startswith("#")]
    assert settings == ["listener 8883"], (
        "each paragraph begins with its reason; the title above explains that one"
    )


def test_a_shipped_file_that_was_changed_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    text = shipped("mosquitto.conf").replace("user mosquitto", "user broker")
    monkeypatch.setattr(broker, "shipped", lambda _name: text)
    with pytest.raises(SetupError, match="should have one line 'user mosquitto'"):
        render_configuration(PLACE)


def test_the_prefix_is_replaced_in_rights() -> None:
    rights = [line for line in render_acl("devices.acl", "acme/x").splitlines() if line and line[0] != "#"]
    assert rights == [
        "pattern write acme/x/%u/hello",
        "pattern write acme/x/%u/progress",
        "pattern write acme/x/%u/presence",
        "pattern read acme/x/%u/reply",
        "pattern read acme/x/%u/offer",
        "pattern read acme/x/%u/configuration",
    ]
    assert "topic read $SYS/broker/uptime" in render_acl("gateway.acl", "acme/x")


@pytest.fixture
def open_directory() -> Iterator[Path]:
    """A directory that other accounts may pass through, which pytest's own are not."""
    directory = Path(tempfile.mkdtemp(prefix="fleetgate-test-"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


def has_account(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True


@pytest.mark.skipif(os.geteuid() != 0, reason="only root starts a broker that becomes another user")
@pytest.mark.skipif(not has_account("mosquitto"), reason="there is no account mosquitto here")
def test_the_shipped_file_runs_as_user_mosquitto(open_directory: Path, tmp_path: Path) -> None:
    installed = install(open_directory / "fleetgate", broker_user="mosquitto")
    place = installed.installation
    assert "\nuser mosquitto\n" in place.configuration.read_text()
    account = pwd.getpwnam("mosquitto")
    with installed.broker:
        status = Path(f"/proc/{installed.broker.pid}/status").read_text()
        assert f"Uid:\t{account.pw_uid}\t{account.pw_uid}" in status
        # A CA that comes while it runs is readable to it, though it was written by another account.
        authority = pki.create_authority("Live", datetime.now(UTC))
        CaPath(place.capath).add("live", authority.pem)
        transport = installed.transport()
        with Party(installed, device_pair(tmp_path, authority, "p-1")) as device:
            assert device.publish("fg/v1/p-1/hello", b"hello") == 0
        wait_until(lambda: transport.stats().queued == 1, "the message reaches the gateway")
        transport.close()
    saved = place.broker_data / "mosquitto.db"
    assert saved.stat().st_uid == account.pw_uid, "it saves its queue"
    for path in (place.capath, *place.capath.iterdir()):
        assert path.stat().st_gid == account.pw_gid
    assert stat.S_IMODE(place.capath.stat().st_mode) == 0o2750


@pytest.mark.skipif(os.geteuid() != 0, reason="only root starts a broker that becomes another user")
@pytest.mark.skipif(not has_account("mosquitto"), reason="there is no account mosquitto here")
def test_below_a_closed_directory_the_broker_says_what_it_cannot_read(open_directory: Path) -> None:
    closed = open_directory / "closed"
    closed.mkdir(mode=0o700)
    installed = install(closed / "fleetgate", broker_user="mosquitto")
    with pytest.raises(SetupError, match="mosquitto ended with status"):
        installed.broker.start()
