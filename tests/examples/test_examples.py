"""The example clients, which know nothing of Fleetgate but its protocol, against the real gateway and broker."""

import ast
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from broker_fixtures import DEADLINE_SECONDS, wait_until
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from example_tools import need
from firmware import KEY, attempts_of, make_product, push, roll_out
from running import Running, random_name, running_gateway

from gateway.device.factory import DeviceCertificate
from gateway.operations import devices, rollouts
from provisioning.errors import NotFoundError
from store.times import now_utc

EXAMPLES = Path(__file__).parents[2] / "examples"
NODE = EXAMPLES / "node"
LINES = {"device.py": 80, "device.sh": 60, "device-firmware.sh": 60}  # each has fewer
NO_CLOCK = {  # a file that takes the clock from a client
    "shell": ("date", "#!/bin/sh\necho 0\n"),
    "python": ("sitecustomize.py", "import time\ntime.time_ns = lambda: 0\n"),
    "node": ("noclock.cjs", "Date.now = () => 0;\n"),
}
SHELL_TOOLS = ("openssl", "mosquitto_rr", "jq", "curl", "base64", "od")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running_gateway(tmp_path_factory.mktemp("examples") / "fleetgate") as gateway:
        yield gateway


@dataclass(slots=True, kw_only=True)
class Example:
    """An example client with its certificate, and its state in a directory."""

    running: Running
    made: DeviceCertificate
    directory: Path
    language: str
    mqtt: str
    environment: dict[str, str] = field(default_factory=dict)
    processes: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.made.certificate_name

    def known(self, name: str) -> Any:
        """What the client keeps in its state directory, or nothing yet."""
        path = self.directory / "state" / name
        return json.loads(path.read_text()) if path.exists() else None

    def options(self) -> dict[str, str]:
        place = self.running.installed.installation
        certificate, key = self.made.write(self.directory)
        return {
            "host": "localhost",
            "port": str(place.device_port),
            "ca": str(place.broker_ca),
            "certificate": str(certificate),
            "key": str(key),
            "signers": str(self.directory / "signers.pem"),
            "state": str(self.directory / "state"),
            "audience": self.running.settings.audience,
            "prefix": self.running.settings.prefix,
            "version": "0.9.0",
        }

    def run(self) -> str:
        """One run of the shell client, in dash; returns what it printed."""
        names = {"certificate": "cert"}
        config = [f"{names.get(name, name)}='{value}'" for name, value in self.options().items()]
        (self.directory / "config").write_text("\n".join(config))
        command = ["dash", EXAMPLES / "device.sh", self.directory / "config"]
        version = {"5": "mqttv5", "3.1.1": "mqttv311"}[self.mqtt]
        done = subprocess.run(
            [*command, "-V", version],
            capture_output=True,
            text=True,
            timeout=DEADLINE_SECONDS,
            env=os.environ | self.environment,
        )
        assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
        return done.stdout

    def start(self) -> subprocess.Popen[str]:
        """Starts a client that stays."""
        options = [text for name, value in self.options().items() for text in (f"--{name}", value)]
        program = {"python": [sys.executable, EXAMPLES / "device.py"], "node": ["node", NODE / "device.js"]}
        with self.output.open("w") as output:
            self.processes.append(
                subprocess.Popen(
                    [*program[self.language], *options, "--mqtt", self.mqtt],
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    text=True,
                    env=os.environ | self.environment,
                )
            )
        return self.processes[-1]

    @property
    def output(self) -> Path:
        """Where a client that stays prints to."""
        return self.directory / "output"

    def stop(self) -> str:
        """SIGTERM, a goodbye and a clean end; returns what it printed."""
        process = self.processes.pop()
        process.send_signal(signal.SIGTERM)
        code = process.wait(timeout=DEADLINE_SECONDS)
        printed = self.output.read_text()
        assert code == 0, printed
        return printed

    def connection(self) -> str | None:
        """How the gateway sees it: `online`, `offline`, or nothing yet."""
        try:
            return devices.find(self.running.desk, self.running.principal, self.name).connection
        except NotFoundError:
            return None

    def happened(self) -> list[tuple[str, str, str | None]]:
        """The device's timeline."""
        found = rollouts.load_timeline(self.running.desk, self.running.principal, self.name, 1000)
        return [(one.kind, one.word, one.reason) for one in found]


