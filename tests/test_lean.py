"""What a front leaves out, each in a process of its own, for what is imported stays."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from kollator.lean import needs_tls
from tests.test_process import run

SAID = "print('OpenSSL' in sys.modules, 'cryptography' in sys.modules)\n"


class LeanTests(SynchronousTestCase):
    """Imports that do not happen."""

    def test_which_need_tls(self) -> None:
        """Without it a front with TLS might start without, or one behind a proxy carry it for nothing."""
        for plain in (
            "tcp:8080", "tcp6:8080:interface=\\:\\:1", "unix:/run/front", "haproxy:tcp:8080",
            "systemd:domain=INET:index=0", "ws://front-2:8080/worker-sync", "tcp:10.0.0.2:9090",
        ):
            self.assertFalse(needs_tls([plain]), plain)
        for other in (
            "ssl:8443", "haproxy:ssl:8443", "tls:front-2:9443", "wss://front-2/worker-sync", "le:/x:tcp:443", "",
        ):
            self.assertTrue(needs_tls(["tcp:8080", other]), other)

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
