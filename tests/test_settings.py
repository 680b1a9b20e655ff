"""The settings: names, defaults, precedence, checks."""

from __future__ import annotations

import os
import subprocess
import sys
from ipaddress import ip_network

import attrs
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.endpoints import serverFromString
from twisted.internet.protocol import Factory
from twisted.internet.testing import MemoryReactorClock
from twisted.python.usage import UsageError
from twisted.trial.unittest import SynchronousTestCase

from kollator.settings import TABLE, FrontOptions, Peer, SettingError, Settings, table
from kollator.settings.values import node_id, node_id_of_host

PEERS = "b=tcp:10.0.0.2:9090"

# The contract, section 4: variable, option ("" for none).
CONTRACT = (
    ("PORT", "port"),
    ("HOST", "host"),
    ("LISTEN", "listen"),
    ("NODE_ID", "node-id"),
    ("REGION", "region"),
    ("LEADER_ELECTION", "no-leader-election"),
    ("PEERS", "peer"),
    ("PEER_LISTEN", "peer-listen"),
    ("CLUSTER_KEY", ""),
    ("CLUSTER_KEY_FILE", "cluster-key-file"),
    ("WORKER_KEY", ""),
    ("WORKER_KEY_FILE", "worker-key-file"),
    ("WORKERS_FILE", "workers"),
    ("WORKER_HEALTH_TIMEOUT", "worker-health-timeout"),
    ("WORKER_HEALTH_INTERVAL", "worker-health-interval"),
    ("CONSISTENT_HASH_REPLICAS", "hash-replicas"),
    ("SQLITE_PATH", "database"),
    ("SYNC_INTERVAL", "sync-interval"),
    ("STUN_SERVERS", "stun"),
    ("TURN_SERVERS", "turn"),
    ("TURN_SECRET", ""),
    ("TURN_SECRET_FILE", ""),
    ("TURN_TTL", ""),
    ("ALLOWED_ORIGINS", "allow-origin"),
    ("TRUSTED_PROXIES", "trust-proxy"),
    ("WORKER_ALLOW", "worker-allow"),
    ("QUORUM", "quorum"),
    ("HEARTBEAT_INTERVAL", ""),
    ("ELECTION_TIMEOUT", ""),
    ("MAX_CONNECTIONS", ""),
    ("CONNECTIONS_PER_IP", ""),
    ("CONNECTION_RATE_PER_IP", ""),
    ("BOOTSTRAP_RATE_PER_IP", ""),
    ("MESSAGE_RATE", ""),
    ("RATE_LIMIT_EXEMPT", ""),
    ("WRITE_BUFFER_BYTES", ""),
    ("DRAIN_TIMEOUT", ""),
    ("DEBUG", ""),
)

DEFAULTS = {
    "port": 8080,
    "host": "0.0.0.0",
    "listen": ("tcp:8080:interface=0.0.0.0",),
    "node_id": "front-1",
    "region": "",
    "leader_election": True,
    "peers": (),
    "peer_listen": (),
    "peer_client_ca": None,
    "cluster_keys": (),
    "worker_keys": (),
    "workers_file": None,
    "workers_file_only": False,
    "worker_health_timeout_s": 1.0,
    "worker_health_interval_s": 1.0,
    "deep_health_interval_s": 0.0,
    "deep_health_url": None,
    "panic_threshold": 0.0,
    "hash_replicas": 150,
    "database": "./signaling.db",
    "sync_interval_s": 0.1,
    "stun_servers": ("stun:stun.l.google.com:19302",),
    "turn_servers": (),
    "turn_secrets": (),
    "turn_ttl_s": 86_400.0,
    "allowed_origins": (),
    "trusted_proxies": (),
    "worker_allow": (),
    "quorum": "majority",
    "heartbeat_interval_s": 0.1,
    "election_timeout_s": 0.5,
    "front_retire_after_s": 3.0,
    "max_connections": 20_000,
    "connections_per_ip": 200,
    "connection_rate_per_ip": 20.0,
    "bootstrap_rate_per_ip": 10.0,
    "message_rate": 100.0,
    "rate_limit_exempt": (ip_network("127.0.0.0/8"), ip_network("::1/128")),
    "write_buffer_bytes": 1_048_576,
    "write_buffers_bytes": 16_777_216,
    "http_connections": 2000,
    "http_connections_per_ip": 100,
    "auth_backoff_s": 60.0,
    "check_descriptions": True,
    "drain_timeout_s": 5.0,
    "keepalive_interval_s": 30.0,
    "hello_timeout_s": 10.0,
    "header_timeout_s": 10.0,
    "ticket_ttl_s": 86_400.0,
    "admin_tokens": (),
    "audit_log": "./signaling.audit.jsonl",
    "audit_log_bytes": 16_777_216,
    "audit_log_files": 5,
    "processes": 1,
    "fast_path": True,
    "debug": (),
    "log_format": "text",
    "crsqlite_path": None,
    "demo_worker": False,
    "demo_folder": None,
}

