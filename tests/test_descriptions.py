"""Relayed content: what browsers really send passes, and what would hurt the receiver does not."""

from __future__ import annotations

import signal

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from kollator.guard.descriptions import (
    MAX_CANDIDATE_CHARS,
    MAX_SDP_CHARS,
    MAX_SDP_LINES,
    MAX_SDP_MEDIA,
    check_candidate,
    check_sdp,
)

CHROME_OFFER = """v=0
o=- 4611731400430051336 2 IN IP4 127.0.0.1
s=-
t=0 0
a=group:BUNDLE 0
a=extmap-allow-mixed
a=msid-semantic: WMS
m=application 9 UDP/DTLS/SCTP webrtc-datachannel
c=IN IP4 0.0.0.0
a=ice-ufrag:EEtu
a=ice-pwd:asd88fgpdd777uzjYhagZg8h
a=ice-options:trickle
a=fingerprint:sha-1 39:4A:09:1E:0E:33:32:85:51:03:49:95:54:0B:41:09:A2:10:60:CC
a=setup:actpass
a=mid:0
a=sctp-port:5000
a=max-message-size:262144
"""
CHROME_CALL = """v=0
o=- 7614219274584779017 2 IN IP4 127.0.0.1
s=-
t=0 0
a=group:BUNDLE 0 1
a=msid-semantic: WMS 4d5ad2c0-\u00fc
m=audio 9 UDP/TLS/RTP/SAVPF 111 63
c=IN IP4 0.0.0.0
a=rtcp:9 IN IP4 0.0.0.0
a=mid:0
a=extmap:1 urn:ietf:params:rtp-hdrext:ssrc-audio-level
a=sendrecv
a=rtpmap:111 opus/48000/2
a=fmtp:111 minptime=10;useinbandfec=1
m=video 9 UDP/TLS/RTP/SAVPF 96
c=IN IP4 0.0.0.0
a=mid:1
a=rtpmap:96 VP8/90000
"""
FIREFOX_OFFER = """v=0
o=mozilla...THIS_IS_SDPARTA-99.0 7156849376839474362 0 IN IP4 0.0.0.0
s=-
t=0 0
a=sendrecv
a=fingerprint:sha-1 6B:8B:F0:65:5F:78:E2:51:3B:AC:6F:F3:3F:46:1B:35:DC:B8:5F:64
a=group:BUNDLE 0
a=ice-options:trickle
a=msid-semantic:WMS *
m=application 9 UDP/DTLS/SCTP webrtc-datachannel
c=IN IP4 0.0.0.0
a=sendrecv
a=ice-pwd:cc6fa7ba1f8bd1ae7f4f6d6c5c8c8a11
a=ice-ufrag:5a0c0a1e
a=mid:0
a=setup:actpass
a=sctp-port:5000
a=max-message-size:1073741823
"""
AIORTC_OFFER = """v=0
o=- 4004332567 4004332567 IN IP4 0.0.0.0
s=-
t=0 0
a=group:BUNDLE 0
a=msid-semantic:WMS *
m=application 44393 UDP/DTLS/SCTP webrtc-datachannel
c=IN IP4 192.0.2.2
a=mid:0
a=sctp-port:5000
a=max-message-size:262144
a=candidate:f957a2332b1715da3b0ef8ba684454eb 1 udp 2130706431 192.0.2.2 44393 typ host
a=end-of-candidates
a=ice-ufrag:LKQq
a=ice-pwd:DCahLnmi6XNr9nDLbEmzYy
a=setup:actpass
"""
SAFARI_OFFER = """v=0
o=- 5191829462349087262 2 IN IP4 127.0.0.1
s=-
t=0 0
a=group:BUNDLE 0
a=extmap-allow-mixed
a=msid-semantic: WMS
m=application 9 UDP/DTLS/SCTP webrtc-datachannel
c=IN IP4 0.0.0.0
a=candidate:3317362580 1 udp 2113937151 9d5ea9c5-2c1b-4a34-a1ad-d6d1b64c2eb2.local 61322 typ host generation 0
a=ice-ufrag:gkYz
a=ice-pwd:0iJrTjXyBPbBvBVjFW8HhDWt
a=ice-options:trickle
a=fingerprint:sha-256 9E:1B:C1:55:4A:3A:C6:0C:A7:A3:5B:79:59:4A:5F:0C:3E:6B:11:22:33:44:55:66:77:88:99:AA:BB:CC:DD:EE
a=setup:actpass
a=mid:0
a=sctp-port:5000
a=max-message-size:262144
"""
PION_ANSWER = """v=0
o=- 6920920643910646739 1700000000 IN IP4 0.0.0.0
s=-
t=0 0
a=msid-semantic:WMS*
a=fingerprint:sha-256 4A:3A:C6:0C:A7:A3:5B:79:59:4A:5F:0C:3E:6B:11:22:33:44:55:66:77:88:99:AA:BB:CC:DD:EE:9E:1B:C1:55
a=extmap-allow-mixed
a=group:BUNDLE 0
m=application 9 UDP/DTLS/SCTP webrtc-datachannel
c=IN IP4 0.0.0.0
a=setup:active
a=mid:0
a=sendrecv
a=sctp-port:5000
a=max-message-size:1073741823
a=ice-ufrag:sfDPTgCQbNDuAhGn
a=ice-pwd:GHILIXWpDqCKWzFtjlQLqbPuBMxNEAqE
a=candidate:3638416530 1 udp 2130706431 192.0.2.44 53391 typ host ufrag sfDPTgCQbNDuAhGn
a=end-of-candidates
"""
LIBDATACHANNEL_OFFER = """v=0
o=rtc 3767197920 0 IN IP4 127.0.0.1
s=-
t=0 0
a=group:BUNDLE 0
a=group:LS 0
a=msid-semantic:WMS *
a=setup:actpass
a=ice-ufrag:hEtZ
a=ice-pwd:mcVEMPSYRcXPAPVCpTgU0q
a=ice-options:ice2,trickle
a=fingerprint:sha-256 22:33:44:55:66:77:88:99:AA:BB:CC:DD:EE:9E:1B:C1:55:4A:3A:C6:0C:A7:A3:5B:79:59:4A:5F:0C:3E:6B:11
m=application 9 UDP/DTLS/SCTP webrtc-datachannel
c=IN IP4 0.0.0.0
a=mid:0
a=sendrecv
a=sctp-port:5000
a=max-message-size:262144
"""
MINIMAL = "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=-\nt=0 0\n"
CANDIDATES = """\
candidate:842163049 1 udp 1677729535 203.0.113.7 46154 typ srflx raddr 10.0.0.17 rport 46154 generation 0
candidate:1467250027 1 udp 2122260223 192.168.0.196 46243 typ host generation 0 ufrag EEtu network-cost 10
candidate:1853887674 1 udp 1518280447 0d9ed2f5-5ae2-4b8b-a0c2-2b4d6a8e4ffb.local 36768 typ host generation 0
candidate:2518618417 1 tcp 1518149375 127.0.0.1 9 typ host tcptype active generation 0 ufrag EEtu network-id 1
candidate:750991856 2 udp 25108222 237.30.30.30 58779 typ relay raddr 47.61.61.61 rport 54761 ufrag oz1T
candidate:2437072876 1 ssltcp 1518280447 2001:db8::7 443 typ host generation 0
candidate:0 1 UDP 2122252543 192.168.1.5 50000 typ host
candidate:1 1 TCP 2105524479 4c1a0f08-75c1-4b0c-9bd7-4a1c6b1b6d5c.local 9 typ host tcptype active
candidate:3 1 UDP 1686052863 198.51.100.4 50000 typ srflx raddr 0.0.0.0 rport 0
candidate:5 1 UDP 92217087 203.0.113.20 60000 typ relay raddr 203.0.113.20 rport 60000
candidate:f957a2332b1715da3b0ef8ba684454eb 1 udp 2130706431 192.0.2.2 44393 typ host
candidate:6815297761 1 udp 659136 fe80::1c2d%en0 31102 typ prflx raddr 10.0.1.1 rport 3478
candidate:udpcandidate 1 udp 1078862079 192.0.2.9 40001 typ host
candidate:1 256 UDP 1 host.example. 65535 typ host ext-without-value  other value
candidate:2157334355 1 udp 2122194687 fd00::7a8c:1 51556 typ host generation 0 ufrag gkYz network-id 2 network-cost 900
candidate:1 1 UDP 2114977791 fe80::a00:27ff:fe4e:66a1 38214 typ host
candidate:4234997325 1 udp 2043278322 192.0.2.172 44323 typ host
candidate:233762139 1 udp 2130706431 2001:db8::44 53391 typ host ufrag sfDPTgCQbNDuAhGn
candidate:8 1 TCP 1015021823 192.0.2.8 34567 typ host tcptype passive
candidate:10 1 TCP 1010827775 192.0.2.8 9 typ srflx raddr 192.168.1.8 rport 9 tcptype so
a=candidate:1 1 UDP 2130706431 10.0.1.1 8998 typ host"""
TOKEN = "abcXYZ019+-._"
ODD_LINE_ENDS = "\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"


