"""What a front writes into its log, with everything that DEBUG can turn on."""

from __future__ import annotations

import json

from twisted.trial.unittest import SynchronousTestCase

from tests.e2e.contract_client import Client, Worker, ask
from tests.e2e.processes import WORKER_KEY, Front

SECRET_CANDIDATE = "candidate:secretfoundation 1 udp 2130706431 192.0.2.7 50000 typ host"
SECRET_SDP = "v=0\r\na=ice-pwd:averysecretpassword\r\n"


class LogTests(SynchronousTestCase):
    """JSON lines, debug events, and what must never be among them."""

    def setUp(self) -> None:
        self.front = Front({"DEBUG": "kollator:*", "LOG_FORMAT": "json"}).ready()
        self.addCleanup(self.front.kill)

    def test_no_secrets(self) -> None:
        """Without it who reads the log could take over clients, workers and calls."""
        worker = Worker(self.front.port, "w1").joined()
        client = Client(self.front.port)
        ticket = client.ticket
        client.send(type="offer", to="w1", sdp=SECRET_SDP)
        worker.expect("offer")
        client.send(type="candidate", to="w1", candidate={"candidate": SECRET_CANDIDATE})
        worker.expect("candidate")
        client.send_text("{" + SECRET_SDP)
        client.expect("error")
        ask(self.front.port, "POST", "/bootstrap")
        client.close()
        worker.close()
        self.front.stop()
        log = self.front.log
        for secret in ("averysecretpassword", "secretfoundation", WORKER_KEY, ticket, ticket.rpartition(".")[2]):
            self.assertNotIn(secret, log)
        events = [json.loads(line) for line in self.front.out]
        debug = [event for event in events if event["level"] == "debug" and event["namespace"] == "kollator:signaling"]
        self.assertTrue(any("offer to 'w1'" in event["message"] for event in debug), "DEBUG shows the relay")
        self.assertTrue({"kollator:front", "kollator:signaling", "kollator:pool"} <= {e["namespace"] for e in events})
