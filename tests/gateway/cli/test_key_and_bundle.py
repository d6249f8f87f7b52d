"""Signing keys and bundles on the operator's machine: files, modes, output and exit codes; no gateway anywhere."""

import base64
import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization

from gateway.cli import main
from gateway.device.factory import key_pem, new_key
from provisioning.bundles import verify_statement
from provisioning.envelope import key_id_of, load_spki, spki_of
from provisioning.ids import KeyId

Run = Callable[..., tuple[int, str, str]]
SECRET = "correct horse"


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs one command without settings; returns exit code, standard output, standard error."""
    monkeypatch.delenv("FLEETGATE_CONFIG", raising=False)
    monkeypatch.delenv("FLEETGATE_KEY_PASSPHRASE", raising=False)

    def _run(*arguments: object) -> tuple[int, str, str]:
        capfd.readouterr()
        code = main.run([str(argument) for argument in arguments])
        output = capfd.readouterr()
        return code, output.out, output.err

    return _run


@pytest.fixture
def key(run: Run, tmp_path: Path) -> Path:
    file = tmp_path / "release"
    code, _, error = run("key", "create", file)
    assert code == 0, error
    return file


@pytest.fixture
def image(tmp_path: Path) -> Path:
    file = tmp_path / "out" / "app.bin"
    file.parent.mkdir()
    file.write_bytes(b"firmware" * 1000)
    return file


def public(key: Path) -> Path:
    return key.with_name(f"{key.name}.pub")


def trusted(key: Path) -> dict[KeyId, bytes]:
    loaded: Any = serialization.load_pem_public_key(public(key).read_bytes())
    return {key_id_of(loaded): spki_of(loaded)}


def ok(answer: tuple[int, str, str]) -> dict[str, Any]:
    code, output, error = answer
    assert code == 0, output + error
    loaded: dict[str, Any] = json.loads(output)
    return loaded


def create(run: Run, *files: Path, version: str = "1.2.0", more: tuple[object, ...] = ()) -> dict[str, Any]:
    return ok(
        run("bundle", "create", *files, "--product", "pump", "--version", version, "--sequence", 7, *more, "--json")
    )  # fmt: skip


def payload_of(envelope: Path) -> bytes:
    return base64.b64decode(json.loads(envelope.read_bytes())["payload"])


# Keys


@pytest.mark.parametrize("algorithm", ["p256", "ed25519"])
def test_a_key_is_a_private_file_and_a_public_one(run: Run, tmp_path: Path, algorithm: str) -> None:
    file = tmp_path / "release"
    code, output, error = run("key", "create", file, "--algorithm", algorithm, "--json")
    made = ok((code, output, error))
    assert file.stat().st_mode & 0o777 == 0o600
    assert public(file).stat().st_mode & 0o777 == 0o644
    assert file.read_bytes().startswith(b"-----BEGIN PRIVATE KEY-----\n")
    ((key_id, spki),) = trusted(file).items()
    assert made["key_id"] == key_id == hashlib.sha256(spki).hexdigest()
    assert load_spki(spki)
    assert (made["algorithm"], made["encrypted"]) == (algorithm, False)
    assert f"fleetgate key add PRODUCT {public(file)}" in error
    assert ("often lack Ed25519" in error) == (algorithm == "ed25519")
    for half, private in ((file, True), (public(file), False)):
        code, output, error = run("key", "show", half, "--json")
        shown = ok((code, output, error))
        assert (shown["key_id"], shown["algorithm"], shown["private"]) == (key_id, algorithm, private)
        assert file.read_text().splitlines()[1] not in output + error, "the private half is never printed"


@pytest.mark.parametrize("there", ["release", "release.pub"])
def test_a_key_is_never_overwritten_and_no_half_pair_is_left(run: Run, tmp_path: Path, there: str) -> None:
    (tmp_path / there).write_text("precious")
    code, output, error = run("key", "create", tmp_path / "release")
    assert (code, output) == (5, "")
    assert f"{tmp_path / there} is there already; a key is never overwritten" in error
    assert [file.name for file in tmp_path.iterdir()] == [there]
    assert (tmp_path / there).read_text() == "precious"


def test_a_passphrase_encrypts_the_private_file(
    run: Run, tmp_path: Path, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLEETGATE_KEY_PASSPHRASE", SECRET)
    file = tmp_path / "release"
    assert ok(run("key", "create", file, "--json"))["encrypted"] is True
    assert file.read_bytes().startswith(b"-----BEGIN ENCRYPTED PRIVATE KEY-----\n")
    statement = create(run, image)["file"]
    assert ok(run("bundle", "sign", statement, "--key", file, "--json"))["bundle_seq"] == 7
    monkeypatch.setenv("FLEETGATE_KEY_PASSPHRASE", "wrong")
    code, output, error = run("bundle", "sign", statement, "--key", file)
    assert (code, output) == (2, "")
    assert "or the passphrase is wrong" in error
    assert SECRET not in error


def test_keys_that_sign_no_bundles(run: Run, tmp_path: Path, image: Path, key: Path) -> None:
    statement = create(run, image)["file"]
    signed = ok(run("bundle", "sign", statement, "--key", key, "--json"))["file"]
    wrong = tmp_path / "wrong"
    for kind in ("p384", "rsa"):
        made = new_key(kind)
        wrong.write_bytes(key_pem(made))
        code, _, error = run("bundle", "sign", statement, "--key", wrong)
        assert (code, "signed by P-256 or Ed25519" in error) == (2, True), error
        wrong.write_bytes(
            made.public_key().public_bytes(
                serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
            )
        )
        code, _, error = run("bundle", "verify", signed, "--key", wrong)
        assert (code, "signed by P-256 or Ed25519" in error) == (2, True), error
    code, _, error = run("bundle", "verify", signed, "--key", key)
    assert (code, f"{key} is a private key; the public one is wanted, {public(key)}" in error) == (2, True)
    for command in (
        ("bundle", "verify", signed, "--key"),
        ("bundle", "sign", statement, "--key"),
        ("key", "show"),
    ):
        code, _, error = run(*command, image)
        assert code == 2, error
        assert "key in PEM" in error
        assert "Traceback" not in error


def test_a_private_key_that_others_can_read_is_spoken_of(run: Run, image: Path, key: Path) -> None:
    statement = create(run, image)["file"]
    assert "chmod 600" not in run("bundle", "sign", statement, "--key", key)[2]
    key.chmod(0o644)
    assert f"chmod 600 {key}" in run("bundle", "sign", statement, "--key", key)[2]


def test_an_algorithm_that_is_none(run: Run, tmp_path: Path) -> None:
    code, _, error = run("key", "create", tmp_path / "k", "--algorithm", "rsa")
    assert code == 2
    assert "algorithm must be p256 or ed25519, got 'rsa'" in error
    assert not list(tmp_path.iterdir())


# Bundles


@pytest.mark.parametrize("algorithm", ["p256", "ed25519"])
def test_created_signed_verified(run: Run, tmp_path: Path, image: Path, algorithm: str) -> None:
    key = tmp_path / "k"
    run("key", "create", key, "--algorithm", algorithm)
    boot = image.with_name("boot.bin")
    boot.write_bytes(b"b")
    hardware = (
        "--hardware",
        "m1:a",
        "--hardware",
        "m1:b",
        "--hardware",
        "m2",
        "--floor",
        3,
        "--notes",
        "first",
    )
    made = create(run, image, boot, more=hardware)
    statement = image.with_name("pump-1.2.0.json")
    assert made["file"] == str(statement)
    assert made["digest"] == hashlib.sha256(statement.read_bytes()).hexdigest()
    signed = ok(run("bundle", "sign", statement, "--key", key, "--json"))
    envelope = image.with_name("pump-1.2.0.bundle")
    assert (signed["file"], signed["digest"]) == (str(envelope), made["digest"])
    assert payload_of(envelope) == statement.read_bytes()
    read = verify_statement(envelope.read_bytes(), trusted(key), product="pump")
    assert [(one.name, one.size, one.sha256) for one in read.artifacts] == [
        (file.name, file.stat().st_size, hashlib.sha256(file.read_bytes()).hexdigest())
        for file in (image, boot)
    ]
    assert [(one.model, one.revisions) for one in read.hardware] == [("m1", ("a", "b")), ("m2", ())]
    assert (read.version, read.bundle_seq, read.floor, read.notes) == ("1.2.0", 7, 3, "first")
    assert read.created_at > 1_700_000_000_000

    answer = ok(run("bundle", "verify", envelope, "--key", public(key), "--product", "pump", "--json"))
    assert answer["ok"] is True
    assert [rule["name"] for rule in answer["rules"]] == [
        "envelope", "signing_key", "signature", "statement", "product", "artifact app.bin", "artifact boot.bin",
    ]  # fmt: skip
    assert answer["bundle"]["digest"] == made["digest"]
    code, output, _ = run("bundle", "verify", envelope, "--key", public(key))
    assert code == 0
    assert "ok  signature: made over these bytes by that key" in output


def test_signing_again_keeps_the_content(run: Run, tmp_path: Path, image: Path, key: Path) -> None:
    made = create(run, image)
    envelope = Path(ok(run("bundle", "sign", made["file"], "--key", key, "--json"))["file"])
    first = envelope.read_bytes()
    assert ok(run("bundle", "sign", made["file"], "--key", key, "--json"))["file"] == str(envelope)
    assert envelope.read_bytes() != first  # ECDSA
    newer = tmp_path / "newer"
    run("key", "create", newer)
    again = ok(run("bundle", "sign", envelope, "--key", newer, "--json"))
    assert (again["file"], again["digest"]) == (str(envelope), made["digest"])
    assert run("bundle", "verify", envelope, "--key", public(newer))[0] == 0
    assert run("bundle", "verify", envelope, "--key", public(key))[0] == 1


def test_what_a_hand_has_written_is_signed_as_it_is(run: Run, tmp_path: Path, image: Path, key: Path) -> None:
    made = create(run, image)
    statement = Path(made["file"])
    written = json.dumps({**json.loads(statement.read_bytes()), "sbom": "sbom.json"}, indent=2) + "\n"
    statement.write_text(written)
    signed = ok(run("bundle", "sign", statement, "--key", key, "--json"))
    digest = hashlib.sha256(written.encode()).hexdigest()
    assert payload_of(Path(signed["file"])) == written.encode()
    assert signed["digest"] == digest
    shown = ok(run("bundle", "verify", signed["file"], "--key", public(key), "--json"))
    assert shown["bundle"]["digest"] == digest


@pytest.mark.parametrize("version", ["1.2.0", "1.2", "2026.11"])
def test_a_name_without_suffix_keeps_its_version(run: Run, image: Path, key: Path, version: str) -> None:
    made = create(run, image, version=version, more=("-o", image.with_name(f"pump-{version}")))
    signed = ok(run("bundle", "sign", made["file"], "--key", key, "--json"))
    assert signed["file"] == str(image.with_name(f"pump-{version}.bundle"))


def test_a_model_named_whole_is_for_every_revision(run: Run, image: Path) -> None:
    for order in (("m", "m:r1"), ("m:r1", "m")):
        made = create(run, image, more=tuple(part for one in order for part in ("--hardware", one)))
        assert json.loads(Path(made["file"]).read_bytes())["hardware"] == [{"model": "m", "revisions": []}]


@pytest.mark.parametrize(
    ("harm", "failed", "reason"),
    [
        ("artifact changed", "artifact app.bin", "artifact_mismatch"),
        ("artifact longer", "artifact app.bin", "artifact_mismatch"),
        ("artifact gone", "artifact app.bin", "artifact_missing"),
        ("payload", "signature", "bad_signature"),
        ("another key", "signing_key", "signing_key_unknown"),
        ("another product", "product", "bundle_product"),
        ("unsigned", "envelope", "bundle_unsigned"),
        ("no JSON", "envelope", "malformed_json"),
    ],
)
def test_what_verify_refuses(
    run: Run, tmp_path: Path, image: Path, key: Path, harm: str, failed: str, reason: str
) -> None:
    made = create(run, image)
    envelope = Path(ok(run("bundle", "sign", made["file"], "--key", key, "--json"))["file"])
    product, verifier = "pump", key
    match harm:
        case "artifact changed":
            image.write_bytes(b"F" + image.read_bytes()[1:])
        case "artifact longer":
            image.write_bytes(image.read_bytes() + b"\0")
        case "artifact gone":
            image.unlink()
        case "payload":
            document = json.loads(envelope.read_bytes())
            changed = payload_of(envelope).replace(b"1.2.0", b"1.2.1")
            document["payload"] = base64.b64encode(changed).decode()
            envelope.write_text(json.dumps(document))
        case "another key":
            verifier = tmp_path / "other"
            run("key", "create", verifier)
        case "another product":
            product = "lamp"
        case "unsigned":
            envelope = Path(made["file"])
        case "no JSON":
            envelope.write_bytes(b"\x00\xff")
    arguments = ("bundle", "verify", envelope, "--key", public(verifier), "--product", product)
    code, output, error = run(*arguments, "--json")
    answer = json.loads(output)
    assert (code, answer["ok"]) == (1, False), error
    (rule,) = [rule for rule in answer["rules"] if rule["passed"] is False]
    assert (rule["name"], rule["reason"]) == (failed, reason)
    code, output, _ = run(*arguments)
    assert code == 1
    assert f"NO  {failed}: " in output
    assert f"({reason})" in output


def test_artifacts_elsewhere(run: Run, tmp_path: Path, image: Path, key: Path) -> None:
    made = create(run, image, more=("-o", tmp_path / "statement.json"))
    envelope = ok(run("bundle", "sign", made["file"], "--key", key, "--json"))["file"]
    assert run("bundle", "verify", envelope, "--key", public(key))[0] == 1
    assert run("bundle", "verify", envelope, "--key", public(key), "--files", image.parent)[0] == 0


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"--version": "a b"}, "version: String should match pattern"),
        ({"--product": "Pump"}, "product: String should match pattern"),
        ({"--sequence": 2**53}, "bundle_seq: Input should be less than"),
        ({"--floor": 7}, "floor: 7 must be below bundle_seq 7"),
        ({"--hardware": ":r1"}, "hardware is MODEL or MODEL:REVISION, got ':r1'"),
        ({"--output": "OVER"}, "app.bin would be written over"),
        ({"--output": "x.bundle"}, "is the name of a signed statement"),
    ],
)
def test_what_create_refuses(run: Run, image: Path, changes: dict[str, object], expected: str) -> None:
    content = image.read_bytes()
    options: dict[str, object] = {"--product": "pump", "--version": "1", "--sequence": 7, **changes}
    if options.get("--output") == "OVER":
        options["--output"] = image
    code, output, error = run("bundle", "create", image, *(part for pair in options.items() for part in pair))
    assert (code, output) == (2, ""), error
    assert expected in error
    assert [file.name for file in image.parent.iterdir()] == ["app.bin"]
    assert image.read_bytes() == content


def test_what_create_refuses_of_files(run: Run, tmp_path: Path, image: Path) -> None:
    options = ("--product", "pump", "--version", "1", "--sequence", 1)
    empty, spaced = image.with_name("empty.bin"), image.with_name("a b.bin")
    empty.touch()
    spaced.write_bytes(b"x")
    other = tmp_path / "boot.bin"
    other.write_bytes(b"x")
    for files, expected in (
        ([image, empty], "empty.bin is empty; an artifact has at least 1 byte"),
        ([image, image.with_name("gone.bin")], "gone.bin is no file"),
        ([image.parent], "is no file"),
        ([spaced], "artifacts.0.name: String should match pattern"),
        ([image, image], "two have the same name"),
        ([image, other], "the artifacts must be in one folder"),
    ):
        code, output, error = run("bundle", "create", *files, *options)
        assert (code, output) == (2, ""), error
        assert expected in error


def test_sign_writes_over_no_key_artifact_or_statement(run: Run, image: Path, key: Path) -> None:
    statement = Path(create(run, image)["file"])
    for precious in (key, image, statement):
        content = precious.read_bytes()
        code, _, error = run("bundle", "sign", statement, "--key", key, "-o", precious)
        assert (code, f"{precious} would be written over" in error) == (2, True), error
        assert precious.read_bytes() == content


def test_what_sign_refuses_is_not_written(run: Run, image: Path, key: Path) -> None:
    statement = Path(create(run, image)["file"])
    statement.write_text(statement.read_text().replace('"bundle_seq":7', '"bundle_seq":0'))
    code, _, error = run("bundle", "sign", statement, "--key", key)
    assert code == 1
    assert "bundle_malformed: bundle_seq" in error
    assert not image.with_name("pump-1.2.0.bundle").exists()


_MEASURED = """
import resource, sys
from gateway.cli import main
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
code = main.run(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, file=sys.stderr)
sys.exit(code)
"""


def test_a_gigabyte_is_read_in_constant_memory(tmp_path: Path) -> None:
    huge = tmp_path / "huge.bin"
    with huge.open("wb") as file:
        file.truncate(1 << 30)  # sparse: takes no room
    arguments = ["bundle", "create", huge, "--product", "pump", "--version", "1", "--sequence", "1", "--json"]
    done = subprocess.run(
        [sys.executable, "-c", _MEASURED, *map(str, arguments)], capture_output=True, text=True, timeout=110
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["artifacts"] == [f"huge.bin ({1 << 30} bytes)"]
    grown = int(done.stderr.split()[-1]) * (1 if sys.platform == "darwin" else 1024)
    assert grown < 64 << 20, f"{grown} bytes more for a file of 1 GiB"
