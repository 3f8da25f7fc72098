"""An agent with a tool of its own, a calculator: `agents.knowledge.backend = "calculator:make"`."""

import ast
import operator
from dataclasses import dataclass
from fractions import Fraction

from aipo.agents.base import AgentQuery, AgentReply
from aipo.agents.spec import AgentSpec
from aipo.config.agents import AgentFields

OPERATIONS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


@dataclass(frozen=True)
class Calculator:
    """Exact, with + - * / and brackets."""

    name: str

    async def answer(self, query: AgentQuery) -> AgentReply:
        """Return the value; what cannot be worked out is said, for the policy is to read it."""
        try:
            tree = ast.parse(query.request[:200].strip(), mode="eval")
            return AgentReply(text=str(value_of(tree.body)))
        except (ArithmeticError, SyntaxError, ValueError, RecursionError) as error:
            return AgentReply(text=f"This cannot be worked out: {error}")


def value_of(node: ast.expr) -> Fraction:
    """Return an expression's value. Raises `ValueError` for what is no arithmetic."""
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return Fraction(str(node.value))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -value_of(node.operand)
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATIONS:
        return OPERATIONS[type(node.op)](value_of(node.left), value_of(node.right))
    raise ValueError("only numbers, + - * / and brackets")


def make(spec: AgentSpec, fields: AgentFields) -> Calculator:
    """Make one for the agent of any name."""
    return Calculator(spec.name)
