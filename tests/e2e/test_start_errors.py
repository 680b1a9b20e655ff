"""What cannot work ends the start with one line on standard error that names the setting (section 4)."""

from __future__ import annotations

import functools
import shutil
import socket
import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path

from attrs import frozen
from twisted.trial.unittest import SynchronousTestCase

from tests.e2e.contract_client import ask
from tests.e2e.processes import START_LIMIT_S, WORKER_KEY, Front, new_folder, nursery, write_key


@frozen
class Case:
    """One bad start: the name that the line must hold, the settings and options."""

    name: str
    settings: Mapping[str, str] = {}
    options: Sequence[str] = ()
    keys: str | None = WORKER_KEY + "\n"
    folder: Path | None = None


def _setting(name: str, value: str, **others: str) -> Case:
    return Case(name, {name: value, **others})


class StartErrorTestCase(SynchronousTestCase):
    """Starts fronts that must refuse to start."""

    def assert_refused(self, cases: Sequence[Case]) -> None:
        """Asserts that each case ends with one line that names its setting, and tells of all that do not."""
        wrong = []
        for case in cases:
            status, out, err = nursery().start(case.settings, case.options, case.keys, case.folder)
            lines = [line for line in err.splitlines() if line.strip()]
            if status <= 0 or len(lines) != 1 or case.name not in lines[0] or "Traceback" in out + err:
                wrong.append(f"{case.name}: {dict(case.settings)} {list(case.options)}: status {status}, "
                             f"standard error:\n{err}\nstandard output:\n{out}")
        self.assertEqual(len(wrong), 0, "\n\n".join(wrong))


class BadSettingTests(StartErrorTestCase):
    """Values that do not parse."""

    def test_numbers(self) -> None:
        """A number that is none, or out of range, must not become some other number."""
        self.assert_refused([
            _setting("PORT", "http"), _setting("PORT", "70000"), _setting("PORT", "-1"),
            _setting("WORKER_HEALTH_TIMEOUT", "soon"), _setting("WORKER_HEALTH_INTERVAL", "0"),
            _setting("CONSISTENT_HASH_REPLICAS", "0"), _setting("SYNC_INTERVAL", "-5"), _setting("TURN_TTL", "1h"),
            _setting("HEARTBEAT_INTERVAL", "x"), _setting("ELECTION_TIMEOUT", "nan"), _setting("MAX_CONNECTIONS", "0"),
            _setting("CONNECTIONS_PER_IP", "many"), _setting("CONNECTION_RATE_PER_IP", "0"),
            _setting("BOOTSTRAP_RATE_PER_IP", "inf"), _setting("MESSAGE_RATE", "-1"),
            _setting("WRITE_BUFFER_BYTES", "1 MiB"), _setting("DRAIN_TIMEOUT", "-1"),
        ])

    def test_words_and_lists(self) -> None:
        """A word, a network, a URL or an origin that is none must not be taken for nothing."""
        self.assert_refused([
            _setting("HOST", "not a host"), _setting("LISTEN", "nonsense"), _setting("LISTEN", "tcp:x"),
            _setting("LISTEN", "ssl:0:privateKey=/nowhere"), _setting("NODE_ID", "two words"),
            _setting("NODE_ID", "x" * 65), _setting("REGION", "r" * 65),
            _setting("LEADER_ELECTION", "perhaps"), _setting("QUORUM", "most"), _setting("STUN_SERVERS", "http://x"),
            _setting("TURN_SERVERS", "stun:x.example"), _setting("ALLOWED_ORIGINS", "app.example/page"),
            _setting("TRUSTED_PROXIES", "300.0.0.0/8"), _setting("WORKER_ALLOW", "10.0.0.0/33"),
            _setting("RATE_LIMIT_EXEMPT", "localhost"), _setting("DEBUG", "!"),
        ])

    def test_options_are_named_too(self) -> None:
        """Who used the option looks for the option's name."""
        self.assert_refused([
            Case("--port", options=("--port", "http")), Case("--hash-replicas", options=("--hash-replicas=0",)),
            Case("--quorum", options=("--quorum", "most")), Case("--worker-allow", options=("--worker-allow", "x")),
            Case("--allow-origin", options=("--allow-origin", "x")),
        ])

    def test_peers(self) -> None:
        """A cluster that is configured by halves must not start as a cluster of one."""
        self.assert_refused([
            _setting("PEERS", "no-equals-sign", CLUSTER_KEY=WORKER_KEY),
            _setting("PEERS", "b=ws://b.example/elsewhere", CLUSTER_KEY=WORKER_KEY),
            _setting("PEER_LISTEN", "nonsense", PEERS="b=tcp:127.0.0.1:9", CLUSTER_KEY=WORKER_KEY),
            _setting("CLUSTER_KEY", "", PEERS="b=tcp:127.0.0.1:9", PEER_LISTEN="tcp:0:interface=127.0.0.1"),
            _setting("CLUSTER_KEY_FILE", "/nowhere/key", PEERS="b=tcp:127.0.0.1:9"),
            _setting("PEERS", "front-e2e=tcp:127.0.0.1:9", CLUSTER_KEY=WORKER_KEY),
        ])


