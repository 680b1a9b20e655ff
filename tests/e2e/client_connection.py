"""The client library's connection, with a beginning that OpenSSL's rules allow."""

from __future__ import annotations

import threading
from typing import Any

from websockets.sync.client import ClientConnection


class PatientConnection(ClientConnection):
    """One whose thread reads nothing before the request is written.

    The library reads in a thread of its own from the moment that TLS is there, while another one writes the request.
    An SSL object is not for two threads at once (OpenSSL's openssl-threads(7)), and Python does not keep them apart.
    With TLS 1.3 session tickets come first: while one is being read, the connection counts as being in a handshake,
    and what is written then is lost, or ends in "internal error". Once the request is written, the tickets come before
    the answer, and nobody writes until that is there; nothing later puts the connection back into a handshake.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._may_read = threading.Event()  # before the thread is started
        super().__init__(*arguments, **options)

    def send_data(self) -> None:
        """Writes what waits; the first time, that is the request."""
        try:
            super().send_data()
        finally:
            self._may_read.set()

    def close_socket(self) -> None:
        """The end, which may come before there was a request."""
        self._may_read.set()
        super().close_socket()

    def recv_events(self) -> None:
        """The thread."""
        self._may_read.wait()
        super().recv_events()