class DescriptionTests(SynchronousTestCase):
    """Session descriptions."""

    def test_real_ones(self) -> None:
        """Without it the offer of some browser would not reach its worker."""
        whole = (CHROME_OFFER, CHROME_CALL, FIREFOX_OFFER, AIORTC_OFFER, SAFARI_OFFER, PION_ANSWER)
        for sdp in (*whole, LIBDATACHANNEL_OFFER, MINIMAL, "v=0", "v=0\n", "v=0\r"):
            self.assertIsNone(check_sdp(sdp))
            self.assertIsNone(check_sdp(sdp.replace("\n", "\r\n")))

    def test_large_call(self) -> None:
        """Without it a page with thirty tracks could not connect."""
        tracks = "".join(f"m=audio 9 UDP/TLS/RTP/SAVPF 111\r\na=mid:{number}\r\n" for number in range(60))
        sdp = CHROME_OFFER + tracks
        self.assertIsNone(check_sdp(sdp.ljust(MAX_SDP_CHARS, "x")))

    def test_refused(self) -> None:
        """Without it a description could hold what is none, or cost a receiver far more than its sender."""
        for sdp, says in [
            ("", "v=0"),
            ("v=1", "v=0"),
            (" v=0", "v=0"),
            ("\ufeffv=0", "v=0"),
            ("m=audio", "v=0"),
            (CHROME_OFFER + "\0", "NUL"),
            (CHROME_OFFER + "a=\ud800", "UTF-8"),
            ("v=0".ljust(MAX_SDP_CHARS + 1), f"over {MAX_SDP_CHARS} characters"),
            ("v=0" + "\n" * (MAX_SDP_LINES + 1), "lines"),
            ("v=0" + "\r" * (MAX_SDP_LINES + 1), "lines"),
            ("v=0" + "\r\nm=audio" * (MAX_SDP_MEDIA + 1), "m= lines"),
            ("v=0" + "\nm=" * (MAX_SDP_MEDIA + 1), "m= lines"),
            ("v=0" + "\rm=" * (MAX_SDP_MEDIA + 1), "m= lines"),
            *((f"v=0{f'{end}m=audio' * (MAX_SDP_MEDIA + 1)}", "m= lines") for end in ODD_LINE_ENDS),
            *((f"v=0{end * (MAX_SDP_LINES + 1)}", "lines") for end in ODD_LINE_ENDS),
        ]:
            self.assertIn(says, check_sdp(sdp) or "accepted")

    def test_odd_text(self) -> None:
        """Without it a session whose name has a line separator in it would be refused (RFC 8866 allows any text)."""
        for end in ODD_LINE_ENDS:
            self.assertIsNone(check_sdp(f"v=0\r\ns=a{end}m=b\r\n"))
        self.assertIsNone(check_sdp("v=0\r\na=fmtp:96 " + "m=1;" * 1000))

    @given(st.lists(st.sampled_from(["\n", "\r", "m=", "m=", "a=x", "\x0b", "\x85", "\u2028"]), max_size=400))
    @settings(max_examples=100, deadline=None)
    def test_no_hidden_media(self, pieces: list[str]) -> None:
        """Without it a receiver that splits lines in its own way would find more m= lines than counted."""
        sdp = "v=0" + "".join(pieces)
        if check_sdp(sdp) is None:
            self.assertLessEqual(sum(line.startswith("m=") for line in sdp.splitlines()), MAX_SDP_MEDIA)

    @given(st.text(st.characters(exclude_categories=()), max_size=300), st.sampled_from(["", "v=0"]))
    @settings(max_examples=100, deadline=None)
    def test_any_text(self, text: str, start: str) -> None:
        """Without it some text would raise, or be passed on though it cannot be encoded."""
        sdp = start + text
        if check_sdp(sdp) is None:
            self.assertNotIn("\0", sdp)
            sdp.encode()