class BadFileTests(StartErrorTestCase):
    """Key files, the file of workers, the database."""

    def test_key_files(self) -> None:
        """A key file that is missing, empty or open to others is a mistake that must be seen at once."""
        folder = new_folder()
        files = {
            "missing": folder / "missing",
            "empty": write_key(folder / "empty", ""),
            "blank": write_key(folder / "blank", " \n\n\t\n"),
            "group": write_key(folder / "group", WORKER_KEY, 0o640),
            "others": write_key(folder / "others", WORKER_KEY, 0o604),
            "folder": folder,
        }
        (folder / "binary").write_bytes(b"\xff\xfe\x00")
        (folder / "binary").chmod(0o600)
        files["binary"] = folder / "binary"
        cases = [Case("WORKER_KEY_FILE", options=("--worker-key-file", str(path)), keys=None)
                 for path in files.values()]
        cases += [_setting("TURN_SECRET_FILE", str(files["others"]), TURN_SERVERS="turn:t.example"),
                  _setting("CLUSTER_KEY_FILE", str(files["empty"]), PEERS="b=tcp:127.0.0.1:9")]
        self.assert_refused(cases)

    def test_workers_file(self) -> None:
        """A file of workers that cannot be read or understood must not be an empty one."""
        folder = new_folder()
        texts = ("", "{", "[]", '{"192.168.1.100": 5}', '{"192.168.1.100": {"region": 5, "capacity": 100}}',
                 '{"192.168.1.100": {"region": "r", "capacity": 0}}')
        paths = [folder / "missing.json", folder]
        for number, text in enumerate(texts):
            paths.append(folder / f"{number}.json")
            paths[-1].write_text(text)
        self.assert_refused([_setting("WORKERS_FILE", str(path)) for path in paths])

    def test_address_in_use(self) -> None:
        """A port in use, and an address that is not this machine's, name the setting that asked for them."""
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = str(taken.getsockname()[1])
            self.assert_refused([
                Case("PORT", options=("--port", port)),
                _setting("LISTEN", f"tcp:{port}:interface=127.0.0.1"),
                _setting("LISTEN", f"tcp:0:interface=127.0.0.1 tcp:{port}:interface=127.0.0.1"),
                Case("HOST", {"HOST": "203.0.113.1"}),
            ])


class WholeProcessTests(SynchronousTestCase):
    """One bad start as a user makes it, in a process from the first import on."""

    def test_one_line(self) -> None:
        """Nothing that is imported or registered before the settings are read adds a word to the one line."""
        front = Front({"MESSAGE_RATE": "fast"})
        self.addCleanup(front.kill)
        self.assertGreater(front.ended(START_LIMIT_S), 0)
        self.assertEqual((len(front.err), front.out), (1, []), front.log)
        self.assertIn("MESSAGE_RATE", front.err[0])


