"""Screenshots of a report, to look at and for docs/figures: scripts/report_screenshots.py REPORT FOLDER

Takes the page in both widths and themes, whole, and two views of the rollout viewer for the documentation.
Needs Debian's chromium and playwright (aipo[dev]).
"""

import shutil
import sys
from pathlib import Path
from typing import Any

WIDTHS, THEMES = (1280, 390), ("light", "dark")


def main(report: Path, folder: Path) -> None:
    """Take them all."""
    from playwright.sync_api import sync_playwright

    folder.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for width in WIDTHS:
            for theme in THEMES:
                page = _page(browser, report, width, theme)
                page.screenshot(path=folder / f"page-{width}-{theme}.png", full_page=True)
                page.context.close()
        _for_the_docs(browser, report, folder)
        browser.close()


def _page(browser: Any, report: Path, width: int, theme: str, height: int = 900) -> Any:
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=theme)
    page = context.new_page()
    page.goto(report.resolve().as_uri())
    return page


def _for_the_docs(browser: Any, report: Path, folder: Path) -> None:
    """A consultation opened beside shaded tokens; siblings in the dark; curves."""
    page = _page(browser, report, 1280, "light", 860)
    _interesting(page)
    page.locator("details.consultation > summary").first.click()
    page.locator("select[name=shade]").select_option("p")
    page.locator(".text > .policy .token").nth(2).hover()
    page.screenshot(path=folder / "report-rollout.png")
    page.context.close()
    page = _page(browser, report, 1280, "dark", 860)
    _interesting(page)
    page.keyboard.press("s")
    page.evaluate("document.querySelector('.viewer').scrollIntoView()")
    page.screenshot(path=folder / "report-siblings.png")
    page.context.close()
    page = _page(browser, report, 1280, "light", 860)
    page.evaluate("document.querySelectorAll('.chart-group')[1].scrollIntoView()")
    page.screenshot(path=folder / "report-curves.png")
    page.context.close()


def _interesting(page: Any) -> None:
    """Choose a hard problem's rollout that asked several times and was right."""
    page.locator("select[name=verdict]").select_option("correct")
    page.locator("select[name=condition]").select_option("consulting")
    page.locator(".list .item", has_text="3 consultations").first.click()
    page.evaluate("document.getElementById('rollouts').scrollIntoView()")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
