"""The directory of trusted CAs: names, numbers without gaps, modes."""

import os
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest

from gateway.mqtt import pki
from gateway.mqtt.capath import CaPath, subject_hash
from provisioning.errors import InvalidError, SetupError

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def links(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir() if path.is_symlink())


def test_the_hash_is_openssls(tmp_path: Path) -> None:
    for name in ("Product A", "Ünïcode CA", "x" * 60):
        authority = pki.create_authority(name, NOW)
        (tmp_path / "ca.pem").write_bytes(authority.pem)
        told = subprocess.run(
            ["openssl", "x509", "-hash", "-noout", "-in", tmp_path / "ca.pem"],
            check=True,
            capture_output=True,
            text=True,
        )
        assert subject_hash(authority.pem) == told.stdout.strip()


def test_adding_and_removing(tmp_path: Path) -> None:
    capath, authority = CaPath(tmp_path), pki.create_authority("A", NOW)
    fingerprint = capath.add("Product A/β", authority.pem)
    assert links(tmp_path) == [f"{subject_hash(authority.pem)}.0"]
    assert (tmp_path / links(tmp_path)[0]).read_bytes() == authority.pem
    assert capath.fingerprints() == {fingerprint}
    assert capath.add("again", authority.pem) == fingerprint
    assert len(list(tmp_path.iterdir())) == 2
    assert capath.remove(fingerprint)
    assert not capath.remove(fingerprint)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_modes_do_not_depend_on_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        CaPath(tmp_path).add("a", pki.create_authority("A", NOW).pem)
    finally:
        os.umask(before)
    (pem,) = tmp_path.glob("*.pem")
    assert pem.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("removed", [0, 1, 2])
def test_cas_of_one_subject_are_numbered_without_gaps(tmp_path: Path, removed: int) -> None:
    capath = CaPath(tmp_path)
    authorities = [pki.create_authority("Same", NOW) for _ in range(3)]
    fingerprints = [capath.add("same", authority.pem) for authority in authorities]
    subject = subject_hash(authorities[0].pem)
    assert links(tmp_path) == [f"{subject}.{number}" for number in range(3)]
    assert capath.remove(fingerprints.pop(removed))
    assert links(tmp_path) == [f"{subject}.{number}" for number in range(2)]
    assert capath.fingerprints() == set(fingerprints)
    assert len(list(tmp_path.glob("*.pem"))) == 2


def test_sync_makes_it_exactly_so(tmp_path: Path) -> None:
    capath = CaPath(tmp_path)
    old, kept, new = (pki.create_authority(name, NOW) for name in ("Old", "Kept", "New"))
    capath.add("old", old.pem)
    fingerprint = capath.add("kept", kept.pem)
    capath.sync([kept.pem, new.pem])
    assert fingerprint in capath.fingerprints()
    assert links(tmp_path) == sorted(f"{subject_hash(ca.pem)}.0" for ca in (kept, new))
    with pytest.raises(InvalidError, match="not a certificate in PEM"):
        capath.sync([old.pem, b"nonsense"])
    assert links(tmp_path) == sorted(f"{subject_hash(ca.pem)}.0" for ca in (kept, new))


def test_a_missing_directory_is_said(tmp_path: Path) -> None:
    capath = CaPath(tmp_path / "absent")
    with pytest.raises(SetupError, match=r"cannot write capath .*absent"):
        capath.add("a", pki.create_authority("A", NOW).pem)
    with pytest.raises(SetupError, match=r"cannot read capath .*absent"):
        capath.fingerprints()
