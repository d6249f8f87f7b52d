"""`fleetgate serve` under a service manager (sd_notify(3)): it says when it is ready and when it stops; exit code 0."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from broker_fixtures import DEADLINE_SECONDS, install


@pytest.mark.parametrize("abstract", [False, True])
def test_the_service_manager_is_told(tmp_path: Path, abstract: bool) -> None:
    installed = install(tmp_path / "fleetgate")
    name = f"fleetgate-{os.getpid()}-{tmp_path.name}"
    bound, told = (f"\0{name}", f"@{name}") if abstract else (str(tmp_path / "n"), str(tmp_path / "n"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager, installed.broker:
        manager.bind(bound)
        manager.settimeout(DEADLINE_SECONDS * 2)
        command = [sys.executable, "-m", "gateway", "serve", "--config", str(installed.installation.settings)]
        with subprocess.Popen(command, env=os.environ | {"NOTIFY_SOCKET": told}) as service:
            try:
                assert manager.recv(100) == b"READY=1"
                service.terminate()
                assert manager.recv(100) == b"STOPPING=1"
                assert service.wait(timeout=60) == 0
            finally:
                service.kill()
