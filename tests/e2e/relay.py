"""What passes between the server and an archive, and can be cut at an exact place."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from serving import free_port

Side: TypeAlias = Literal["request", "answer"]

UPLOAD = rb"POST \S+/studies\b"
DOWNLOAD = rb"GET \S+/series/[\d.]+ HTTP"
LISTING = rb"GET \S+/series\?"


@dataclass(frozen=True)
class Cut:
    """After ``after`` bytes of the request or the answer: ``then`` is called, nothing more passes."""

    request: bytes
    side: Side
    after: int
    then: Callable[[], object]


class Relay:
    """Listens on a port of its own and passes everything on to ``port``."""

    def __init__(self, port: int) -> None:
        self._target = port
        self._cut: Cut | None = None
        self._cuts = threading.Lock()
        self.done = threading.Event()
        """That what :meth:`cut` asked for has happened."""
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/dicom-web"
        self._listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._listen, daemon=True).start()

    def cut(self, request: bytes, side: Side, *, after: int, then: Callable[[], object]) -> None:
        """Cut the next exchange whose request matches the pattern ``request``."""
        self.done.clear()
        self._cut = Cut(request, side, after, then)

    def close(self) -> None:
        self._listener.close()

    def _listen(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._connect, args=(client,), daemon=True).start()

    def _connect(self, client: socket.socket) -> None:
        try:
            archive = socket.create_connection(("127.0.0.1", self._target))
        except OSError:
            client.close()
            return
        link = _Link(self, client, archive)
        threading.Thread(target=link.pass_on, args=(archive, client, "answer"), daemon=True).start()
        link.pass_on(client, archive, "request")

    def _due(self, cut: Cut) -> bool:
        """Whether this cut was not made yet; it counts as made now."""
        with self._cuts:
            mine, self._cut = self._cut is cut, None if self._cut is cut else self._cut
        return mine


class _Link:
    def __init__(self, relay: Relay, client: socket.socket, archive: socket.socket) -> None:
        self._relay, self._ends = relay, (client, archive)
        self._cut: Cut | None = None
        self._passed = 0

    def pass_on(self, source: socket.socket, target: socket.socket, side: str) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(4096):
                wanted = self._relay._cut
                if side == "request" and wanted and re.match(wanted.request, data):
                    self._cut, self._passed = wanted, 0
                cut = self._cut
                if cut and cut.side == side:
                    self._passed += len(data)
                    if self._passed > cut.after and self._relay._due(cut):
                        cut.then()
                        self._relay.done.set()
                        break
                target.sendall(data)
        for end in self._ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