@pytest.fixture
def client(running: Running, tmp_path: Path) -> Iterator[Any]:
    made: list[Example] = []

    def make(
        product: str, language: str, mqtt: str = "5", *, key: str = "p256", signer: Any = KEY
    ) -> Example:
        if language == "shell":
            need(all(map(shutil.which, SHELL_TOOLS)), f"one of {', '.join(SHELL_TOOLS)}")
        elif language == "node":
            need(shutil.which("node") is not None, "node")
            need((NODE / "node_modules" / "mqtt").is_dir(), "the npm package mqtt")
        certificate = running.made[product].issue(random_name(language), now=now_utc(), key=key)
        spki = serialization.PublicFormat.SubjectPublicKeyInfo
        trusted = [ec.generate_private_key(ec.SECP256R1()), signer]
        pem = b"".join(one.public_key().public_bytes(serialization.Encoding.PEM, spki) for one in trusted)
        (tmp_path / "signers.pem").write_bytes(pem)
        made.append(
            Example(running=running, made=certificate, directory=tmp_path, language=language, mqtt=mqtt)
        )
        return made[-1]

    yield make
    for process in [process for one in made for process in one.processes]:
        process.kill()
        process.wait()


@pytest.mark.parametrize(("mqtt", "key"), [("5", "p256"), ("3.1.1", "rsa"), ("5", "ed25519"), ("5", "p384")])
def test_the_shell_comes_from_the_factory_to_its_firmware(
    running: Running, client: Any, mqtt: str, key: str
) -> None:
    product = make_product(running, "shell")
    statement = push(running, product)
    view = roll_out(running, product, statement.version)
    device = client(product, "shell", mqtt, key=key)
    assert device.run().splitlines() == ["welcome ", f"{statement.version}: succeeded "]
    assert attempts_of(running, view) == {"offered": 1}
    assert device.known("version.json") == {
        "version": statement.version,
        "bundle_seq": statement.bundle_seq,
    }
    # Its clock has seconds only: a second run within one is challenged, and answers.
    assert device.run().splitlines() in (["welcome "], ["challenge not_fresh", "welcome "])
    assert attempts_of(running, view) == {"succeeded": 1}
    assert device.known("kept.json") == {"highest": statement.bundle_seq, "revision": 1}


@pytest.mark.parametrize(("mqtt", "offered"), [("5", "in the welcome"), ("3.1.1", "while connected")])
@pytest.mark.parametrize("language", ["python", "node"])
def test_a_client_that_stays_comes_from_the_factory_to_its_firmware(
    running: Running, client: Any, language: str, mqtt: str, offered: str
) -> None:
    product = make_product(running, language)
    device = client(product, language, mqtt)
    statement = push(running, product)
    if offered == "in the welcome":
        view = roll_out(running, product, statement.version)
        device.start()
    else:
        device.start()
        wait_until(lambda: device.connection() == "online", "it is connected")
        view = roll_out(running, product, statement.version)
    wait_until(lambda: attempts_of(running, view) == {"succeeded": 1}, "the new image runs")
    wait_until(lambda: device.known("kept.json")["last_update"] is None, "its end has arrived")
    assert device.known("version.json")["version"] == statement.version
    assert device.known("kept.json")["highest"] == statement.bundle_seq
    printed = device.stop()
    wait_until(lambda: device.connection() == "offline", "its goodbye has arrived")
    assert printed.count("welcome") == 2
    assert "ignored" not in printed


@pytest.mark.parametrize("language", ["python", "node"])
def test_the_will_of_a_killed_client_counts(running: Running, client: Any, language: str) -> None:
    device = client(make_product(running, language), language)
    process = device.start()
    wait_until(lambda: device.connection() == "online", "it is connected")
    process.kill()  # no goodbye
    wait_until(lambda: device.connection() == "offline", "its will has arrived")


