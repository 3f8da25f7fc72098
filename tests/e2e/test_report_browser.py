"""`aipo report` in a real browser: every control of a real run's report, and hostile text that stays text.

Proves: the file opens from disk, asks for nothing else, and writes nothing to the console; curves tell their
values; tables are copied; rollouts are found, folded open, read token by token, put side by side and linked
to, with the mouse and with the keyboard; what a model wrote is shown and never acts, also a million;
both widths hold the page. Skipped, with the reason, where there is no Chromium or no playwright.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from aipo.report.page import ReportSettings, write_report
from support.browsers import (
    CHROMIUM,
    CONTRAST,
    Page,
    Watched,
    chosen,
    listed,
    sorted_position,
    until,
)
from support.policies import succeed
from support.reports import HOSTILE, RunWriter, consultation, group, rollout, segment, trained_run

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (aipo[dev])")
pytestmark = [
    pytest.mark.timeout(600),  # the first test trains the run: about a minute on a quiet core
    pytest.mark.skipif(CHROMIUM is None, reason="no browser: apt-get install chromium"),
]
Open = Callable[..., Page]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        # Chromium's sandbox needs what a container's root has not; pages here are our own files.
        started = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a real run."""
    path = tmp_path_factory.mktemp("report") / "report.html"
    succeed("report", trained_run(tmp_path_factory), "--output", path)
    return path


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a run whose every text is hostile."""
    folder = tmp_path_factory.mktemp("hostile")
    rows = []
    for index, (name, text) in enumerate(HOSTILE.items()):
        asked = [consultation("verify", text, text, detail=text), consultation(None, text, detail=text)]
        for member, row in enumerate(group(1, f"{name} {text}", ("correct", "incorrect"))):
            words = [segment("prompt", text), segment("policy", text), segment("feedback", text)]
            words += [segment("policy", text), segment("scaffold", text)]
            rows.append(row | {"segments": words, "problem_text": text, "gold": text, "reason": text})
            rows[-1] |= {"consultations": asked, "rollout": f"{text}#{index}-{member}", "stratum": text}
    long = rollout(2, "long", 0)
    long["segments"] = [segment("prompt", "x"), segment("policy", "word " * 200_000)]
    long["rollout"] = "long#0"
    run = RunWriter(folder / "<b>run</b>").metrics().lines("rollouts.jsonl", [*rows, long])
    run.evaluated(1, [0, 1, 4])
    write_report([run.folder], folder / "report.html", ReportSettings())
    return folder / "report.html"


@pytest.fixture
def open_page(browser: Any) -> Iterator[Open]:
    """Open a file in a window of its own; afterwards nothing may have gone wrong or been asked for."""
    opened: list[tuple[Watched, Any, str]] = []

    def open_(path: Path, width: int = 1280, theme: str = "light", fragment: str = "") -> Page:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=theme)
        context.grant_permissions(["clipboard-read", "clipboard-write"])
        watched = Watched(context.new_page())
        opened.append((watched, context, path.as_uri()))
        watched.page.goto(path.as_uri() + fragment)
        return watched.page

    yield open_
    for watched, context, address in opened:
        assert watched.wrong == []
        assert {url.split("#")[0] for url in watched.requests} == {address}
        assert watched.page.url.split("#")[0] == address
        context.close()


class TestARealRun:
    def test_every_part_is_there_with_its_numbers(self, report: Path, open_page: Open) -> None:
        page = open_page(report)
        text = page.locator("main").inner_text()
        for words in (
            "leg_counting",
            "policy tokens learnt from",
            "floored: W = max(p, d)",
            "seed 0",
            "torch ",
        ):
            assert words in text, words
        titles = page.locator(".chart .name").all_inner_texts()
        for title in (
            "Accuracy · hard", "pass@k · hard · banned", "Reward", "Consultations per rollout",
            "Probability of feedback under the policy", "Weight of a feedback token",
            "Gradient norm by source", "Feedback's share of the gradient", "Clipped tokens",
            "Entropy", "Sampler and trainer apart", "Time of a step", "How consultations ended",
        ):  # fmt: skip
            assert title in titles, title
        assert page.locator("#consultation table").count() >= 1
        page.get_by_text("settings that differ from the defaults").click()
        assert page.get_by_role("cell", name="8", exact=True).count() >= 1

    def test_curves_tell_their_values_to_the_mouse_and_to_the_arrow_keys(
        self, report: Path, open_page: Open
    ) -> None:
        page = open_page(report)
        chart = page.locator(".chart", has=page.get_by_text("Reward", exact=True)).locator("svg[role=img]")
        chart.scroll_into_view_if_needed()
        chart.hover()
        assert page.locator("#tip").inner_text().startswith("step 2")
        page.mouse.move(0, 0)
        assert page.locator("#tip").is_hidden()
        chart.focus()
        page.keyboard.press("ArrowLeft")
        page.keyboard.press("ArrowLeft")
        assert "step 1" in page.locator("#tip").inner_text()
        assert re.search(r"solo\s+(0\.\d+|[01])", page.locator("#tip").inner_text())
        page.keyboard.press("Escape")
        assert page.locator("#tip").is_hidden()

    def test_tables_are_copied_as_markdown_and_latex(self, report: Path, open_page: Open) -> None:
        page = open_page(report)
        page.get_by_role("button", name="Copy as Markdown").first.click()
        page.get_by_role("button", name="Copied").wait_for()
        assert page.evaluate("navigator.clipboard.readText()").startswith("| method |")
        page.get_by_role("button", name="Copy as LaTeX").first.click()
        page.get_by_role("button", name="Copied").last.wait_for()
        assert r"\begin{tabular}" in page.evaluate("navigator.clipboard.readText()")

    def test_the_theme_can_be_chosen_and_is_remembered(self, report: Path, open_page: Open) -> None:
        page = open_page(report)
        paper = "getComputedStyle(document.body).backgroundColor"
        light = page.evaluate(paper)
        page.locator("#theme").click()
        page.locator("#theme").click()
        assert page.locator("html").get_attribute("data-theme") == "dark"
        assert page.evaluate(paper) != light
        page.reload()
        assert page.evaluate(paper) != light

    def test_each_filter_keeps_what_it_says(self, report: Path, open_page: Open) -> None:
        page = open_page(report)
        everything = listed(page)
        for name, value, label in (
            ("verdict", "incorrect", "incorrect"),
            ("condition", "solo", "solo"),
            ("step", "2", "step 2"),
        ):
            page.locator(f"select[name={name}]").select_option(value)
            items = page.locator(".list .item").all_inner_texts()
            assert 0 < len(items) < everything
            assert all(label in item for item in items)
            page.get_by_role("button", name="Clear").click()
            until(lambda: listed(page) == everything)
        for name in ("agent", "problem"):
            select = page.locator(f"select[name={name}]")
            select.select_option(index=1)
            assert 0 < listed(page) < everything
            select.select_option(index=0)
        assert listed(page) == everything

    def test_search_finds_text_of_any_source(self, report: Path, open_page: Open) -> None:
        page = open_page(report)
        everything = listed(page)
        page.keyboard.press("/")
        page.keyboard.type("<KNOWLEDGE>")
        until(lambda: listed(page) < everything)
        assert listed(page) > 0
        page.keyboard.type("nowhere to be found")
        page.get_by_text("0 of").wait_for()

    def test_a_consultation_opens_to_request_reply_outcome_and_latency(
        self, report: Path, open_page: Open
    ) -> None:
        page = open_page(report)
        page.locator("select[name=agent]").select_option("knowledge")
        page.locator(".list .item").first.click()
        card = page.locator("details.consultation.agent-1").first
        card.locator("summary").click()
        inside = card.locator(".inside").inner_text()
        for words in ("REQUEST", "READ BY THE POLICY", "outcome", "answered", "latency", " s"):
            assert words in inside, words
        assert "not recorded" not in inside
        card.locator(".token").first.hover()
        said = page.locator("#tip").inner_text()
        assert "W = max(p, d)" in said and re.search(r"p (1|0|0\.\d+|\S*e-\d+) · log p", said), said
        assert "A +" not in said or re.search(r"^W \d", said, re.MULTILINE), said

    def test_tokens_tell_probability_and_credit(self, report: Path, open_page: Open) -> None:
        page = open_page(report)
        token = page.locator(".text > .policy .token").first
        token.hover()
        said = page.locator("#tip").inner_text()
        assert re.search(r"policy · token 1 of \d+", said)
        assert re.search(r"p (1|0\.\d+) · log p", said)
        assert "coefficient 1 at the first update" in said
        page.locator(".text").first.focus()
        page.keyboard.press("ArrowRight")
        page.keyboard.press("ArrowRight")
        assert "token 3 of" in page.locator("#tip").inner_text()
        page.locator("select[name=shade]").select_option("p")
        papers = "[...document.querySelectorAll('.token')].map(t => getComputedStyle(t).backgroundColor)"
        assert len(set(page.evaluate(papers))) > 1

    def test_tokens_spell_what_was_recorded(self, report: Path, open_page: Open) -> None:
        page = open_page(report)
        same = page.evaluate("""() => {
          const data = JSON.parse(document.getElementById("data").textContent);
          const first = data.runs[0].groups[0].rollouts[0];
          const policy = first.segments.filter(s => s.source === "policy");
          const shown = [...document.querySelectorAll(".text > .policy")].map(n => n.textContent);
          return policy.every((s, i) => s.text === shown[i]) && policy.every(s => s.cuts.length === s.tokens);
        }""")
        assert same

    def test_siblings_stand_side_by_side_with_their_verdicts(self, report: Path, open_page: Open) -> None:
        page = open_page(report)
        siblings = page.locator(".siblings .sibling")
        assert siblings.count() == 8
        siblings.nth(5).click()
        assert "#5" in chosen(page)
        assert siblings.nth(5).get_attribute("aria-pressed") == "true"
        page.get_by_role("button", name="Side by side").click()
        assert page.locator(".beside .rollout").count() == 8
        assert page.locator(".beside .rollout .verdict").count() == 8

    def test_a_link_names_a_rollout_and_survives_a_reload(self, report: Path, open_page: Open) -> None:
        page = open_page(report)
        page.locator(".list .item").nth(9).click()
        title = chosen(page)
        page.get_by_role("button", name="Copy link").click()
        link = page.evaluate("navigator.clipboard.readText()")
        page.reload()
        assert chosen(page) == title
        assert page.locator(".item[aria-current]").count() == 1
        elsewhere = open_page(report, fragment="#" + link.split("#", 1)[1])
        assert chosen(elsewhere) == title
        elsewhere.evaluate("location.hash = '#rollout=none'")
        elsewhere.get_by_text("is not in this report's sample").wait_for()

    def test_the_whole_viewer_is_used_without_a_mouse(self, report: Path, open_page: Open) -> None:
        page = open_page(report)
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.className") == "skip"
        page.keyboard.press("Enter")
        first = chosen(page)
        page.keyboard.press("j")
        second = chosen(page)
        assert second != first
        page.keyboard.press("k")
        assert chosen(page) == first
        page.keyboard.press("]")
        assert chosen(page) != first
        page.keyboard.press("[")
        page.keyboard.press("s")
        assert page.locator(".beside").count() == 1
        page.keyboard.press("s")
        page.locator(".list .item").first.focus()
        page.keyboard.press("ArrowDown")
        assert chosen(page) == second
        page.keyboard.press("End")
        assert page.evaluate("document.activeElement.getAttribute('aria-current')") == "true"
        page.locator("details.run > summary").first.focus()
        page.keyboard.press("Enter")
        assert page.locator("details.run").first.get_attribute("open") is None

    @pytest.mark.parametrize("width", [390, 1280])
    @pytest.mark.parametrize("theme", ["light", "dark"])
    def test_the_page_fits_its_window_and_can_be_read(
        self, width: int, theme: str, report: Path, open_page: Open
    ) -> None:
        page = open_page(report, width, theme)
        assert page.evaluate("document.documentElement.scrollWidth") == width
        assert page.evaluate(CONTRAST) == []


class TestHostileText:
    def test_it_is_shown_and_never_acts(self, hostile: Path, open_page: Open) -> None:
        page = open_page(hostile)
        markup = page.evaluate(
            "document.querySelectorAll('script, style, base, iframe, img, object, meta').length"
        )
        for number in range(listed(page)):
            page.locator(".list .item").nth(number).click()
            for card in page.locator("details.consultation > summary").all():
                card.click()
            shown = page.locator(".detail").inner_text()
            assert chosen(page).strip()
            assert "\u202e" not in shown
        page.keyboard.press("s")
        now = page.evaluate(
            "document.querySelectorAll('script, style, base, iframe, img, object, meta').length"
        )
        assert now == markup
        assert page.evaluate("window.hacked") is None
        assert page.locator(".detail a, main img, main script").count() == 0

    @pytest.mark.parametrize(
        ("name", "words"),
        [
            ("script", "</script><script>window.hacked = 1; alert(1)</script>"),
            ("image", '<img src=x onerror="window.hacked = 2">'),
            ("control", r"a\u{0000}b\u{0007}c\u{001B}[31md\u{000D}\u{0085}e\u{2028}f\u{2029}g"),
            ("bidi", r"safe\u{202E}gnp.exe\u{2066}x\u{2069}\u{200F}!"),
            ("half", r"half \u{D83D} of a character"),
        ],
    )
    def test_what_cannot_be_seen_stands_as_an_escape(
        self, name: str, words: str, hostile: Path, open_page: Open
    ) -> None:
        page = open_page(hostile)
        page.locator("select[name=problem]").select_option(index=1 + sorted_position(page, name))
        assert listed(page) == 2
        page.locator(".list .item").first.click()
        assert words in page.locator(".text > .policy").first.text_content()

    def test_a_million_characters_are_cut_with_a_button_for_more(
        self, hostile: Path, open_page: Open
    ) -> None:
        page = open_page(hostile)
        page.locator(".list .item", has_text="long#0").click()
        text = page.locator(".text > .policy")
        before = len(text.text_content())
        assert before < 6_000
        while text.locator(".more").count():
            text.locator(".more").click()
        assert before < len(text.text_content()) < 60_000
        assert "960,000 more characters in rollouts.jsonl" in text.text_content()

    def test_links_to_hostile_names_work(self, hostile: Path, open_page: Open) -> None:
        page = open_page(hostile)
        for number in range(listed(page)):
            page.locator(".list .item").nth(number).click()
            title = chosen(page)
            page.reload()
            assert chosen(page) == title


class TestSeveralRuns:
    def test_they_share_axes_and_can_be_hidden_one_by_one(self, tmp_path: Path, open_page: Open) -> None:
        for name, correct in (("grpo", [0, 1, 0, 0]), ("aipo", [4, 3, 4, 4])):
            run = RunWriter(tmp_path / name / "seed-0", "evaluate.pass_at=[1,4]").metrics()
            run.evaluated(1, [0, 0, 0, 1]).evaluated(2, correct)
            run.lines("rollouts.jsonl", group(1, "p", ("correct", "incorrect", "incorrect", "incorrect")))
        write_report([tmp_path], tmp_path / "report.html", ReportSettings(baseline="grpo"))
        page = open_page(tmp_path / "report.html")
        chart = page.locator(".chart", has=page.get_by_text("Accuracy · hard · unanswered"))
        assert chart.locator("path.line").count() == 2
        page.locator(".methods button", has_text="grpo").click()
        assert chart.locator("path.line").count() == 1
        assert "Paired differences to grpo" in page.locator("#results").inner_text()
        page.locator("select[name=run]").select_option("aipo, seed 0")
        assert listed(page) == 4