# Variable, a text for it, the field, its value.
GIVEN = (
    ("PORT", "0", "port", 0),
    ("PORT", " 9000 \r\n", "port", 9000),
    ("HOST", "[::1]", "host", "::1"),
    ("LISTEN", "tcp:80 ssl:443:privateKey=k.pem", "listen", ("tcp:80", "ssl:443:privateKey=k.pem")),
    ("NODE_ID", "signaling-1", "node_id", "signaling-1"),
    ("REGION", "us-west", "region", "us-west"),
    ("LEADER_ELECTION", "False", "leader_election", False),
    ("LEADER_ELECTION", "on", "leader_election", True),
    ("CLUSTER_KEY", "new\nold", "cluster_keys", (b"new", b"old")),
    ("WORKER_KEY", " sécret ", "worker_keys", ("sécret".encode(),)),
    ("WORKERS_FILE", "etc/workers.json", "workers_file", "etc/workers.json"),
    ("WORKER_HEALTH_TIMEOUT", "1500", "worker_health_timeout_s", 1.5),
    ("DEEP_HEALTH_INTERVAL", "0.5", "deep_health_interval_s", 0.5),
    ("DEEP_HEALTH_URL", "wss://front.example", "deep_health_url", "wss://front.example/signaling"),
    ("PANIC_THRESHOLD", "50", "panic_threshold", 50.0),
    ("AUDIT_LOG", "/var/log/audit.jsonl", "audit_log", "/var/log/audit.jsonl"),
    ("AUDIT_LOG_BYTES", "1000000", "audit_log_bytes", 1_000_000),
    ("CONSISTENT_HASH_REPLICAS", "10", "hash_replicas", 10),
    ("SYNC_INTERVAL", "2.5", "sync_interval_s", 0.0025),
    ("STUN_SERVERS", "stun:a, STUNS:b:5349 stun:a", "stun_servers", ("stun:a", "stuns:b:5349")),
    ("TURN_SERVERS", "turn:t:3478?transport=udp", "turn_servers", ("turn:t:3478?transport=udp",)),
    ("TURN_SECRET", "north", "turn_secrets", (b"north",)),
    ("TURN_TTL", "600", "turn_ttl_s", 600.0),
    ("ALLOWED_ORIGINS", "https://a.example,http://b.example:81", "allowed_origins",
     ("https://a.example", "http://b.example:81")),
    ("TRUSTED_PROXIES", "10.0.0.0/8,fd00::/8", "trusted_proxies",
     (ip_network("10.0.0.0/8"), ip_network("fd00::/8"))),
    ("WORKER_ALLOW", "192.0.2.7", "worker_allow", (ip_network("192.0.2.7/32"),)),
    ("QUORUM", "available", "quorum", "available"),
    ("CONNECTION_RATE_PER_IP", "0.5", "connection_rate_per_ip", 0.5),
    ("WRITE_BUFFERS_BYTES", "1000000", "write_buffers_bytes", 1_000_000),
    ("HTTP_CONNECTIONS", "10", "http_connections", 10),
    ("HTTP_CONNECTIONS_PER_IP", "10", "http_connections_per_ip", 10),
    ("AUTH_BACKOFF", "0", "auth_backoff_s", 0.0),
    ("CHECK_DESCRIPTIONS", "off", "check_descriptions", False),
    ("DRAIN_TIMEOUT", "0", "drain_timeout_s", 0.0),
    ("KEEPALIVE_INTERVAL", "0", "keepalive_interval_s", 0.0),
    ("PROCESSES", "4", "processes", 4),
    ("FAST_PATH", "no", "fast_path", False),
    ("DEBUG", "kollator:*", "debug", ("kollator:*",)),
    ("DEBUG", "kollator:signaling,kollator:cluster", "debug", ("kollator:signaling", "kollator:cluster")),
    ("LOG_FORMAT", "json", "log_format", "json"),
    ("CRSQLITE_PATH", "/opt/crsqlite.so", "crsqlite_path", "/opt/crsqlite.so"),
    ("DEMO_WORKER", "1", "demo_worker", True),
)  # fmt: skip

