"""The client application's files and the headers that keep foreign scripts out of its pages."""

from __future__ import annotations

import hashlib
import re
from html.parser import HTMLParser

from twisted.trial.unittest import SynchronousTestCase

from kollator.web.pages import CONTENT_TYPES
from tests.fronts import ASSETS

PAGES = (b"index.html", b"status.html")
LINKS = {"/", "/status", "/health", "/workers", "/metrics"}


class Page(HTMLParser):
    """What a page loads, links to, and has in it that its policy forbids."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.forbidden: list[str] = []
        self._in: str = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Sorts the attributes."""
        given = dict(attrs)
        self._in = tag
        self.forbidden += [name for name in given if name.startswith("on") or name == "style"]
        if tag in ("iframe", "object", "embed", "base", "form"):
            self.forbidden.append(tag)
        target = given.get("src") or given.get("href")
        if target and tag == "a":
            self.links.append(target)
        elif target:
            self.loads.append(target)

    def handle_data(self, data: str) -> None:
        """Scripts and styles have no text."""
        if self._in in ("script", "style") and data.strip():
            self.forbidden.append(data)

    def handle_endtag(self, tag: str) -> None:
        """Text is outside again."""
        self._in = ""


class PageTests(SynchronousTestCase):
    """The HTML pages against their own policy."""

    def test_nothing_forbidden(self) -> None:
        """The policy allows no inline script or style: what a page had of it would silently not work."""
        for name in PAGES:
            self.assertEqual(Page(ASSETS[name].body.decode()).forbidden, [], name)

    def test_what_is_loaded_exists(self) -> None:
        """A script or style that is not there leaves a dead page, and one from elsewhere is not allowed."""
        for name in PAGES:
            page = Page(ASSETS[name].body.decode())
            self.assertTrue(page.loads)
            for path in page.loads:
                self.assertTrue(path.startswith("/static/"), path)
                self.assertIn(path.removeprefix("/static/").encode(), ASSETS, name)
            for path in page.links:
                self.assertTrue(path in LINKS or path.startswith("#"), path)

    def test_modules_exist(self) -> None:
        """The same for what the scripts import."""
        for name, asset in ASSETS.items():
            for imported in re.findall(r'(?:from|import) "\./([^"]+)"', asset.body.decode()):
                self.assertIn(imported.encode(), ASSETS, name)

    def test_scripts_keep_to_the_policy(self) -> None:
        """Text that becomes code or markup is what the policy is against, or what it cannot help against."""
        for name, asset in ASSETS.items():
            if name.endswith(b".js"):
                found = re.findall(r"\beval\(|new Function|innerHTML|outerHTML|insertAdjacentHTML|document\.write|"
                                   r"setAttribute\(\"style|javascript:", asset.body.decode())
                self.assertEqual(found, [], name)

    def test_policy(self) -> None:
        """Only the front's own scripts and styles, nobody's frame, and connections to where signaling may be."""
        for name in PAGES:
            headers = ASSETS[name].headers
            policy = dict(
                directive.strip().split(" ", 1) for directive in headers[b"content-security-policy"].decode().split(";")
            )
            self.assertEqual(policy["default-src"], "'none'")
            self.assertEqual((policy["script-src"], policy["style-src"]), ("'self'", "'self'"))
            self.assertEqual(policy["frame-ancestors"], "'none'")
            self.assertEqual(set(policy["connect-src"].split()), {"'self'", "ws:", "wss:"})
            self.assertEqual(headers[b"x-frame-options"], b"DENY")
            self.assertEqual(headers[b"referrer-policy"], b"no-referrer")

    def test_no_foreign_pictures(self) -> None:
        """Pictures and fonts in the styles would need a line in the policy."""
        for name, asset in ASSETS.items():
            if name.endswith(b".css"):
                self.assertEqual(re.findall(r"url\(|@import", asset.body.decode()), [], name)


class AssetTests(SynchronousTestCase):
    """The files as they are served."""

    def test_each_kind(self) -> None:
        """Every file has a type that browsers take, a strong ETag of its content, and is asked about each time."""
        self.assertLessEqual({b"index.html", b"status.html", b"kollator.js", b"favicon.svg", b"style.css"}, set(ASSETS))
        for name, asset in ASSETS.items():
            self.assertEqual(asset.content_type, CONTENT_TYPES["." + name.decode().rsplit(".")[-1]])
            self.assertEqual(asset.etag, b'"' + hashlib.sha256(asset.body).hexdigest()[:32].encode() + b'"')
            self.assertEqual((asset.headers[b"etag"], asset.headers[b"cache-control"]), (asset.etag, b"no-cache"))
            self.assertEqual(b"content-security-policy" in asset.headers, name.endswith(b".html"))
