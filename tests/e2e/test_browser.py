"""The whole way with a real browser: page, worker, data channel, a downloaded file with the right hash."""

from __future__ import annotations

import hashlib
import os
import random
from pathlib import Path

from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait
from twisted.trial.unittest import SynchronousTestCase

from tests.e2e.browser import PAGE_LIMIT_S, chromium
from tests.e2e.processes import Front, new_folder


class PageTests(SynchronousTestCase):
    """The client page against a front with its demo worker."""

    def setUp(self) -> None:
        self.served = new_folder()
        self.downloads = new_folder()
        self.content = random.Random(7).randbytes(3_000_001)
        (self.served / "data.bin").write_bytes(self.content)
        (self.served / "docs").mkdir()
        (self.served / "docs" / "hello.txt").write_text("hello\n")

    def open_page(self, front: Front, path: str = "/", width: int = 1280) -> None:
        """A browser on a page of the front, closed after the test."""
        self.browser = chromium(self.downloads, width)
        self.addCleanup(self.browser.quit)
        self.browser.get(f"http://127.0.0.1:{front.port}{path}")

    def await_state(self, selector: str, state: str) -> None:
        """Waits until an element's ``data-state`` is ``state``."""
        WebDriverWait(self.browser, PAGE_LIMIT_S).until(
            lambda browser: browser.find_element(By.CSS_SELECTOR, selector).get_attribute("data-state") == state,
            f"{selector} did not become {state}",
        )

    def keep_screenshot(self, name: str) -> None:
        """Leaves a picture below the trial's temporary folder, for people to look at."""
        self.browser.save_screenshot(str(Path(os.getcwd()) / f"screenshot-{name}.png"))

    def assert_console_clean(self) -> None:
        """No error in the browser's console: no script failed, no policy was broken."""
        severe = [entry["message"] for entry in self.browser.get_log("browser") if entry["level"] == "SEVERE"]
        self.assertEqual(severe, [])

    def test_download(self) -> None:
        """Without it the product might do everything but what it is for: a file from a worker in a browser."""
        front = Front(options=["--demo-folder", str(self.served)]).ready()
        self.addCleanup(front.stop)
        front.await_line("worker-joined worker=demo")
        self.open_page(front)
        self.await_state("#app", "open")
        for phase in ("bootstrap", "signaling", "offer", "ice", "channel"):
            self.await_state(f"#phase-{phase}", "done")
            self.assertRegex(self.browser.find_element(By.CSS_SELECTOR, f"#phase-{phase} .phase-ms").text, r"\d")
        self.await_state("#files", "ready")
        names = [row.get_attribute("data-name") for row in self.browser.find_elements(By.CSS_SELECTOR, "li.file")]
        self.assertEqual(sorted(names), ["data.bin", "docs/hello.txt"])
        row = 'li.file[data-name="data.bin"]'
        self.browser.find_element(By.CSS_SELECTOR, f"{row} .file-action").click()
        self.await_state(row, "verified")
        self.keep_screenshot("downloaded")
        expected = hashlib.sha256(self.content).hexdigest()
        self.assertEqual(self.browser.find_element(By.CSS_SELECTOR, f"{row} code.sha256").text, expected)
        saved = self.downloads / "data.bin"
        WebDriverWait(self.browser, PAGE_LIMIT_S).until(lambda _: saved.exists(), "the file was not saved")
        self.assertEqual(hashlib.sha256(saved.read_bytes()).hexdigest(), expected)
        self.assert_console_clean()

    def test_no_worker(self) -> None:
        """Without it a page without a worker might stay blank instead of saying what to do."""
        front = Front().ready()
        self.addCleanup(front.stop)
        self.open_page(front, width=375)
        self.await_state("#app", "waiting")
        self.assertEqual(
            self.browser.find_element(By.CSS_SELECTOR, "#app").get_attribute("data-code"), "no-workers"
        )
        self.assertIn("kollator-worker", self.browser.find_element(By.ID, "worker-command").text)
        self.keep_screenshot("no-worker-phone")

    def test_status_page(self) -> None:
        """Without it operators might be shown an empty page."""
        front = Front(options=["--demo-folder", str(self.served)]).ready()
        self.addCleanup(front.stop)
        front.await_line("worker-joined worker=demo")
        self.open_page(front, "/status")
        WebDriverWait(self.browser, PAGE_LIMIT_S).until(
            lambda browser: browser.find_elements(By.CSS_SELECTOR, '#workers tr[data-name="demo"][data-state="up"]'),
            "the demo worker is not shown",
        )
        self.assertEqual(len(self.browser.find_elements(By.CSS_SELECTOR, "#fronts tr[data-name]")), 1)
        self.keep_screenshot("status")
        self.assert_console_clean()