@pytest.mark.parametrize("reason", ["statement_invalid", "not_above_installed", "digest_mismatch"])
@pytest.mark.parametrize("language", ["shell", "python", "node"])
def test_firmware_that_must_not_be_installed_is_refused(
    running: Running, client: Any, language: str, reason: str
) -> None:
    product = make_product(running, language)
    statement = push(running, product)
    view = roll_out(running, product, statement.version)
    if reason == "statement_invalid":
        device = client(product, language, signer=ec.generate_private_key(ec.SECP256R1()))
    else:
        device = client(product, language)
    if reason == "not_above_installed":  # as after a rollback from a later one
        (device.directory / "state").mkdir()
        kept = {"highest": statement.bundle_seq, "revision": 0}
        (device.directory / "state" / "kept.json").write_text(json.dumps(kept))
    if reason == "digest_mismatch":
        (blob,) = Path(running.settings.blobs.url).rglob(statement.artifacts[0].sha256)
        blob.write_bytes(bytes(statement.artifacts[0].size))
    result = "failed" if reason == "digest_mismatch" else "rejected"
    if language == "shell":
        assert device.run().endswith(f"{statement.version}: {result} {reason}\n")
        device.run()
    else:
        device.start()
    wait_until(lambda: attempts_of(running, view) == {result: 1}, "its refusal has arrived")
    assert ("attempt", result, reason) in device.happened()
    assert (device.known("version.json") or {"bundle_seq": 0})["bundle_seq"] == 0
    assert not list((device.directory / "state" / "images").iterdir())


@pytest.mark.parametrize("language", ["shell", "python", "node"])
def test_a_client_whose_clock_says_1970_answers_the_challenge(
    running: Running, client: Any, language: str, tmp_path: Path
) -> None:
    device = client(make_product(running, language), language)
    file, text = NO_CLOCK[language]
    (tmp_path / file).write_text(text)
    (tmp_path / file).chmod(0o755)
    device.environment = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "PYTHONPATH": str(tmp_path),
        "NODE_OPTIONS": f"--require={tmp_path / file}" if language == "node" else "",
    }
    if language == "shell":
        assert device.run().splitlines() == ["challenge clock_off", "welcome "]
    else:
        device.start()
        wait_until(lambda: "welcome" in device.output.read_text(), "it is welcome")
        assert device.stop().split() == ["challenge", "clock_off", "welcome"]


def test_the_shell_sends_its_chain_again_when_it_is_asked(running: Running, client: Any) -> None:
    device = client(make_product(running, "shell"), "shell")
    (device.directory / "state").mkdir()
    (device.directory / "state" / "welcomed").write_bytes(
        device.made.pem
    )  # by a gateway that has forgotten it
    assert device.run().splitlines() == ["challenge chain_required", "welcome "]


def test_the_examples_are_short() -> None:
    for name, lines in LINES.items():
        assert len((EXAMPLES / name).read_text().splitlines()) < lines, name


def test_the_examples_import_nothing_of_ours() -> None:
    found = sorted(EXAMPLES.glob("*.py"))
    own = {path.stem for path in found}
    for path in found:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            for top in {name.split(".")[0] for name in names} - set(sys.stdlib_module_names) - own:
                assert top in {"paho", "cryptography"}, f"{path.name} imports {top}"
    package = json.loads((NODE / "package.json").read_text())
    assert list(package["dependencies"]) == ["mqtt"]


def test_the_shell_scripts_are_in_order() -> None:
    scripts = [EXAMPLES / "device.sh", EXAMPLES / "device-firmware.sh"]
    for script in scripts:
        subprocess.run(["sh", "-n", script], check=True)
    need(shutil.which("shellcheck") is not None, "shellcheck")
    done = subprocess.run(["shellcheck", "-x", *scripts], capture_output=True, text=True, cwd=EXAMPLES.parent)
    assert (done.returncode, done.stdout) == (0, "")