class CandidateTests(SynchronousTestCase):
    """ICE candidates."""

    def test_real_ones(self) -> None:
        """Without it the candidates of some browser would be lost, and with them connections."""
        for candidate in CANDIDATES.splitlines():
            bare = candidate.removeprefix("a=").removeprefix("candidate:")
            for text in (candidate, f"{candidate} ", f"{candidate}\r\n", f"a=candidate:{bare}", bare):
                self.assertIsNone(check_candidate(text), text)
        self.assertIsNone(check_candidate(""))

    def test_refused(self) -> None:
        """Without it anything could be sent to a worker as a candidate, more lines of an SDP among it."""
        good = "candidate:1 1 udp 1 192.0.2.1 5000 typ host"
        self.assertIsNone(check_candidate(good))
        swaps = [
            *(("5000", "65536"), ("5000", "-1"), ("5000", "\u0665"), ("typ", "type"), ("host", "")),
            *((":1 ", f":{'1' * 33} "), (":1 ", ": "), (":1 ", ":1  "), (" ", "\t"), ("udp", "u dp")),
            *(("192.0.2.1", "[::1]"), ("192.0.2.1", "h\u00e9"), ("1 udp", "123456 udp"), ("udp 1", "udp x")),
            *(("udp 1", "udp 12345678901"), ("candidate:", "a="), ("candidate:", "Candidate:")),
        ]
        ends = [
            *("\r\na=ice-lite", "\nx", "\r\n\r\n", "\0", " odd", " raddr 1.1.1.1 rport 65536", " rport x"),
            *(" raddr 1.1.1.1 rport", " raddr ; rport 1", " ufrag \u00e9", f" x {'y' * MAX_CANDIDATE_CHARS}"),
        ]
        for text in (
            *(" ", "\n", "candidate:", "candidate", "x", f" {good}", f"b={good}", f"a=a={good}"),
            *(good.replace(*swap, 1) for swap in swaps),
            *(good + end for end in ends),
        ):
            self.assertIsNotNone(check_candidate(text), text)

    @given(
        st.text("abcXYZ019+/", min_size=1, max_size=32),
        st.integers(1, 256),
        st.sampled_from(["udp", "UDP", "tcp", "TCP"]),
        st.integers(0, 2**31 - 1),
        st.one_of(st.ip_addresses().map(str), st.uuids().map("{}.local".format)),
        st.integers(0, 65_535),
        st.sampled_from(["host", "srflx", "prflx", "relay"]),
        st.one_of(st.none(), st.tuples(st.ip_addresses().map(str), st.integers(0, 65_535))),
        st.lists(st.tuples(st.text(TOKEN, min_size=1, max_size=9), st.text(TOKEN + ":/", max_size=9))),
    )
    @settings(max_examples=100, deadline=None)
    def test_grammar(
        self,
        foundation: str,
        component: int,
        transport: str,
        priority: int,
        address: str,
        port: int,
        kind: str,
        related: tuple[str, int] | None,
        extensions: list[tuple[str, str]],
    ) -> None:
        """Without it a candidate that RFC 8839 allows would be refused."""
        text = f"candidate:{foundation} {component} {transport} {priority} {address} {port} typ {kind}"
        if related is not None:
            text += " raddr {} rport {}".format(*related)
        text += "".join(f" {name} {value}" for name, value in extensions)
        self.assertIsNone(check_candidate(text))

    @given(st.text(max_size=200), st.integers(0, 60), st.integers(0, 5))
    @settings(max_examples=100, deadline=None)
    def test_any_text(self, text: str, position: int, removed: int) -> None:
        """Without it some text would raise, or bring a second line along."""
        good = CANDIDATES.splitlines()[0]
        for candidate in (text, good[:position] + text + good[position + removed :]):
            if check_candidate(candidate) is None:
                self.assertTrue(candidate.isascii())
                self.assertEqual(len(candidate.rstrip("\r\n").splitlines()), 1 if candidate else 0)

    def test_quick(self) -> None:
        """Without it a candidate made for it could keep the whole front busy (a pattern that backtracks)."""

        def backtracks(number: int, frame: object) -> None:
            raise AssertionError("ten seconds of the processor for what takes a fraction of one")

        self.addCleanup(signal.signal, signal.SIGVTALRM, signal.signal(signal.SIGVTALRM, backtracks))
        self.addCleanup(signal.setitimer, signal.ITIMER_VIRTUAL, 0)
        signal.setitimer(signal.ITIMER_VIRTUAL, 10.0)
        good = "candidate:1 1 udp 1 192.0.2.1 5000 typ host"
        tails = (" a", " a b", " ", " raddr", " raddr 1", " rport 1", "!", " a !")
        for _ in range(1000):
            for tail in tails:
                evil = (good + tail * MAX_CANDIDATE_CHARS)[: MAX_CANDIDATE_CHARS - 1] + "\0"
                self.assertIsNotNone(check_candidate(evil))
