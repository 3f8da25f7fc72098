"""A real browser for tests: Debian's Chromium, driven by playwright, and what to look at in a page.

`CHROMIUM` is None where there is none.
"""

import shutil
import time
from collections.abc import Callable
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
Page = Any
"""playwright's, which need not be installed."""


class Watched:
    """A page, and what went wrong on it."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.wrong: list[str] = []
        self.requests: list[str] = []
        page.on("console", lambda message: self.wrong.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: self.wrong.append(f"error: {error}"))
        page.on("dialog", self._dialog)
        page.on("popup", lambda popup: self.wrong.append("a window was opened"))
        page.on("request", lambda request: self.requests.append(request.url))

    def _dialog(self, dialog: Any) -> None:
        self.wrong.append(f"dialog: {dialog.message}")
        dialog.dismiss()


def until(happens: Callable[[], bool], within_s: float = 10.0) -> None:
    """Wait for it here: the page's policy forbids what the driver would evaluate there."""
    deadline = time.monotonic() + within_s
    while not happens():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def listed(page: Page) -> int:
    return int(page.locator(".list .item").count())


def chosen(page: Page) -> str:
    return str(page.locator(".detail .rollout h3").first.inner_text())


def sorted_position(page: Page, name: str) -> int:
    """Return where the problem of a hostile text stands among the problems' options."""
    values = page.locator("select[name=problem] option").evaluate_all("all => all.slice(1).map(o => o.value)")
    return next(i for i, value in enumerate(values) if value.startswith(f"{name} "))


CONTRAST = """() => {
  const parse = (text) => (text.match(/[\\d.]+/g) || []).map(Number);
  const luminance = ([r, g, b]) => {
    const f = (v) => { v /= 255; return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; };
    return 0.2126 * f(r) + 0.7152 * f(g) + 0.0722 * f(b);
  };
  const paper = (node) => {
    for (let n = node; n; n = n.parentElement) {
      const c = parse(getComputedStyle(n).backgroundColor);
      if (c.length === 3 || c[3] === 1) return c;
    }
    return [255, 255, 255];
  };
  const bad = [];
  for (const node of document.querySelectorAll("main *, header *")) {
    const own = [...node.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    const unseen = node.offsetParent === null && !(node instanceof SVGElement);
    if (!own || unseen || node.closest("noscript, option")) continue;
    const style = getComputedStyle(node);
    const ink = parse(node instanceof SVGElement ? style.fill : style.color);
    const [a, b] = [luminance(ink), luminance(paper(node))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    const name = node.className.baseVal ?? node.className;
    if (ratio < 4.5) bad.push(`${name} ${ratio.toFixed(2)}: ${node.textContent.slice(0, 30)}`);
  }
  return [...new Set(bad)];
}"""
"""Texts with less contrast than WCAG's AA asks for."""
