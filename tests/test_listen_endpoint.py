"""Endpoint strings to listen on: understood as Twisted does, but for TLS."""

from __future__ import annotations

import inspect

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet import endpoints
from twisted.internet.address import IPv4Address
from twisted.internet.interfaces import IOpenSSLServerConnectionCreator
from twisted.internet.protocol import Factory
from twisted.internet.testing import StringTransport
from twisted.logger import LogLevel
from zope.interface.verify import verifyObject

from kollator.net.endpoints import SSL_PARAMETERS, EndpointError, client_files, listen_endpoint
from tests.certificates import write_pair
from tests.endpoints import ROOT, Echo, EndpointTestCase


class DescriptionTests(EndpointTestCase):
    """Endpoint strings."""

    def test_as_twisted_has_them(self) -> None:
        """Without it a new Twisted could take another parameter, and the front would call it unknown."""
        self.assertEqual(tuple(inspect.signature(endpoints._parseSSL).parameters), ("factory", *SSL_PARAMETERS))
        verifyObject(IOpenSSLServerConnectionCreator, self.credentials(self.endpoint()[0]))

    @given(st.lists(st.sampled_from(["certificate=", "privateKey=", "a", ":", "=", r"\:", r"\="])).map("".join))
    @settings(max_examples=100, deadline=None)
    def test_parameters_are_split_alike(self, text: str) -> None:
        """Without it a path with a colon in it would be understood otherwise than in Twisted's own endpoints."""
        _, named = endpoints._parse("tls:" + text)
        wanted = [named[name] for name in ("certificate", "privateKey", "trustRoots") if named.get(name)]
        self.assertEqual(client_files("tls:" + text), tuple(dict.fromkeys(wanted)))

    def test_files_of_clients(self) -> None:
        """Without it a front would dial with the certificate of its start, long after that has run out."""
        self.assertEqual(
            client_files(r"tls:h:1:certificate=/a\:b.pem:privateKey=/k:trustRoots=/roots"), ("/a:b.pem", "/k", "/roots")
        )
        self.assertEqual(client_files(r"tls:h:1:certificate=/a=b:privateKey=\\k"), ("/a=b", r"\k"))
        self.assertEqual(client_files("tls:h:1:certificate=/both:privateKey=/both"), ("/both",))
        for other in ("tcp:h:1", "wss://h/worker-sync", "tls:h:1"):
            self.assertEqual(client_files(other), ())

    def test_where_it_listens(self) -> None:
        """Without it an endpoint could be open on another address than the operator wrote."""
        description = self.described(r"interface=\:\:1", "backlog=7")
        self.successResultOf(listen_endpoint(self.reactor, description).listen(Factory.forProtocol(Echo)))
        port, _, backlog, interface = self.reactor.tcpServers[0]
        self.assertEqual((port, backlog, interface), (443, 7, "::1"))

    def test_slips(self) -> None:
        """Without it a front would not start and leave the operator to guess why."""
        for description, problem in {
            "ssl:443": "^privateKey: server.pem cannot be read: No such file",
            "ssl:443:privateKey=/nowhere": "^privateKey: /nowhere cannot be read: No such file",
            f"ssl:443:privateKey={self.folder}": "^privateKey: .* cannot be read: Is a directory",
            "ssl:443:privateKey=\0": "^privateKey: .* cannot be read: ",
            self.described("extraCertChain=/nowhere"): "^extraCertChain: /nowhere cannot be read",
            self.described(f"extraCertChain={self.key}"): "^extraCertChain: .* holds no certificate",
            self.described("dhParameters=/nowhere"): "^dhParameters: /nowhere cannot be read",
            self.described(f"dhParameters={self.key}"): "^certKey: .* cannot be used: ",
            self.described("port=444"): "^ssl: port is there twice",
            self.described("certificate=x"): "^ssl: certificate is not known",
            self.described("backlog=many"): "^backlog: 'many' is not a number",
            self.described().replace("443", "https"): "^port: 'https' is not a number",
            "ssl" + ":x" * 9: "^ssl: takes 8 parameters at most",
        }.items():
            with self.assertRaises(EndpointError, msg=description) as raised:
                self.endpoint(description)
            self.assertRegex(str(raised.exception), problem)
            self.assertNotIn("\n", str(raised.exception))

    def test_other_kinds_are_twisteds(self) -> None:
        """Without it an endpoint of a plugin could not be used; that it is not reloaded can be looked up."""
        with self.logged(LogLevel.debug) as lines:
            endpoint, server = self.endpoint("tcp:8080")
        self.assertIsNone(endpoint.credentials)
        self.assertIsInstance(server.buildProtocol(None), Echo)
        self.assertEqual(lines, ["tcp:8080: certificates, if it has any, are the endpoint's own matter"])
        for description in ("nonsense:1", "tcp:port", "", "haproxy:nonsense:1"):
            with self.assertRaises((ValueError, KeyError), msg=description):
                listen_endpoint(self.reactor, description)


class ProxyTests(EndpointTestCase):
    """``haproxy:ssl:``."""

    def test_the_header_comes_before_tls(self) -> None:
        """Without it no proxy that passes TLS on could tell the address of the client; and it is reloaded as well."""
        endpoint, server = self.endpoint("haproxy:" + self.described())
        header = b"PROXY TCP4 203.0.113.9 192.0.2.1 5000 443\r\n"
        caller = self.call(server, before=header)
        self.assertEqual(caller.ask(b"x"), b"203.0.113.9 x")
        write_pair(self.folder, ROOT.issue("localhost"))
        self.assertTrue(self.credentials(endpoint).reload())
        self.assertNotEqual(self.call(server, before=header).serial(), caller.serial())
        self.assertEqual(caller.ask(b"y"), b"203.0.113.9 y")

    def test_without_the_header(self) -> None:
        """Without it whoever reaches the port could be taken for the proxy itself."""
        _, server = self.endpoint("haproxy:" + self.described())
        with self.assertRaisesRegex(AssertionError, "nothing came"):
            self.call(server)
        other = self.endpoint("haproxy:tcp:8080")[1]
        transport = StringTransport()
        protocol = other.buildProtocol(IPv4Address("TCP", "192.0.2.7", 1))
        protocol.makeConnection(transport)
        protocol.dataReceived(b"PROXY TCP4 203.0.113.9 192.0.2.1 5000 443\r\nx")
        self.assertEqual(transport.value(), b"203.0.113.9 x")
