"""The README tells the settings as the table has them."""

from __future__ import annotations

import re
from io import StringIO
from pathlib import Path

from docutils.core import publish_string
from twisted.trial.unittest import SynchronousTestCase

from kollator.settings import table

README = Path(__file__).parent.parent / "README.rst"
BEGIN, END = ".. settings: begin", ".. settings: end"


def settings_rst() -> str:
    """The settings as a reStructuredText list table; ``python -m tests.test_readme`` writes it into the README."""
    lines = ["", ".. list-table::", "   :header-rows: 1", "", "   * - Variable, option", "     - Default", "     - "]
    for variable, option, default, text in table():
        lines.append(f"   * - ``{variable}``" + (f" ``{option.split()[0]}``" if option else ""))
        lines.append(f"     - {default}")
        lines.append(f"     - {text}".replace("*", "\\*") + (" (repeatable)" if "repeatable" in option else ""))
    return "\n".join([*lines, "", ""])


def with_settings(readme: str) -> str:
    """The README's text with the present table in it."""
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{settings_rst()}{END}{after}"


class ReadmeTests(SynchronousTestCase):
    """What the README says of settings."""

    def test_renders(self) -> None:
        """Without it a slip in the markup would garble the page that people read first."""
        problems = StringIO()
        publish_string(
            README.read_text("utf-8"),
            writer="null",
            settings_overrides={"warning_stream": problems, "report_level": 2, "halt_level": 5},
        )
        self.assertEqual(problems.getvalue(), "")

    def test_settings_table(self) -> None:
        """Without it the README would tell other settings or defaults than the front has."""
        readme = README.read_text("utf-8")
        self.assertEqual(readme, with_settings(readme), "run: python -m tests.test_readme")

    def test_threats_table(self) -> None:
        """Without it the table of threats could promise a setting, or a test, that there is not."""
        _, _, rest = README.read_text("utf-8").partition(".. threats: begin")
        rows, _, _ = rest.partition(".. threats: end")
        names = {variable for variable, *_ in table()}
        tests = Path(__file__).parent
        named = [word for name in re.findall(r"``([^`]+)``", rows) for word in name.split()]
        settings = [name for name in named if re.fullmatch("[A-Z_]+", name)]
        modules = [name for name in named if name.startswith(("test_", "e2e/")) or name == "fuzz"]
        self.assertEqual(sorted(set(settings) - names), [])
        self.assertGreater(len(modules), 30)
        self.assertEqual(
            [name for name in modules if not ((tests / f"{name}.py").is_file() or (tests / name).is_dir())], []
        )


if __name__ == "__main__":
    README.write_text(with_settings(README.read_text("utf-8")), "utf-8")
