"""A node as far as the launcher sees one: answers the readiness probe, and ends on SIGTERM.

Started as ``fake_node.py node --config FILE``. A file ``behaviour`` beside the configuration makes it
misbehave: ``crash`` (ends at once), ``stubborn`` (ignores SIGTERM), ``unready`` (answers 503).
"""

from __future__ import annotations

import signal
import socket
import sys
import threading
import tomllib
from pathlib import Path


def listen(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    listener = socket.socket()
    for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
        listener.setsockopt(socket.SOL_SOCKET, option, 1)
    listener.bind((host, int(port)))
    listener.listen()
    return listener


def answer(listener: socket.socket, status: str) -> None:
    while True:
        connection, _ = listener.accept()
        with connection:
            connection.recv(4096)
            connection.sendall(f"HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())


def main() -> None:
    config = Path(sys.argv[sys.argv.index("--config") + 1])
    document = tomllib.loads(config.read_text())
    marker = config.with_name("behaviour")
    behaviour = marker.read_text() if marker.exists() else ""
    print(f"fake node {document['node']['id']} starts", flush=True)
    if behaviour == "crash":
        sys.exit("this disk is not mine")
    stop = threading.Event()
    signal.signal(signal.SIGTERM, signal.SIG_IGN if behaviour == "stubborn" else lambda *_: stop.set())
    status = "503 Service Unavailable" if behaviour == "unready" else "200 OK"
    for key in ("listen", "shared_listen"):
        threading.Thread(target=answer, args=(listen(document["http"][key]), status), daemon=True).start()
    while not stop.wait(0.05):
        pass


if __name__ == "__main__":
    main()
