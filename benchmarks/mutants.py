"""Small faults put into a module, one at a time: another comparison, sign, number, a statement left out.

    a <= b  ->  a < b, a > b        a + b  ->  a - b        a and b  ->  a or b        not a  ->  a
    3       ->  4                   True   ->  False        max(...) ->  min(...)      if a:  ->  if not a:
    return a  ->  return None       raise E(...)  ->  pass  f(a)     ->  pass          break  ->  continue

Texts, annotations, decorators and asserts are left alone: a test that holds every message to the letter would hold nothing
else. The set is that of cosmic-ray without its doubles, and mutmut's removals.
"""

import ast
import copy
from collections.abc import Iterator
from dataclasses import dataclass

COMPARED: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.Gt),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.Lt),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}
OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.BitXor: ast.BitOr,
}
_PAIRS = (
    "min max",
    "any all",
    "minimum maximum",
    "floor ceil",
    "argmin argmax",
    "zeros ones",
    "zeros_like ones_like",
    "flatnonzero nonzero",
    "cumsum cumprod",
)
FUNCTIONS = {one: other for pair in _PAIRS for one, other in (pair.split(), reversed(pair.split()))}
UNTOUCHED = ("annotation", "returns", "decorator_list", "type_params")


@dataclass(frozen=True)
class Mutant:
    """One fault, not yet made. `function`: (name, first line) of the outermost function around it, as its code object
    has them; None of what runs as the module is imported. `lines`: of the statement, or of its head.
    """

    function: tuple[str, int] | None
    lines: range
    before: str
    after: str
    parent: ast.AST
    field: str
    index: int | None
    new: ast.AST

    def apply(self) -> None:
        """Makes it, in the tree that it was found in."""
        if self.index is None:
            setattr(self.parent, self.field, self.new)
        else:
            getattr(self.parent, self.field)[self.index] = self.new


def found(tree: ast.Module) -> list[Mutant]:
    """All faults that may be put into a module, in the order of its source."""
    return list(_within(tree, None, range(0)))


def _within(node: ast.AST, function: tuple[str, int] | None, lines: range) -> Iterator[Mutant]:
    for field, value in ast.iter_fields(node):
        if field in UNTOUCHED:
            continue
        inner = _inside(node, field, function)
        for index, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if not isinstance(child, ast.AST) or isinstance(child, ast.Assert) or _for_types_alone(child):
                continue
            around = _head(child) if isinstance(child, ast.stmt) else lines
            for new in _alternatives(child):
                ast.copy_location(new, child)
                ast.fix_missing_locations(new)
                yield Mutant(inner, around, _said(child), _said(new), node, field, index, new)
            yield from _within(child, inner, around)


def _inside(node: ast.AST, field: str, function: tuple[str, int] | None) -> tuple[str, int] | None:
    """The outermost function that the field of the node runs in: default values run outside of it."""
    if function is None and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and field == "body":
        first = min([node.lineno, *(one.lineno for one in node.decorator_list)])
        return node.name, first
    return function


def _head(statement: ast.stmt) -> range:
    """The statement's lines, but not those of the block below it."""
    body = getattr(statement, "body", None)
    last = body[0].lineno - 1 if body else (statement.end_lineno or statement.lineno)
    return range(statement.lineno, max(last, statement.lineno) + 1)


def _for_types_alone(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def _said(node: ast.AST) -> str:
    """The first line of its source; of an `if`, its condition."""
    lines = ast.unparse(node).splitlines()
    return lines[0] if lines else ""


def _with(node: ast.AST, **fields: object) -> ast.AST:
    new = copy.copy(node)
    for name, value in fields.items():
        setattr(new, name, value)
    return new


def _alternatives(node: ast.AST) -> Iterator[ast.AST]:
    """What may stand in place of the node."""
    match node:
        case ast.Compare(ops=operators):
            for place, operator in enumerate(operators):
                for other in COMPARED[type(operator)]:
                    yield _with(node, ops=[*operators[:place], other(), *operators[place + 1 :]])
        case ast.BinOp(op=operator) if type(operator) in OPERATORS and not _of_types(node):
            yield _with(node, op=OPERATORS[type(operator)]())
        case ast.AugAssign(op=operator) if type(operator) in OPERATORS:
            yield _with(node, op=OPERATORS[type(operator)]())
        case ast.BoolOp(op=operator):
            yield _with(node, op=ast.Or() if isinstance(operator, ast.And) else ast.And())
        case ast.UnaryOp(op=ast.Not() | ast.USub()):
            yield copy.copy(node.operand)
        case ast.Constant(value=bool() as value):
            yield ast.Constant(not value)
        case ast.Constant(value=int() | float() as value):
            yield ast.Constant(value + 1)
        case ast.Call(func=ast.Name(id=name)) if name in FUNCTIONS:
            yield _with(node, func=ast.Name(FUNCTIONS[name], ast.Load()))
        case ast.Call(func=ast.Attribute(attr=name) as called) if name in FUNCTIONS:
            yield _with(node, func=_with(called, attr=FUNCTIONS[name]))
        case ast.If(test=test) | ast.While(test=test) | ast.IfExp(test=test) if _plain(test):
            yield _with(node, test=ast.UnaryOp(ast.Not(), test))
        case ast.comprehension(ifs=[test]) if _plain(test):
            yield _with(node, ifs=[ast.UnaryOp(ast.Not(), test)])
        case ast.Return(value=ast.expr() as value) if not _is_none(value):
            yield ast.Return(ast.Constant(None))
        case ast.Raise() | ast.Expr(value=ast.Call()):
            yield ast.Pass()
        case ast.Break():
            yield ast.Continue()
        case ast.Continue():
            yield ast.Break()


def _plain(test: ast.expr) -> bool:
    """Whether no other fault turns the condition round."""
    return not isinstance(test, ast.Compare | ast.UnaryOp | ast.BoolOp)


def _is_none(value: ast.expr) -> bool:
    return isinstance(value, ast.Constant) and value.value is None


def _of_types(node: ast.BinOp) -> bool:
    """`Conv | Gemm`: a union of types, which any other operator refuses."""
    if not isinstance(node.op, ast.BitOr):
        return False
    last = node.right
    name = last.attr if isinstance(last, ast.Attribute) else getattr(last, "id", "")
    return name[:1].isupper() or name in ("int", "float", "str", "bool") or _is_none(last)