WRONG = (
    ("PORT", "http"),
    ("PORT", "65536"),
    ("PORT", "-1"),
    ("PORT", "80.5"),
    ("PORT", "٨٠"),
    ("PORT", "9" * 5000),
    ("HOST", "a b"),
    ("HOST", "x:interface=y"),
    ("LISTEN", "8080"),
    ("LISTEN", "http://0.0.0.0"),
    ("NODE_ID", "front 1"),
    ("NODE_ID", "f" * 65),
    ("REGION", "r" * 65),
    ("REGION", "a\nb"),
    ("LEADER_ELECTION", "maybe"),
    ("PEERS", "10.0.0.2:9090"),
    ("PEERS", "b="),
    ("PEERS", "=tcp:10.0.0.2:9090"),
    ("PEERS", "b=10.0.0.2:9090"),
    ("PEERS", "b=https://front-2/worker-sync"),
    ("PEERS", "b=wss://front-2/signaling"),
    ("PEERS", "b=wss://front-2/worker-sync?x"),
    ("PEERS", "b=wss://front-2:99999/worker-sync"),
    ("PEERS", "b=wss://[/worker-sync"),
    ("PEERS", f"{PEERS} b=tcp:10.0.0.3:9090"),
    ("CLUSTER_KEY", "\udcff"),
    ("WORKER_HEALTH_TIMEOUT", "0"),
    ("WORKER_HEALTH_INTERVAL", "1e99"),
    ("WORKERS_FILE_ONLY", "true"),
    ("DEEP_HEALTH_INTERVAL", "-1"),
    ("DEEP_HEALTH_URL", "http://front.example"),
    ("PANIC_THRESHOLD", "101"),
    ("PANIC_THRESHOLD", "half"),
    ("ADMIN_TOKEN_FILE", "no/such/file"),
    ("AUDIT_LOG", "a\0b"),
    ("AUDIT_LOG_BYTES", "1"),
    ("AUDIT_LOG_FILES", "0"),
    ("CONSISTENT_HASH_REPLICAS", "0"),
    ("SYNC_INTERVAL", "nan"),
    ("SYNC_INTERVAL", "inf"),
    ("SYNC_INTERVAL", "1e999"),
    ("SYNC_INTERVAL", "100ms"),
    ("STUN_SERVERS", "turn:t.example"),
    ("STUN_SERVERS", "stun:"),
    ("STUN_SERVERS", ",".join(f"stun:s{number}.example" for number in range(17))),
    ("TURN_SERVERS", "https://t.example"),
    ("ALLOWED_ORIGINS", "example.com"),
    ("TRUSTED_PROXIES", "proxy"),
    ("TRUSTED_PROXIES", "10.0.0.1/8"),
    ("QUORUM", "one"),
    ("ELECTION_TIMEOUT", "299"),
    ("FRONT_RETIRE_AFTER", "299"),
    ("MAX_CONNECTIONS", "0"),
    ("MESSAGE_RATE", "0"),
    ("MESSAGE_RATE", "-5"),
    ("RATE_LIMIT_EXEMPT", "localhost"),
    ("WRITE_BUFFER_BYTES", "1 MiB"),
    ("WRITE_BUFFERS_BYTES", "0"),
    ("HTTP_CONNECTIONS", "0"),
    ("HTTP_CONNECTIONS_PER_IP", "-1"),
    ("AUTH_BACKOFF", "-1"),
    ("CHECK_DESCRIPTIONS", "perhaps"),
    ("DRAIN_TIMEOUT", "-1"),
    ("PROCESSES", "0"),
    ("FAST_PATH", "fast"),
    ("DEBUG", "kollator:*:x"),
    ("DEBUG", "-kollator:pool"),
    ("LOG_FORMAT", "xml"),
    ("DEMO_WORKER", "2"),
    ("DEMO_FOLDER", "no/such/folder"),
)  # fmt: skip


