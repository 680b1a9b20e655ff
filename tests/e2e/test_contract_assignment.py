"""Assignment over HTTP: /bootstrap, /workers/assign, the addresses and names that they go by."""

from __future__ import annotations

import json
import re
import time
from ipaddress import ip_address, ip_network
from typing import Any, ClassVar

from jsonschema import Draft202012Validator
from prometheus_client.parser import text_string_to_metric_families as prometheus_families

from tests.e2e.contract_client import Client, ContractTestCase, exchange, turn_credential


class BootstrapTests(ContractTestCase):
    """A front with workers: assignment over HTTP."""

    settings: ClassVar = {
        "STUN_SERVERS": "stun:stun.example:3478", "TURN_SERVERS": "turn:turn.example:3478?transport=udp",
        "TURN_SECRET": "turn-secret-of-the-tests", "TURN_TTL": "600", "TICKET_TTL": "3600",
    }

    def test_answer(self) -> None:
        """The page needs every one of these fields to go on."""
        self.worker(region="us-west")
        self.worker(self.w2, region="us-east")
        got = self.bootstrap()
        workers = {self.w1: "us-west", self.w2: "us-east"}
        self.assertEqual(got["worker"]["region"], workers[got["worker"]["id"]])
        for other in got["alternates"]:
            self.assertEqual(other["region"], workers[other["id"]])
            self.assertNotEqual(other["id"], got["worker"]["id"])
        self.assertEqual(got["node"], "front-e2e")
        self.assertTrue(time.time() + 3500 < got["expires"] < time.time() + 3700)
        self.assertEqual(got["signaling"], f"ws://127.0.0.1:{self.port}/signaling")
        self.assertEqual(self.client(got["ticket"]).id, got["client"])

    def test_ice_servers(self) -> None:
        """A browser behind a strict NAT needs TURN credentials that coturn accepts."""
        self.worker()
        for servers in (self.bootstrap()["iceServers"], self.client().welcome["iceServers"],
                        self.worker(self.w2).welcome["iceServers"]):
            urls = {url: server for server in servers for url in server["urls"]}
            self.assertEqual(set(urls), {"stun:stun.example:3478", "turn:turn.example:3478?transport=udp"})
            self.assertNotIn("credential", urls["stun:stun.example:3478"])
            turn = urls["turn:turn.example:3478?transport=udp"]
            self.assertEqual(turn["credential"], turn_credential("turn-secret-of-the-tests", turn["username"]))
            self.assertTrue(time.time() + 550 < int(turn["username"].split(":")[0]) < time.time() + 650)

    def test_signaling_url_follows_host(self) -> None:
        """A browser that came by a name must be sent to that name."""
        self.worker()
        for host in ("front.example", "front.example:8443", "[::1]:8080"):
            self.assertEqual(self.bootstrap({"Host": host})["signaling"], f"ws://{host}/signaling")

    def test_forwarded_headers_from_strangers(self) -> None:
        """Only a trusted proxy may say which host and address the client used."""
        self.worker()
        got = self.bootstrap({"Host": "front.example", "X-Forwarded-Host": "evil.example",
                              "X-Forwarded-Proto": "https", "X-Forwarded-For": "203.0.113.9"})
        self.assertEqual(got["signaling"], "ws://front.example/signaling")

    def test_exclude(self) -> None:
        """A client that could not reach a worker asks for another one."""
        self.worker()
        self.worker(self.w2)
        first = self.bootstrap()["worker"]["id"]
        for _ in range(3):
            other = self.bootstrap(exclude=[first])
            self.assertNotEqual(other["worker"]["id"], first)
            self.assertNotIn(first, [row["id"] for row in other["alternates"]])
        answer = self.ask("POST", "/bootstrap", json.dumps({"exclude": [self.w1, self.w2]}).encode())
        self.assertEqual((answer.status, answer.error_code), (503, "no-workers"))

    def test_region(self) -> None:
        """The wish for a region is granted where a worker is there, and otherwise does not leave one alone."""
        self.worker("west", region="us-west")
        self.worker("east", region="us-east")
        self.assertEqual(self.bootstrap(region="us-west")["worker"], {"id": "west", "region": "us-west"})
        self.assertEqual(self.bootstrap(region="us-east")["worker"], {"id": "east", "region": "us-east"})
        self.assertIn(self.bootstrap(region="mars")["worker"]["id"], ("west", "east"))
        why = self.ask("GET", "/workers/assign?ip=203.0.113.9&region=us-east").json()
        self.assertEqual(why["worker"], "east")

    def test_assign_explains_bootstrap(self) -> None:
        """What an operator is told is what the client got, with the network that decided it."""
        self.worker()
        self.worker(self.w2)
        why = self.ask("GET", "/workers/assign?ip=127.0.0.1").json()
        self.assertEqual((why["worker"], why["ip"], why["range"]),
                         (self.bootstrap()["worker"]["id"], "127.0.0.1", "127.0.0.0/24"))
        self.assertEqual(why["reason"], "ring")
        for ip in ("203.0.113.9", "2001:db8::1"):
            why = self.ask("GET", f"/workers/assign?ip={ip}").json()
            self.assertIn(ip_address(ip), ip_network(why["range"]))
            self.assertIn(why["worker"], (self.w1, self.w2))
        self.assertEqual(self.ask("GET", "/workers/assign?ip=203.0.113.9").json()["range"], "203.0.113.0/24")

    def test_assign_reads_only(self) -> None:
        """Asking why must not change anything, or monitoring would move clients about."""
        self.worker()
        before = self.ask("GET", "/workers").body
        for number in range(20):
            self.ask("GET", f"/workers/assign?ip=198.51.{number}.1")
        self.assertEqual(self.ask("GET", "/workers").body, before)

    def test_same_network_same_worker(self) -> None:
        """Clients of one range meet at one worker, and ranges spread over all of them."""
        for name in (self.w1, self.w2, self.w3):
            self.worker(name)
        seen = set()
        for number in range(30):
            pair = {self.ask("GET", f"/workers/assign?ip=198.51.{number}.{host}").json()["worker"] for host in (1, 250)}
            self.assertEqual(len(pair), 1)
            seen |= pair
        self.assertEqual(seen, {self.w1, self.w2, self.w3})

    def test_schema_validates_real_messages(self) -> None:
        """The published schema describes what is really sent, each way."""
        schema: dict[str, Any] = self.ask("GET", "/schema.json").json()
        validator = Draft202012Validator(schema)
        worker = self.stranger(region="us-west")
        got = [worker.hello()]
        worker.send(type="auth", mac=worker.mac())
        got += [worker.receive()]
        client: Client = self.client()
        got += [client.welcome, client.ask(type="assign", ref="r1"), client.ask(type="nonsense"),
                client.ask(type="offer", to="nobody", sdp="v=0")]
        client.send(type="offer", to=self.w1, sdp="v=0", session="s1")
        client.send(type="candidate", to=self.w1, candidate=None)
        client.send(type="candidate", to=self.w1, candidate={"candidate": "", "sdpMid": None, "sdpMLineIndex": 0})
        client.send(type="bye", to=self.w1, reason="over")
        got += [worker.receive() for _ in range(4)]
        worker.send(type="answer", to=client.id, sdp="v=0")
        got += [client.receive()]
        worker.abort()
        got += [client.expect("worker-lost")]
        for message in got:
            validator.validate(message)
        bad: tuple[Any, ...] = ({"type": "nonsense"}, {"type": "offer"}, {"type": "offer", "to": 5, "sdp": ""}, [], "x")
        for wrong in bad:
            self.assertFalse(validator.is_valid(wrong), wrong)

    def test_handoff_counted(self) -> None:
        """The hand-offs are the measure of whether all this works, so `connected` must be counted."""
        worker = self.worker()
        client = self.client()

        def handoffs() -> float:
            return sum(sample.value for family in prometheus_families(self.ask("GET", "/metrics").body.decode())
                       for sample in family.samples if re.search(r"hand_?offs?(_total)?$", sample.name))

        before = handoffs()
        client.send(type="connected", to=self.w1, session="s1", ms=312)
        client.synchronise()
        self.assertEqual(handoffs(), before + 1)
        worker.synchronise()


