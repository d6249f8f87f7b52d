"""Says one hello for each of many devices, each over its own mutual-TLS connection, as fast as two cores go.

Bare sockets and packets of MQTT 3.1.1: the hello goes out right behind the CONNECT, and a device
leaves as soon as the broker has acknowledged it, for good. Run as processes by `say_all_once`.
"""

import pickle
import socket
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from gateway.device.factory import DeviceCertificate
from gateway.device.messages import Voice, load_identity
from gateway.mqtt.packets import pack_publish
from provisioning.topics import Up
from store.times import now_utc

PROCESSES = 2


def say_all_once(
    made: Sequence[DeviceCertificate], *, port: int, cafile: Path, audience: str, prefix: str, directory: Path
) -> list[subprocess.Popen[bytes]]:
    """Starts the processes; each ends with 0 once the broker has all of its hellos."""
    processes = []
    for number in range(PROCESSES):
        share = [(one.pem, one.key_pem) for one in made[number::PROCESSES]]
        job = directory / f"job-{number}"
        job.write_bytes(pickle.dumps((share, port, str(cafile), audience, prefix)))
        processes.append(subprocess.Popen([sys.executable, __file__, str(job)]))
    return processes


def connect_packet(client_id: str) -> bytes:
    """CONNECT with a clean session and a keepalive of a minute (MQTT 3.1.1 §3.1)."""
    body = _text("MQTT") + b"\x04\x02\x00\x3c" + _text(client_id)
    return bytes((0x10, len(body))) + body  # a topic name has at most 64 characters: its length is one byte


def say_once(context: ssl.SSLContext, port: int, voice: Voice) -> None:
    """One connection, one hello, both acknowledged."""
    hello = voice.hello(nonce="only-once-1", ts=int(now_utc().timestamp() * 1000))
    with (
        socket.create_connection(("localhost", port), timeout=60) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as line,
    ):
        publish = pack_publish(voice.topic(Up.HELLO), hello, 1, is_v5=False, correlation=None)
        line.sendall(connect_packet(voice.identity.topic_name) + publish)
        answer = b""
        while len(answer) < 8:
            chunk = line.recv(64)
            assert chunk, "the broker closed the connection"
            answer += chunk
        # CONNACK accepted, PUBACK of identifier 1
        assert answer == b"\x20\x02\x00\x00\x40\x02\x00\x01", answer
        line.sendall(b"\xe0\x00")


def _text(text: str) -> bytes:
    data = text.encode()
    return len(data).to_bytes(2, "big") + data


def main(job: Path) -> None:
    """Works one process's share."""
    share, port, cafile, audience, prefix = pickle.loads(job.read_bytes())
    with tempfile.TemporaryDirectory() as folder:
        cert, key = Path(folder) / "cert", Path(folder) / "key"
        for pem, key_pem in share:
            cert.write_bytes(pem)
            key.write_bytes(key_pem)
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.load_verify_locations(cafile)
            context.load_cert_chain(cert, key)
            voice = Voice(load_identity(pem, key_pem), audience=audience, prefix=prefix)
            say_once(context, port, voice)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