@functools.cache
def _database() -> Path:
    front = Front().ready()
    front.stop()
    return front.folder / "s.db"


class BadDatabaseTests(StartErrorTestCase):
    """A database that cannot be used is left as it is."""

    def _used(self) -> Path:
        """A folder of its own with a copy of the database of a front that has run and ended."""
        folder = new_folder()
        shutil.copy(_database(), folder / "s.db")
        return folder

    def _assert_untouched(self, cases: Sequence[tuple[Path, Case]]) -> None:
        before = [path.read_bytes() for path, _ in cases]
        self.assert_refused([case for _, case in cases])
        for (path, case), content in zip(cases, before, strict=True):
            self.assertEqual(path.read_bytes() == content, True, f"{path} was changed: {case}")

    def test_not_a_database(self) -> None:
        """A file that is something else, or somebody else's database, must not be written to."""
        cases = []
        for content in (b"this is a diary\n" * 1000, b"x", b"SQLite format 3\0" + b"\xff" * 8000):
            folder = new_folder()
            (folder / "s.db").write_bytes(content)
            cases.append((folder / "s.db", Case("SQLITE_PATH", folder=folder)))
        folder = new_folder()
        foreign = sqlite3.connect(folder / "s.db")
        foreign.execute("CREATE TABLE diary (day TEXT, words TEXT)")
        foreign.execute("INSERT INTO diary VALUES ('Monday', 'rain')")
        foreign.commit()
        foreign.close()
        cases.append((folder / "s.db", Case("SQLITE_PATH", folder=folder)))
        self._assert_untouched(cases)

    def test_newer(self) -> None:
        """A database of a later version must not be brought down to this one."""
        folder = self._used()
        database = sqlite3.connect(folder / "s.db")
        database.execute("PRAGMA user_version = 1000000")
        database.commit()
        database.close()
        self._assert_untouched([(folder / "s.db", Case("SQLITE_PATH", folder=folder))])

    def test_damaged(self) -> None:
        """A database that lost its end or its middle is left for whoever can mend it."""
        used = self._used() / "s.db"
        cases = []
        for damage in ("cut", "overwritten"):
            folder = new_folder()
            content = used.read_bytes()
            middle = len(content) // 2
            (folder / "s.db").write_bytes(content[:middle] if damage == "cut" else
                                          content[:4096] + b"\xa5" * (len(content) - 8192) + content[-4096:])
            cases.append((folder / "s.db", Case("SQLITE_PATH", folder=folder)))
        self._assert_untouched(cases)

    def test_unusable_path(self) -> None:
        """A folder, and a path below something that is no folder, are no place for a database."""
        folder = new_folder()
        (folder / "file").write_text("x")
        self.assert_refused([
            Case("SQLITE_PATH", options=("--database", str(folder))),
            Case("SQLITE_PATH", options=("--database", str(folder / "file" / "s.db"))),
            Case("SQLITE_PATH", options=("--database", str(folder / "nowhere" / "s.db"))),
        ])

    def test_in_use(self) -> None:
        """Two fronts on one database would undo each other's work; the first one goes on undisturbed."""
        first = Front().ready()
        self.addCleanup(first.kill)
        self.assert_refused([Case("SQLITE_PATH", folder=first.folder)])
        self.assertEqual(ask(first.port, "GET", "/health").json()["status"], "ok")
        first.stop()

    def test_locked(self) -> None:
        """A database that another program holds is said to be so, in bounded time."""
        folder = self._used()
        other = sqlite3.connect(folder / "s.db", isolation_level=None)
        self.addCleanup(other.close)
        other.execute("BEGIN EXCLUSIVE")
        self.assert_refused([Case("SQLITE_PATH", folder=folder)])

    def test_copy_of_a_database(self) -> None:
        """A restored copy is a database like any other."""
        Front(folder=self._used()).ready().stop()