class ProxyTests(ContractTestCase):
    """A front behind a trusted proxy."""

    settings: ClassVar = {"TRUSTED_PROXIES": "127.0.0.0/8", "ALLOWED_ORIGINS": "https://app.example"}

    def test_scheme_and_host(self) -> None:
        """Behind a TLS proxy the browser must be sent to wss:// and to the name it knows."""
        self.worker()
        got = self.bootstrap({"X-Forwarded-Proto": "https", "X-Forwarded-Host": "app.example"})
        self.assertEqual(got["signaling"], "wss://app.example/signaling")
        got = self.bootstrap({"Host": "direct.example", "X-Forwarded-Proto": "http"})
        self.assertEqual(got["signaling"], "ws://direct.example/signaling")

    def test_client_address(self) -> None:
        """The worker goes by the client's network, not by the proxy's; what lies before a stranger is ignored."""
        for name in (self.w1, self.w2, self.w3):
            self.worker(name)
        chosen = set()
        for number in range(12):
            ip = f"198.51.{number}.7"
            why = self.ask("GET", f"/workers/assign?ip={ip}").json()["worker"]
            for header in (ip, f"{ip}, 127.0.0.9", f"10.9.9.9, {ip}"):
                self.assertEqual(self.bootstrap({"X-Forwarded-For": header})["worker"]["id"], why, header)
            client = self.client(headers={"X-Forwarded-For": ip})
            self.assertEqual(client.ask(type="assign")["worker"]["id"], why)
            chosen.add(why)
        self.assertGreater(len(chosen), 1)

    def test_malformed_forwarded_headers(self) -> None:
        """A proxy that forwards rubbish must not take the front down."""
        self.worker()
        for headers in ({"X-Forwarded-For": "unknown"}, {"X-Forwarded-For": ", ,"}, {"X-Forwarded-Proto": "gopher"},
                        {"X-Forwarded-Host": 'a"b c'}, {"X-Forwarded-For": "[::1]:80"}):
            self.assertIn(self.ask("POST", "/bootstrap", headers=headers).status, (200, 400), headers)

    def test_cross_origin_bootstrap(self) -> None:
        """A page of an allowed origin may call /bootstrap, one of another origin may not read the answer."""
        self.worker()
        allowed = self.ask("POST", "/bootstrap", headers={"Origin": "https://app.example"})
        self.assertEqual((allowed.status, allowed.header("Access-Control-Allow-Origin")), (200, "https://app.example"))
        other = self.ask("POST", "/bootstrap", headers={"Origin": "https://evil.example"})
        self.assertNotIn(other.header("Access-Control-Allow-Origin"), ("*", "https://evil.example"))
        preflight = self.ask("OPTIONS", "/bootstrap", headers={
            "Origin": "https://app.example", "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "content-type"})
        self.assertEqual(preflight.header("Access-Control-Allow-Origin"), "https://app.example")
        self.assertIn("content-type", preflight.header("Access-Control-Allow-Headers").lower())


class EndpointTests(ContractTestCase):
    """LISTEN with several endpoints, one of them behind the PROXY protocol."""

    options: ClassVar = ("--listen", "tcp:0:interface=127.0.0.1", "--listen", "haproxy:tcp:0:interface=127.0.0.1",
               "--listen", r"tcp:0:interface=\:\:1")
    endpoints = 3

    def test_all_serve(self) -> None:
        """Every endpoint of LISTEN is served, and the address in a PROXY header is the client's."""
        for name in (self.w1, self.w2, self.w3):
            self.worker(name)
        self.assertEqual(len(self.front.ports), 3)
        served = 0
        for port in self.front.ports[1:]:
            for number in range(8):
                ip = f"198.51.{number}.7"
                why = self.ask("GET", f"/workers/assign?ip={ip}").json()["worker"]
                try:
                    answer = exchange(port, f"PROXY TCP4 {ip} 127.0.0.1 4711 80\r\n".encode()
                                      + b"POST /bootstrap HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                except ConnectionRefusedError:  # the IPv6 endpoint
                    break
                self.assertTrue(answer.startswith(b"HTTP/1.1 200"), answer[:200])
                self.assertEqual(json.loads(answer.split(b"\r\n\r\n", 1)[1])["worker"]["id"], why)
                served += 1
        self.assertEqual(served, 8)