def load(**environ: str) -> Settings:
    """Settings from these variables alone, on a host called front-1."""
    return Settings.load({}, environ, lambda: "front-1")


class TableTests(SynchronousTestCase):
    """The one definition of every setting."""

    def test_contract_names(self) -> None:
        """An operator's variables and options are the contract's, so none may be renamed or missing."""
        names = {(row.variable, row.option) for row in TABLE}
        self.assertEqual(set(CONTRACT) - names, set())

    def test_rows_and_fields_agree(self) -> None:
        """A field without a row could never be set; a row without a field would do nothing."""
        self.assertEqual({row.field for row in TABLE}, {field.name for field in attrs.fields(Settings)})

    def test_names_are_unique(self) -> None:
        """Two rows with one name would read each other's value."""
        variables = [row.variable for row in TABLE]
        options = [row.option for row in TABLE if row.option]
        self.assertEqual(len(set(variables)), len(variables))
        self.assertEqual(len(set(options)), len(options))

    def test_readme_rows(self) -> None:
        """The README is compared with these rows: each needs a name, a default and an explanation."""
        rows = {variable: (option, default, text) for variable, option, default, text in table()}
        self.assertEqual(len(rows), len(TABLE))
        self.assertTrue(all(default and text for _, default, text in rows.values()))
        self.assertEqual(rows["SYNC_INTERVAL"][:2], ("--sync-interval", "100 ms"))
        self.assertEqual(rows["PEERS"][0], "--peer (repeatable)")
        self.assertEqual(rows["MESSAGE_RATE"][:2], ("", "100 per s"))


class LoadTests(SynchronousTestCase):
    """From options and environment to ``Settings``."""

    def test_defaults(self) -> None:
        """The defaults are part of the contract."""
        self.assertEqual(attrs.asdict(load(), recurse=False), DEFAULTS)

    def test_given(self) -> None:
        """Each kind of value is read with its unit, and white space around it does not matter."""
        for variable, text, field, expected in GIVEN:
            self.assertEqual(getattr(load(**{variable: text}), field), expected, variable)

    def test_wrong(self) -> None:
        """A value that does not parse stops the start with one line that names the setting and the remedy."""
        for variable, text in WRONG:
            error = self.assertRaises(SettingError, load, **{variable: text})
            self.assertRegex(str(error), rf"^{variable}( \(--[a-z-]+\))?: .+; .+$")
            self.assertTrue(str(error).isprintable())

    @settings(max_examples=100, deadline=None)
    @given(st.sampled_from(TABLE), st.text(max_size=200), st.booleans())
    def test_any_text(self, row, text, as_option) -> None:
        """No text in any setting makes anything but settings or one printable line."""
        options = {row.option: [text] if row.split else text} if as_option else {}
        environ = {} if as_option else {row.variable: text}
        try:
            Settings.load(options, environ, lambda: "front-1")
        except SettingError as error:
            self.assertTrue(str(error).isprintable(), str(error))
            self.assertTrue(str(error).split(" ")[0].rstrip(":").isupper(), str(error))

    def test_unknown_variables(self) -> None:
        """The environment is full of other programs' variables."""
        self.assertEqual(load(PATH="/bin", KOLLATOR_X="1"), load())

    def test_empty_variables(self) -> None:
        """Container files set variables to nothing: that is the default, but where empty has a meaning."""
        empty = load(**{row.variable: " " for row in TABLE})
        expected = DEFAULTS | {"stun_servers": (), "rate_limit_exempt": (), "audit_log": None}
        self.assertEqual(attrs.asdict(empty, recurse=False), expected)

    def test_option_wins(self) -> None:
        """What stands on the command line is what the operator means now."""
        options = {"port": "1", "region": "", "stun": [""], "no-leader-election": 1, "listen": ["unix:/a b"]}
        environ = {
            "PORT": "2",
            "REGION": "us-west",
            "STUN_SERVERS": "stun:s.example",
            "LEADER_ELECTION": "true",
            "LISTEN": "tcp:3",
        }
        both = Settings.load(options, environ)
        self.assertEqual((both.port, both.region, both.stun_servers), (1, "", ()))
        self.assertEqual((both.leader_election, both.listen), (False, ("unix:/a b",)))

    def test_option_wins_over_wrong_variable(self) -> None:
        """A variable that is overruled is not looked at."""
        self.assertEqual(Settings.load({"port": "1"}, {"PORT": "x"}).port, 1)

    def test_empty_option(self) -> None:
        """An option that a script left empty is a mistake, not the default."""
        error = self.assertRaises(SettingError, Settings.load, {"port": ""}, {})
        self.assertIn("PORT (--port): the value is empty", str(error))

    def test_unchangeable(self) -> None:
        """Services are built from these values: one that changed later would change nothing, or half."""
        self.assertRaises(attrs.exceptions.FrozenInstanceError, setattr, load(), "port", 1)

    def test_no_reactor(self) -> None:
        """Importing a reactor here would take from twistd the choice which one to install."""
        code = "import sys, kollator.settings; sys.exit('twisted.internet.reactor' in sys.modules)"
        root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
        self.assertEqual(subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode, 0)


