"""Deep checks by real processes: a front, its probe, workers; data channels over UDP on this machine."""

from __future__ import annotations

import os
import re
import select
import signal
import ssl
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, TypeVar

from aioice.ice import get_host_addresses
from twisted.internet import reactor
from twisted.internet.defer import Deferred, inlineCallbacks
from twisted.logger import capturedLogs
from twisted.trial.unittest import SkipTest, SynchronousTestCase, TestCase

from kollator.deepcheck import DeepCheck
from kollator.pool.checks import PHASES
from tests.certificates import self_signed_pem, write_pair
from tests.e2e.contract_client import Worker, ask
from tests.e2e.processes import Front, new_folder

T = TypeVar("T")

PROBE = "kollator.webrtc.probe"
AWAIT_S = 60.0
CHECKED = {"DEEP_HEALTH_INTERVAL": "0.2"}


def probes(front: Front) -> list[int]:
    """The process ids of a front's probes."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            command = (entry / "cmdline").read_text()
        except (OSError, ValueError):  # it has just ended
            continue
        if parent == front.process.pid and PROBE in command:
            found.append(int(entry.name))
    return found


def watched(pid: int) -> int:
    """A file descriptor that becomes readable when the process has ended."""
    return os.pidfd_open(pid)


class DeepCheckCase(SynchronousTestCase):
    """A front that checks its workers five times a second."""

    def setUp(self) -> None:
        if not get_host_addresses(use_ipv4=True, use_ipv6=False):
            raise SkipTest("there is no network interface but loopback, which aioice does not use")
        if not Path("/proc/self/stat").exists() or not hasattr(os, "pidfd_open"):
            raise SkipTest("there is no /proc or no pidfd_open, by which the probe is found")

    def front(self, *options: str, settings: dict[str, str] = CHECKED) -> Front:
        """A front, ended after the test whatever happens."""
        front = Front(settings, options).ready()
        self.addCleanup(front.kill)
        return front

    def until(self, asked: Callable[[], T], said: str) -> T:
        """Asks until the answer is true."""
        deadline_s = time.monotonic() + AWAIT_S
        while not (answer := asked()):
            if time.monotonic() > deadline_s:
                raise AssertionError(said)
        return answer

    def count(self, front: Front, metric: str) -> float:
        """A number of the front's metrics."""
        text = ask(front.port, "GET", "/metrics").body.decode()
        match = re.search(rf"^{re.escape(metric)} (\S+)$", text, re.MULTILINE)
        assert match is not None, metric
        return float(match[1])

    def checks(self, front: Front, outcome: str) -> float:
        """How many checks have ended so."""
        return self.count(front, f'kollator_deep_checks_total{{outcome="{outcome}"}}')

    def until_gone(self, descriptor: int) -> None:
        """Waits for the end of a process that is ``watched``."""
        self.addCleanup(os.close, descriptor)
        readable, _, _ = select.select([descriptor], [], [], AWAIT_S)
        self.assertTrue(readable, "the probe outlives its front")

    def the_probe(self, front: Front) -> int:
        """The process id of the one probe."""
        (pid,) = self.until(lambda: probes(front), "there is no probe")
        return pid


class ReferenceTests(DeepCheckCase):
    """With the reference worker."""

    def test_passes(self) -> None:
        """Without it the check might fail every good worker, end with its probe, or leave a process behind."""
        front = self.front("--demo-worker")
        self.until(lambda: self.checks(front, "ok") >= 3, "no check succeeded")
        for phase in PHASES:
            self.assertGreaterEqual(self.count(front, f'kollator_deep_check_seconds_count{{phase="{phase}"}}'), 3)
        self.assertEqual(self.count(front, "kollator_handoffs_total"), 0)
        first = self.the_probe(front)
        os.kill(first, signal.SIGKILL)
        second = self.until(lambda: [pid for pid in probes(front) if pid != first], "the probe did not come back")
        before = self.checks(front, "ok")
        self.until(lambda: self.checks(front, "ok") > before, "no check succeeded after the probe's death")
        self.assertEqual(self.checks(front, "failed"), 0)
        (worker,) = ask(front.port, "GET", "/workers").json()["workers"]
        self.assertEqual(worker["state"], "up")
        descriptor = watched(*second)
        front.stop()
        self.until_gone(descriptor)


