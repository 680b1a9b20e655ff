"""Nothing that comes from outside becomes a format, a path, a metric's label or the name of a log field."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

from twisted.logger import globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

import kollator
from tests.fronts import FrontTestCase
from tests.wires import UPGRADE, request, text_frame

LEVELS = ("debug", "info", "warn", "error", "failure", "critical")
FORMATS_OF_OTHERS = ("signaling/websocket.py", "cluster/worker_sync.py")
"""Where Autobahn's own log calls are handed on; its formats are constants too."""


def hostile(mark: str) -> list[bytes]:
    """What somebody might send who wants ``mark`` to be where names are."""
    evil = "%s{" + mark + ".__class__}%(" + mark + ")s"
    headers = {"Origin": f"http://{mark}.example", "User-Agent": evil, evil.replace("{", "").replace("}", ""): evil}
    asked = [
        request(method, target, headers)
        for method in ("GET", "POST", mark.upper())
        for target in (f"/{mark}", f"/static/{mark}", f"/static/../../{mark}", f"/static/%2e%2e%2f{mark}",
                       f"/workers/assign?ip={mark}&region={mark}", f"/workers/{mark}", f"/admin/{mark}", f"/{evil}")
    ]
    asked += [request("POST", "/bootstrap", headers, f'{{"region":"{evil}","exclude":["{mark}"]}}'.encode())]
    said = [
        f'{{"type":"{mark}","ref":"{evil}","{mark}":1}}', f'{{"type":"hello","role":"{mark}"}}',
        '{"type":"hello","role":"client","ticket":"' + mark + '"}', '{"type":"hello","role":"client"}',
        f'{{"type":"assign","region":"{evil}","exclude":["{mark}"]}}',
        f'{{"type":"bye","to":"{evil}","reason":"{evil}"}}',
        f'{{"type":"offer","to":"{mark}","sdp":"{evil}","session":"{mark}"}}',
        f'{{"type":"connected","to":"{mark}","session":"{evil}","ms":1}}', "{" + mark,
    ]
    worker = f'{{"type":"hello","role":"worker","id":"{mark}","nonce":"{"0" * 32}","address":"{evil}"}}'
    wrong = f'{{"type":"auth","mac":"{evil}"}}'
    upgrade = request("GET", f"/signaling?{mark}", UPGRADE | headers | {"Sec-WebSocket-Protocol": mark})
    plain = request("GET", "/signaling", UPGRADE)
    asked += [upgrade + b"".join(text_frame(text.encode()) for text in said)]
    asked += [plain + b"".join(text_frame(text.encode()) for text in said)]
    asked += [plain + text_frame(worker.encode()) + text_frame(wrong.encode())]
    asked += [plain + b"\x88\x90\0\0\0\0\x03\xe8" + f"{{{mark}}}".encode()[:14].ljust(14)]
    return [*asked, f"{mark} {evil}\r\n\r\n".encode()]


class NamesTests(FrontTestCase):
    """A front that debugs everything, and somebody who sends odd names."""

    def setUp(self) -> None:
        """Listen to the log."""
        super().setUp()
        self.front.site.debug = self.front.signaling.debug = True
        self.events: list[dict[str, Any]] = []
        observer: Any = self.events.append
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)

    def series(self) -> set[str]:
        """The names and labels of all that is measured."""
        lines = self.front.views.metrics("")[1].decode().splitlines()
        return {line.rpartition(" ")[0] for line in lines if not line.startswith("#")}

    def send(self, mark: str) -> None:
        """Somebody sends."""
        for data in hostile(mark):
            self.front.connect().send(data).hang_up()

    def test_labels(self) -> None:
        """Without it somebody could fill the memory of the front, and of Prometheus, with series."""
        self.send("firstevil")
        before = self.series()
        for number in range(5):
            self.send(f"evil{number}")
        self.assertEqual(self.series(), before)
        self.assertEqual([name for name in before if "evil" in name.lower()], [])
        self.assertTrue(any('other"' in name for name in before))

    def test_formats_and_fields(self) -> None:
        """Without it somebody could have the log read out the front's own objects, or overwrite its fields."""
        self.send("logevil")
        self.assertTrue([event for event in self.events if "logevil" in repr(event)], "it was logged at all")
        for event in self.events:
            self.assertNotIn("logevil", str(event.get("log_format", "")))
            self.assertEqual([name for name in event if "logevil" in name], [])

    def test_paths(self) -> None:
        """Without it a request could name a file of the machine."""
        for path in ("/static/../pages.py", "/static/%2e%2e/pages.py", "/static/..%2fpages.py", "/static//etc/passwd",
                     "/static/%2fetc%2fpasswd", "/static/app.js%00.html", "/static/./app.js/..", "//static/app.js"):
            self.assertEqual(self.front.ask("GET", path).status, 404, path)


class SourceTests(SynchronousTestCase):
    """What the source says, so that no new line of it does otherwise."""

    def test_formats_are_constants(self) -> None:
        """Without it the next log call could make a format of what somebody sent."""
        root = Path(kollator.__file__).parent
        found = []
        for path in root.rglob("*.py"):
            name = path.relative_to(root).as_posix()
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args):
                    continue
                owner = node.func.value
                is_log = isinstance(owner, ast.Name) and owner.id in ("log", "events")
                if is_log and node.func.attr in LEVELS and not self._constant(node.args[0], path):
                    found.append(f"{name}:{node.lineno}")
        self.assertEqual([place for place in found if not place.startswith(FORMATS_OF_OTHERS)], [])

    def _constant(self, node: ast.expr, path: Path) -> bool:
        """A literal, or a name that is given nothing but literals."""
        if isinstance(node, ast.Constant):
            return isinstance(node.value, str)
        if isinstance(node, ast.IfExp):
            return self._constant(node.body, path) and self._constant(node.orelse, path)
        if not isinstance(node, ast.Name):
            return False
        given = [
            other.value for other in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(other, ast.Assign)
            and any(isinstance(target, ast.Name) and target.id == node.id for target in other.targets)
        ]
        return bool(given) and all(isinstance(value, ast.Constant) for value in given)