class DerivedTests(SynchronousTestCase):
    """Defaults that follow from other settings, and settings that must agree."""

    def test_node_id_of_any_host(self) -> None:
        """A host name that is no node id must not stop the first start on that host."""
        names = (("web_1.example", "web_1.example"), ("küche pc", "k-che-pc"), ("☃", "front"), ("", "front"))
        for name, expected in names:
            self.assertEqual(node_id_of_host(name), expected)
        self.assertEqual(node_id(node_id_of_host("x" * 200)), "x" * 64)

    def test_listen_from_port_and_host(self) -> None:
        """The endpoint made from PORT and HOST is one that Twisted reads back, IPv6 colons included."""
        for host in ("127.0.0.1", "::1", "[fe80::1%eth0]"):
            reactor = MemoryReactorClock()
            (description,) = load(HOST=host, PORT="8081").listen
            self.successResultOf(serverFromString(reactor, description).listen(Factory()))
            port, _, _, interface = reactor.tcpServers[0]
            self.assertEqual((port, interface), (8081, host.strip("[]")))

    def test_quorum_by_number_of_fronts(self) -> None:
        """Two fronts have no majority to lose; with three, one front alone must not lead."""
        two = load(PEERS=PEERS, CLUSTER_KEY="k")
        three = load(PEERS=f"{PEERS}\tc=wss://c.example/x/worker-sync", CLUSTER_KEY="k")
        self.assertEqual((load().quorum, two.quorum, three.quorum), ("majority", "available", "majority"))
        self.assertEqual(three.peers[1], Peer("c", "wss://c.example/x/worker-sync"))

    def test_peer_listen(self) -> None:
        """The peer port is open exactly when there are peers."""
        self.assertEqual(load(PEER_LISTEN="tcp:1").peer_listen, ())
        self.assertEqual(load(PEERS=PEERS, CLUSTER_KEY="k").peer_listen, ("tcp:9090",))
        self.assertEqual(load(PEERS=PEERS, CLUSTER_KEY="k", PEER_LISTEN="tcp:1").peer_listen, ("tcp:1",))

    def test_peers_need_a_key(self) -> None:
        """Without a key anybody could join the cluster."""
        error = self.assertRaises(SettingError, load, PEERS=PEERS)
        self.assertRegex(str(error), r"^CLUSTER_KEY_FILE .*; name the file")

    def test_own_id_among_peers(self) -> None:
        """A front that counts itself twice would see a majority that is not there."""
        error = self.assertRaises(SettingError, load, PEERS=PEERS, NODE_ID="b", CLUSTER_KEY="k")
        self.assertRegex(str(error), r"^PEERS .*itself;")

    def test_three_heartbeats(self) -> None:
        """Exactly three heartbeats are enough, whatever the rounding of the milliseconds."""
        for heartbeat in (1, 33, 70.1, 100):
            fits = load(HEARTBEAT_INTERVAL=str(heartbeat), ELECTION_TIMEOUT=f"{3 * heartbeat:g}")
            self.assertAlmostEqual(fits.election_timeout_s, 0.003 * heartbeat)

    def test_demo_folder(self) -> None:
        """A folder to serve is given for a demo worker, and must still be found after a daemon's chdir."""
        folder = self.mktemp()
        os.mkdir(folder)
        demo = load(DEMO_FOLDER=folder)
        self.assertEqual((demo.demo_worker, demo.demo_folder), (True, os.path.abspath(folder)))


