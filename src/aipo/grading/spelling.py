r"""Signs of Unicode, colours, bold face and odd spellings of numbers, as one plain LaTeX. Meaning is kept.

Both sides of a comparison come through here. What is not listed stays as it is.

Simplification: a decimal that repeats is read where the repeating digits are marked (`0.\overline{3}`,
`0.(3)`); `0.333...` is not.
"""

import re
import unicodedata
from itertools import accumulate

_SIGNS = str.maketrans(
    {
        **dict.fromkeys("⋅·∙•", r"\cdot "),
        **dict.fromkeys("≤⩽≦", r"\le "),
        **dict.fromkeys("≥⩾≧", r"\ge "),
        **dict.fromkeys("−–—‐‑", "-"),
        **dict.fromkeys("⁄∕", "/"),
        **dict.fromkeys("°º˚", r"^\circ "),
        **dict.fromkeys("\u2009\u202f", r"\,"),
        **{"×": r"\times ", "÷": r"\div ", "±": r"\pm ", "∓": r"\mp ", "∞": r"\infty ", "≠": r"\ne "},
        **{"∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "∅": r"\emptyset ", "∖": r"\setminus "},
        **{sign: rf"\mathbb{{{letter}}}" for sign, letter in zip("ℝℤℕℚℂ", "RZNQC", strict=True)},
        **{"⟨": r"\langle ", "⟩": r"\rangle "},
        **{
            sign: f"\\{name} "
            for sign, name in zip(
                "αβγδεζηθικλμνξπρστφχψωΔΩΦΣ",
                "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi pi rho sigma tau "
                "phi chi psi omega Delta Omega Phi Sigma".split(),
                strict=True,
            )
        },
    }
)
_RAISED = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿⁱ]+")
_LOWERED = re.compile("[₀₁₂₃₄₅₆₇₈₉₊₋₍₎]+")
_VULGAR = re.compile("[¼½¾⅐-⅞↉]")
_ROOT = re.compile(r"([√∛∜])\s*(?:\(([^()]*)\)|\{([^{}]*)\}|([0-9]+(?:\.[0-9]+)?|\\?[A-Za-z]+))")
_ROOTS = {"√": r"\sqrt", "∛": r"\sqrt[3]", "∜": r"\sqrt[4]"}
_EMPHASIS = re.compile(r"\s*(\*{1,3}|__)([^*_]+)\1\s*")

_FACE = (
    r"\\(?:boldsymbol|bm|pmb|underline|ensuremath|mathstrut|displaystyle|textstyle|bf|rm|it"
    r"|large|Large|LARGE|huge|Huge)"
)
_REWRITES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\(?:text)?color\s*+(?:\[[^\[\]]*\]\s*+)?\{[^{}]*\}", ""),
        (_FACE + r"(?![A-Za-z])", ""),
        (r"(?<=[0-9A-Za-z)}]) ?\*\* ?(?=[0-9A-Za-z({-])", "^"),
        (r"\\degree(?![A-Za-z])", r"^\\circ "),
        # 1.2e3, not a name that ends in a digit, and no longer number around it
        (
            r"(?<![A-Za-z0-9.\\_])([0-9]++(?:\.[0-9]++)?)\s?(?:[eE]|\\(?:text|mathrm)\{[eE]\})"
            r"(?:\{([+-]?)0*+([0-9]*+)\}|([+-]?)0*+([0-9]*+))(?<=[0-9}])(?![0-9A-Za-z.])",
            r"\1 \\times 10^{\2\3\4\5}",
        ),
        (r"\^\{[+-]?\}", "^{0}"),  # 5e0
        (r"\^\{\+([0-9]+)\}", r"^{\1}"),
        (r"\\\{\s*\\\}", r"\\emptyset "),
        # inside a trigonometric function a degree is a number
        (
            r"(\\(?:sin|cos|tan|cot|sec|csc))\s*+[({]?\s*+([0-9]++(?:\.[0-9]++)?)\s*+\^\s*+"
            r"(?:\\circ(?![A-Za-z])|\{\s*\\circ\s*\})\s*+[)}]?",
            r"\1(\2\\pi/180)",
        ),
        (r"\\(min|max|gcd|lcm)\s*\\\{([^{}]*)\\\}", r"\\\1(\2)"),
    )
)
_REPEATING = re.compile(
    r"(?<![0-9.])([0-9]{0,15})\.([0-9]{0,15})(?:\\(?:overline|bar)\s*\{([0-9]{1,15})\}|\(([0-9]{1,15})\)"
    r"|\\dot\s*(?:\{([0-9])\}|([0-9]))(?:([0-9]{0,15})\\dot\s*(?:\{([0-9])\}|([0-9])))?)(?![0-9(])"
)
_OVERLINED = re.compile("((?:[0-9][\u0305\u0304])+)")


def plain(text: str) -> str:
    r"""Return `text` in plain LaTeX.

    >>> plain("2√5"), plain("x²"), plain("1½"), plain("３"), plain("6.02e23"), plain(r"0.1\overline{6}")
    ('2\\sqrt{5}', 'x^{2}', '1\\frac{1}{2}', '3', '6.02 \\times 10^{23}', '\\frac{15}{90}')
    """
    if not text.isascii():
        text = _from_unicode(text)
    if emphasised := _EMPHASIS.fullmatch(text):
        text = emphasised[2]
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    return _without_braces(_REPEATING.sub(_fraction, text))


def _from_unicode(text: str) -> str:
    text = _VULGAR.sub(_vulgar, text)
    text = _RAISED.sub(lambda run: f"^{{{unicodedata.normalize('NFKC', run[0])}}}", text)
    text = _LOWERED.sub(lambda run: f"_{{{unicodedata.normalize('NFKC', run[0])}}}", text)
    text = _OVERLINED.sub(lambda run: rf"\overline{{{run[1][::2]}}}", text)
    text = _ROOT.sub(lambda root: f"{_ROOTS[root[1]]}{{{root[2] or root[3] or root[4] or ''}}}", text)
    # Before and after: some signs would lose their meaning in the normal form, others only get it there.
    return unicodedata.normalize("NFKC", text.translate(_SIGNS)).translate(_SIGNS)


def _vulgar(sign: re.Match[str]) -> str:
    above, _, below = unicodedata.normalize("NFKC", sign[0]).partition("⁄")
    return rf"\frac{{{above}}}{{{below}}}"


def _fraction(number: re.Match[str]) -> str:
    r"""Return a repeating decimal as a fraction."""
    whole, before, *marked = (part or "" for part in number.groups())
    over, round_, first, first_bare, between, last, last_bare = marked
    period = over or round_ or first + first_bare + between + last + last_bare
    above = int(f"0{whole}{before}{period}") - int(f"0{whole}{before}")
    return rf"\frac{{{above}}}{{{'9' * len(period) + '0' * len(before)}}}"


def _without_braces(text: str) -> str:
    """Return `text` without one pair of braces around all of it."""
    text = text.strip()
    if not (text.startswith("{") and text.endswith("}")):
        return text
    depths = accumulate((char == "{") - (char == "}") for char in text[:-1])
    return text if 0 in depths else text[1:-1].strip()
