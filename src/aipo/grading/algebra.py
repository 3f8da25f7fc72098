r"""Whether two answers are the same mathematics: math-verify, with numbers compared by our own rule.

Numbers agree to 40 significant digits. Where one side is written as a decimal, six decimals and six
significant digits are enough: `0.333333` is 1/3, and 0.0000002 is not 0.0000001. math-verify 0.9.0 compares
by decimals alone, so that all very small numbers are equal
(https://github.com/huggingface/Math-Verify/issues/14, /issues/21); its rule is replaced here, in this
process. Expressions with variables that agree at `POINTS` are equal, `i` being the imaginary unit; that two
different ones agree at all of them to 40 digits is not expected, and not excluded.

The library's own timeouts are off: they are alarms, which miss big-integer arithmetic and destroy the
caller's alarm (https://github.com/huggingface/Math-Verify/issues/65 and /issues/50).
"""

import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import sympy
from math_verify import LatexExtractionConfig, grader, parse, verify

POINTS = (
    *((17, 10), (-23, 10), (7, 31), (-13, 29)),
    *((61, 9), (-3, 19)),
)
"""Where expressions with variables are evaluated; the next variable takes another multiple of it."""
ENOUGH_POINTS = 4
DIGITS, SAME = 50, sympy.Float("1e-40", 10)

_WITH = re.compile(
    r"\\(?:text|mbox|mathrm)\s*\{\s*(or|and)\s*\}|\b(or|and)\b|\\(lor|vee|land|wedge)(?![A-Za-z])"
)
_OR, _AND = {"or", "lor", "vee"}, {"and", "land", "wedge"}
_RELATION = re.compile(r"[<>]|\\(?:le|ge|leq|geq|leqslant|geqslant|lt|gt|ne|neq)(?![A-Za-z])")
_numeric_eq: Callable[..., bool] = grader.sympy_numeric_eq
_symbolic_eq: Callable[..., bool] = grader.sympy_symbolic_eq


def compare(gold: str, answer: str) -> str:
    """Return `equal`, `different`, `unparsed` or `gold: unparsed`; raises what sympy raises.

    >>> compare("1/2", "0.5")
    'equal'
    """
    if not (golds := _parse(gold, "${}$")):
        return "gold: unparsed"
    if not (answers := _parse(answer, r"\boxed{{{}}}")):
        return "unparsed"
    # The gold comes first: verify is not symmetric.
    same = verify(golds, answers, allow_set_relation_comp=True, timeout_seconds=None, raise_on_error=True)
    return "equal" if same else "different"


@lru_cache(maxsize=512)
def _parse(latex: str, form: str) -> list[Any]:
    """Parse mathematics; [] when it does not parse. Cached: rollouts share golds and answers."""
    words = {next(filter(None, match.groups())) for match in _WITH.finditer(latex)}
    if words and (words <= _OR or words <= _AND):
        parts = _WITH.sub("\0", latex).split("\0")
        if all(map(_RELATION.search, parts)):
            together = sympy.Union if words <= _OR else sympy.Intersection
            return _combined([_parse_one(form.format(part)) for part in parts], together)
    return _parse_one(form.format(latex))


def _parse_one(latex: str) -> list[Any]:
    parsed: list[Any] = parse(
        latex,
        [LatexExtractionConfig(boxed_match_priority=0)],
        fallback_mode="no_fallback",
        extraction_mode="first_match",
        parsing_timeout=None,
    )
    # math-verify compares a single letter by its name, but `i` alone is a number.
    return [sympy.I if isinstance(each, sympy.Symbol) and each.name == "i" else each for each in parsed]


def _combined(parsed: list[list[Any]], together: Callable[..., Any]) -> list[Any]:
    """Return the numbers for which one or all of several relations hold; [] where that is not one set."""
    relations = [each[0] for each in parsed if each]
    variables = {symbol for each in relations for symbol in each.free_symbols}
    if len(relations) < len(parsed) or len(variables) != 1:
        return []
    return [together(*(grader.unwrap_fcs(each).as_set() for each in relations))]


def numeric_eq(one: Any, other: Any, rounding: int, precision: int) -> bool:
    """Tell whether two expressions have the same value, or the same values."""
    if any(isinstance(each, sympy.MatrixBase | sympy.MatrixExpr) for each in (one, other)):
        return _numeric_eq(one, other, rounding, precision)  # element by element, by this function
    if all(grader.is_atomic_or_pct_atomic(each, sympy.Integer) for each in (one, other)):
        return _numeric_eq(one, other, rounding, precision)  # 9 % and 9
    if variables := one.free_symbols | other.free_symbols:
        return _agree(one, other, sorted(variables, key=str))
    x, y = _value(one), _value(other)
    if x is None or y is None:
        return False
    decimal = any(grader.is_atomic_or_pct_atomic(each, sympy.Float) for each in (one, other))
    return _same(x, y) or (
        decimal and all(map(_rounded_alike, x.as_real_imag(), y.as_real_imag(), (rounding, rounding)))
    )


def symbolic_eq(one: Any, other: Any) -> bool:
    """Tell whether the difference simplifies to zero; not asked where two numbers are known to differ."""
    known = not any(
        isinstance(each, sympy.MatrixBase | sympy.MatrixExpr) or each.free_symbols or _value(each) is None
        for each in (one, other)
    )
    return not known and _symbolic_eq(one, other)


def _agree(one: Any, other: Any, variables: list[Any]) -> bool:
    """Tell whether two expressions have the same value at enough points, and nowhere another one."""
    seen = 0
    for above, below in POINTS:
        at = {
            symbol: sympy.Rational(above * (2 * k + 1), below + 7 * k) for k, symbol in enumerate(variables)
        }
        at.update({symbol: sympy.I for symbol in variables if symbol.name == "i"})
        x, y = _value(one, at), _value(other, at)
        if x is not None and y is not None:
            if not _same(x, y):
                return False
            seen += 1
    return seen >= ENOUGH_POINTS


def _value(expression: Any, at: dict[Any, Any] | None = None) -> Any:
    """Return the finite number that an expression is, also a complex one; None where it is none."""
    exact = expression.xreplace({f: sympy.Rational(str(f)) for f in expression.atoms(sympy.Float)})
    for form in (exact.subs(at) if at else exact, None):
        try:
            value = (grader.safe_sympy_doit(exact.subs(at or {})) if form is None else form).evalf(DIGITS)
        except (AttributeError, TypeError, ValueError, ArithmeticError):
            continue
        if value.is_number and value.is_finite and not value.free_symbols:
            parts = [_settled(part) for part in value.as_real_imag()]
            if None not in parts:
                return parts[0] + parts[1] * sympy.I
    return None


def _settled(part: Any) -> Any:
    """Return a real part as a float; 0 where all its digits cancelled, None where it was not computed."""
    if not isinstance(part, sympy.Number):
        return None
    return sympy.Integer(0) if isinstance(part, sympy.Float) and part._prec == 1 else part


def _same(x: Any, y: Any) -> bool:
    return bool(abs(x - y) <= SAME * max(abs(x), abs(y)))


def _rounded_alike(x: Any, y: Any, decimals: int) -> bool:
    return bool(x.round(decimals) == y.round(decimals)) and str(sympy.N(x, 6)) == str(sympy.N(y, 6))


grader.sympy_numeric_eq, grader.sympy_symbolic_eq = numeric_eq, symbolic_eq
