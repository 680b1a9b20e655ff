"""The worker's settings: each from the command line and the environment, and each refused with a remedy."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from kollator.settings import SettingError
from kollator.webrtc.options import WorkerOptions, WorkerSettings

FRONT = "ws://127.0.0.1:8080/signaling"


class OptionTests(SynchronousTestCase):
    """What is taken and what is not."""

    def setUp(self) -> None:
        folder = Path(self.mktemp())
        folder.mkdir()
        self.folder = str(folder.resolve())
        self.key_file = str(folder / "worker.key")
        Path(self.key_file).write_text("k" * 32 + "\n" + "old" * 10 + "\n")
        os.chmod(self.key_file, 0o600)
        self.least = {"WORKER_FRONTS": FRONT, "WORKER_KEY": "k" * 32}

    def load(self, environ: dict[str, str], **options: Any) -> WorkerSettings:
        return WorkerSettings.load(options, environ, lambda: "host.example")

    def refused(self, environ: dict[str, str], **options: Any) -> str:
        error = self.assertRaises(SettingError, self.load, self.least | environ, **options)
        self.assertNotIn("\n", str(error))
        return str(error)

    def test_defaults(self) -> None:
        """The least that has to be said is which front, and the key."""
        settings = self.load(self.least)
        self.assertEqual(settings.fronts, (FRONT,))
        self.assertEqual(settings.id, "host.example")
        self.assertEqual(settings.keys, (b"k" * 32,))
        self.assertEqual((settings.folder, settings.region, settings.address), (None, "", ""))
        self.assertEqual((settings.capacity, settings.stun, settings.turn), (100, None, ()))
        self.assertFalse(settings.until_eof)
        self.assertNotIn("kkk", repr(settings))

    def test_environment(self) -> None:
        """A container is set up by its environment alone."""
        settings = self.load(
            {
                "WORKER_FRONTS": "ws://a:8080 wss://b/signaling",
                "WORKER_KEY_FILE": self.key_file,
                "WORKER_ID": "w:1",
                "WORKER_FOLDER": self.folder,
                "WORKER_REGION": "us-west",
                "WORKER_CAPACITY": "7",
                "WORKER_ADDRESS": "192.168.1.100",
                "STUN_SERVERS": "",
                "TURN_SERVERS": "turn:t.example:3478",
                "TURN_SECRET": "a secret of coturn's",
            }
        )
        self.assertEqual(settings.fronts, ("ws://a:8080/signaling", "wss://b/signaling"))
        self.assertEqual(settings.keys, (b"k" * 32, b"old" * 10))
        self.assertEqual((settings.id, settings.folder, settings.region), ("w:1", self.folder, "us-west"))
        self.assertEqual((settings.capacity, settings.address), (7, "192.168.1.100"))
        self.assertEqual((settings.stun, settings.turn), ((), ("turn:t.example:3478",)))
        self.assertEqual(settings.turn_secrets, (b"a secret of coturn's",))

    def test_options_win(self) -> None:
        """What was typed now counts more than what was exported some time ago."""
        self.patch(os, "environ", self.least | {"WORKER_CAPACITY": "7", "STUN_SERVERS": "stun:s.example"})
        options = WorkerOptions()
        options.parseOptions(["--capacity", "9", "--front", "ws://a", "--front", "ws://b:81/x", "--stun", ""])
        self.assertEqual(options.settings.capacity, 9)
        self.assertEqual(options.settings.fronts, ("ws://a/signaling", "ws://b:81/x"))
        self.assertEqual(options.settings.stun, ())

    def test_one_line_on_exit(self) -> None:
        """A traceback for a typing error helps nobody, and a key in it helps the wrong ones."""
        self.patch(os, "environ", self.least)
        ended = self.assertRaises(SystemExit, WorkerOptions().parseOptions, ["--capacity", "many"])
        self.assertRegex(str(ended), r"^kollator-worker: WORKER_CAPACITY \(--capacity\): .*whole number.*$")

    def test_fronts(self) -> None:
        """A URL that only looks right would be tried for ever."""
        for url in ("", "127.0.0.1:8080", "http://a/signaling", "ws://", "ws://u:p@a/", "ws://a/#x", "ws://a:0/",
                    "ws://a:99999/", "ws://[::1/"):  # fmt: skip
            self.assertIn("WORKER_FRONTS (--front)", self.refused({}, front=[url]))
        self.assertIn("named twice", self.refused({}, front=["ws://a", "ws://a/signaling"]))
        self.assertEqual(self.load(self.least, front=["wss://[::1]:9/"]).fronts, ("wss://[::1]:9/signaling",))

    def test_what_is_missing(self) -> None:
        """The first start is where people need the names of the settings."""
        self.assertIn("WORKER_FRONTS (--front): it is not set", str(self.failed({})))
        self.assertIn("WORKER_KEY_FILE (--key-file): it is not set", str(self.failed({"WORKER_FRONTS": FRONT})))

    def failed(self, environ: dict[str, str]) -> SettingError:
        error: SettingError = self.assertRaises(SettingError, self.load, environ)
        return error

    def test_keys(self) -> None:
        """A key file that others can read is no secret; two sources of keys are a mistake."""
        both = self.refused({"WORKER_KEY_FILE": self.key_file})
        self.assertIn("one of the two", both)
        os.chmod(self.key_file, 0o644)
        error = self.failed({"WORKER_FRONTS": FRONT, "WORKER_KEY_FILE": self.key_file})
        self.assertIn("chmod 600", str(error))

    def test_the_rest(self) -> None:
        """Each of these is refused by the front later, where it is harder to find."""
        for variable, value in [
            ("WORKER_ID", "a b"), ("WORKER_ID", "x" * 65), ("WORKER_REGION", "a\nb"), ("WORKER_REGION", "x" * 65),
            ("WORKER_CAPACITY", "0"), ("WORKER_CAPACITY", "1000001"), ("WORKER_CAPACITY", "1.5"),
            ("WORKER_ADDRESS", "x" * 256), ("WORKER_FOLDER", "/does/not/exist"), ("STUN_SERVERS", "turn:x"),
            ("TURN_SERVERS", "stun:x"), ("TURN_TTL", "0"), ("WORKER_CA_FILE", "/does/not/exist"),
            ("WORKER_CA_FILE", self.key_file), ("LOG_FORMAT", "xml"), ("WORKER_UNTIL_EOF", "perhaps"),
        ]:  # fmt: skip
            self.assertTrue(self.refused({variable: value}).startswith(variable), variable)


class ReactorTests(SynchronousTestCase):
    """Which reactor the process gets. Each in a process of its own: a reactor is for life."""

    def run_python(self, code: str) -> str:
        environ = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run(
            [sys.executable, "-c", code], env=environ, capture_output=True, text=True, timeout=300, check=False
        )
        return (done.stdout + done.stderr).strip()

    def test_right_one_is_installed(self) -> None:
        """Without the asyncio reactor aiortc has no loop, and nobody should have to know that."""
        code = "from kollator.webrtc.worker import use_asyncio_reactor as use; use(); use()"
        self.assertEqual(
            self.run_python(code + "; from twisted.internet import reactor; print(type(reactor).__name__)"),
            "AsyncioSelectorReactor",
        )

    def test_wrong_one_is_named(self) -> None:
        """With another reactor every session would fail, one by one, for no visible reason."""
        code = "from twisted.internet import selectreactor; selectreactor.install()"
        code += "; from kollator.webrtc.worker import use_asyncio_reactor as use; use()"
        said = self.run_python(code)
        self.assertIn("twistd --reactor=asyncio kollator-worker", said)
        self.assertEqual(len(said.splitlines()), 1)