class ContractTests(DeepCheckCase):
    """With workers that speak the contract, and no WebRTC."""

    def worker(self, front: Front, name: str) -> Worker:
        worker = Worker(front.port, name).joined()
        self.addCleanup(worker.close)
        return worker

    def refuse(self, worker: Worker) -> None:
        """Waits for an offer and says no to it."""
        while (message := worker.receive(AWAIT_S))["type"] != "offer":
            self.assertEqual(message["type"], "bye")
        self.assertEqual(message["session"][:6], "check-")
        worker.send(type="bye", to=message["from"], session=message["session"], reason="failed")

    def test_out(self) -> None:
        """Without it clients would be sent to workers that cannot serve them."""
        front = self.front()
        worker = self.worker(front, "w1")
        self.refuse(worker)
        self.until(lambda: self.checks(front, "failed") == 1, "the failure was not counted")
        self.assertEqual(self.row(front)["state"], "up")
        self.refuse(worker)
        self.until(lambda: self.row(front)["state"] == "down", "the worker is still used")
        self.assertEqual(self.row(front)["why"], "webrtc")
        self.assertEqual(ask(front.port, "POST", "/bootstrap").status, 503)
        self.refuse(worker)  # checks of it go on
        worker.close()
        front.stop()

    def row(self, front: Front) -> Any:
        """The worker as the operators see it."""
        (row,) = ask(front.port, "GET", "/workers").json()["workers"]
        return row

    def test_no_orphan(self) -> None:
        """Without it a front that is killed would leave its probe behind, more of them with each crash."""
        front = self.front(settings={**CHECKED, "DEBUG": "kollator:signaling"})
        self.worker(front, "w1")
        descriptor = watched(self.the_probe(front))
        self.until(lambda: "client-joined" in front.log, "no check began")
        front.kill()
        self.until_gone(descriptor)

    def test_off(self) -> None:
        """Without it every front would start a probe that nobody asked for."""
        front = self.front(settings={})
        ask(front.port, "GET", "/health")
        self.assertEqual(probes(front), [])
        front.stop()


class ProbeTests(TestCase):
    """The front's side in this process, with a real probe and a real front; the worker has a second to answer."""

    timeout = 2 * AWAIT_S  # type: ignore[assignment]

    def setUp(self) -> None:
        self.hosts = get_host_addresses(use_ipv4=True, use_ipv6=False)
        if not self.hosts:
            raise SkipTest("there is no network interface but loopback, which aioice does not use")

    def front(self, *options: str) -> Front:
        """A front, ended after the test."""
        front = Front(options=options).listening()
        self.addCleanup(front.kill)
        return front

    def tls(self, host: str) -> tuple[str, ...]:
        """The options of a front on ``host``, with a certificate that nobody knows, for another name."""
        key, certificate = write_pair(new_folder(), self_signed_pem("front.example"))
        return "--listen", f"ssl:0:interface={host}:privateKey={key}:certKey={certificate}"

    def unexpected(self, *verdict: str) -> None:
        """A verdict on a worker that there should not be."""
        self.fail(f"{verdict}")

    def checked(self, url: str, count: int, **told: Any) -> Deferred[list[str]]:
        """What came of the first ``count`` checks of ``w1`` through a front."""
        clock: Any = reactor
        over = Deferred[list[str]]()
        outcomes: list[str] = []

        def checked(outcome: str) -> None:
            outcomes.append(outcome)
            if len(outcomes) == count:
                clock.callLater(0, over.callback, outcomes)

        deep = DeepCheck(
            0.2,
            clock,
            url=lambda: url,
            workers=lambda: ["w1"],
            unwell=told.get("unwell", self.unexpected),
            well=self.unexpected,
            checked=checked,
            limit_s=1.0,
        )
        deep.startService()
        self.addCleanup(deep.stopService)
        return over

    @inlineCallbacks
    def test_never_answers(self) -> Generator[Any, Any, None]:
        """Without it a worker that registers, answers pings and no offer would stay in the ring."""
        front = self.front()
        worker = Worker(front.port, "w1").joined()
        self.addCleanup(worker.close)
        told: list[tuple[str, str, str]] = []
        outcomes = yield self.checked(
            f"ws://127.0.0.1:{front.port}/signaling", 2, unwell=lambda *verdict: told.append(verdict)
        )
        self.assertEqual(outcomes, ["failed", "failed"])
        ((name, why, said),) = told
        self.assertEqual((name, why), ("w1", "webrtc"))
        self.assertIn("answer: not done within 1 s", said)

    @inlineCallbacks
    def test_tls_of_this_machine(self) -> Generator[Any, Any, None]:
        """Without it a front whose certificate is for its name in the world could not be checked from beside it."""
        front = self.front(*self.tls("127.0.0.1"))
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        worker = Worker(front.port, "w1", tls=context).joined()
        self.addCleanup(worker.close)
        outcomes = yield self.checked(f"wss://127.0.0.1:{front.port}/signaling", 1)
        self.assertEqual(outcomes, ["failed"])  # by the worker, after the welcome

    @inlineCallbacks
    def test_tls_of_others(self) -> Generator[Any, Any, None]:
        """Without it whoever is in between could make workers fail, or pass."""
        front = self.front(*self.tls(self.hosts[0]))
        with capturedLogs() as events:
            outcomes = yield self.checked(f"wss://{self.hosts[0]}:{front.port}/signaling", 1)
        self.assertEqual(outcomes, ["aborted"])
        self.assertIn("certificate verify failed", str([event.get("reason") for event in events]))
