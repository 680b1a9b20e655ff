"""What a front leaves out, each in a process of its own, for what is imported stays."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from kollator.lean import may_use_tls
from tests.test_process import run

SAID = "print('OpenSSL' in sys.modules, 'cryptography' in sys.modules)\n"


class LeanTests(SynchronousTestCase):
    """Imports that do not happen."""

    def test_which_may_use_tls(self) -> None:
        """Without it a front with TLS might start without, or one behind a proxy carry it for nothing."""
        for plain in (
            "tcp:8080", "tcp6:8080:interface=\\:\\:1", "unix:/run/front", "haproxy:tcp:8080",
            "systemd:domain=INET:index=0", "ws://front-2:8080/worker-sync", "tcp:10.0.0.2:9090",
        ):
            self.assertFalse(may_use_tls([plain]), plain)
        for other in (
            "ssl:8443", "haproxy:ssl:8443", "tls:front-2:9443", "wss://front-2/worker-sync", "le:/x:tcp:443", "",
        ):
            self.assertTrue(may_use_tls(["tcp:8080", other]), other)

    def test_without_either(self) -> None:
        """Without it a front that has no TLS would take a fifth more memory."""
        found = run(
            "import sys\nfrom kollator.lean import without_tls, without_wamp\nwithout_wamp()\n"
            "with without_tls():\n    from twisted.internet import reactor, endpoints\n"
            "    from autobahn.twisted.websocket import WebSocketServerProtocol\n"
            + SAID +
            "from twisted.internet.ssl import Certificate\nimport OpenSSL.SSL\nprint(OpenSSL.SSL.Context.__name__)\n"
        )
        self.assertEqual(found.splitlines(), ["False False", "Context"])

    def test_too_late(self) -> None:
        """Without it a reactor that was chosen earlier would find its TLS taken away."""
        found = run(
            "import sys\nfrom twisted.internet import reactor\nimport autobahn.twisted\nfrom kollator.lean import *\n"
            "without_wamp()\nwith without_tls():\n    import OpenSSL.SSL\n"
            "print(hasattr(autobahn.twisted, 'sleep'))\n" + SAID
        )
        self.assertEqual(found.splitlines(), ["True", "True True"])

    def test_front(self) -> None:
        """Without it one import at the wrong place would bring OpenSSL back into every front."""
        workers = self.mktemp()
        with open(workers, "w", encoding="utf-8") as file:
            file.write("{}")
        for environ, expected in (
            ({}, "False False False"),
            ({"PEER_LISTEN": "tcp:0", "PEERS": "b=ws://b:8080/worker-sync"}, "False False False"),
            ({"PEER_LISTEN": "tcp:0", "PEERS": "b=wss://b/worker-sync"}, "True True True"),
            ({"WORKERS_FILE": workers}, "True True True"),
        ):
            with self.subTest(environ=environ):
                found = run(
                    "import os, sys\nfrom kollator.front import Options, makeService\n"
                    "assert 'twisted.internet.tcp' not in sys.modules\n"
                    "options = Options()\noptions.parent = {'nodaemon': True}\n"
                    f"makeService(options, {{'SQLITE_PATH': ':memory:', 'CLUSTER_KEY': 'k' * 32}} | {environ!r})\n"
                    "print(*(name in sys.modules for name in ('OpenSSL', 'cryptography', 'service_identity')))\n"
                )
                self.assertEqual(found, expected)