class KeyTests(SynchronousTestCase):
    """Keys and the files they come from."""

    def key_file(self, text: str, mode: int = 0o600) -> str:
        """The path of a new file with this text."""
        path = str(self.mktemp())
        with open(path, "w") as file:
            file.write(text)
        os.chmod(path, mode)
        return path

    def test_key_file(self) -> None:
        """The first line signs and every line is accepted, or keys could not be rotated."""
        path = self.key_file("new\n old \n")
        self.assertEqual(load(WORKER_KEY_FILE=path).worker_keys, (b"new", b"old"))
        self.assertEqual(Settings.load({"cluster-key-file": path}, {}).cluster_keys, (b"new", b"old"))

    def test_wrong_key_files(self) -> None:
        """A key file that is missing, empty or open to others stops the start with its one line."""
        for path in (self.mktemp(), self.key_file("\n"), self.key_file("key", 0o644)):
            for variable in ("CLUSTER_KEY_FILE", "WORKER_KEY_FILE", "TURN_SECRET_FILE"):
                error = self.assertRaises(SettingError, load, **{variable: path})
                self.assertRegex(str(error), rf"^{variable}( \(--[a-z-]+\))?: .+; .+$")

    def test_key_and_key_file(self) -> None:
        """With two sources of a key, nobody knows which one the other side has."""
        for name in ("CLUSTER_KEY", "WORKER_KEY", "TURN_SECRET"):
            both = {name: "secret-1", f"{name}_FILE": self.key_file("secret-2")}
            error = self.assertRaises(SettingError, load, **both)
            self.assertIn(f"{name} is given too", str(error))
            self.assertNotIn("secret", str(error))

    def test_keys_do_not_show(self) -> None:
        """Settings end up in logs and tracebacks; keys must not."""
        shown = repr(load(CLUSTER_KEY="hidden", WORKER_KEY="hidden", TURN_SECRET="hidden"))
        self.assertNotIn("hidden", shown)
        for wrong in ("hidden\udcff", "\n".join(f"hidden{number}" for number in range(99))):
            error = self.assertRaises(SettingError, load, WORKER_KEY=wrong)
            self.assertNotIn("hidden", f"{error!r} {error.__cause__!r}")


class OptionsTests(SynchronousTestCase):
    """The command line."""

    def test_every_option(self) -> None:
        """Each option of the table is taken and reaches ``load`` under its long name."""
        for row in TABLE:
            if row.option:
                options = FrontOptions()
                options.parseOptions([f"--{row.option}"] if row.flag else [f"--{row.option}", "x"])
                self.assertEqual(row.given(options, {}), row.flag or (["x"] if row.split else "x"))

    def test_nothing_given(self) -> None:
        """An option that is not given leaves the variable and the default alone."""
        options = FrontOptions()
        options.parseOptions([])
        self.assertEqual(Settings.load(options, {}, lambda: "front-1"), load())

    def test_repeatable(self) -> None:
        """Several peers are several options."""
        options = FrontOptions()
        options.parseOptions(["--peer", PEERS, "--peer", "c=tls:c.example:9443", "--stun", "stun:a,stun:b"])
        cluster = Settings.load(options, {"CLUSTER_KEY": "k"})
        self.assertEqual([peer.node for peer in cluster.peers], ["b", "c"])
        self.assertEqual(cluster.stun_servers, ("stun:a", "stun:b"))
        self.assertNotIn("peer", FrontOptions())

    def test_unknown_option(self) -> None:
        """A mistyped option must not be ignored."""
        for arguments in (["--prot", "1"], ["surplus"], ["--demo-worker=x"]):
            self.assertRaises(UsageError, FrontOptions().parseOptions, arguments)

    def test_help(self) -> None:
        """The help names every option, its variable and its default."""
        text = " ".join(FrontOptions().getUsage(width=200).split())
        for row in TABLE:
            if row.option:
                self.assertIn(f"--{row.option}", text)
                self.assertIn(row.variable, text)
