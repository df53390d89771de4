"""What a compiled program costs by its own text: loops multiplied out, those of unknown length as often as a run did.

A TPU's text has the compiler's estimate of every operation's cycles. Any text has shapes, from which follow the bytes
that operations move; of a fused operation that only slices what it reads, the slices.
"""

import math
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from jax.extend.core import jaxprs_in_params

BYTES = {"f32": 4, "s32": 4, "u32": 4, "pred": 1, "bf16": 2, "f16": 2, "s8": 1, "u8": 1, "f64": 8, "s64": 8, "u64": 8}
SHAPE = re.compile(rf"\b({'|'.join(BYTES)})\[([0-9,]*)\](\{{[^{{}}]*\}})?")
FREE = (
    "parameter get-tuple-element tuple bitcast constant copy-done after-all partition-id replica-id opt-barrier".split()
)
SLICES = ("dynamic-slice", "slice", "gather")
NO_SCOPE = re.compile(r"jit\(.*\)|while|body|cond|branch_\d+_fun|closed_call")


class Operation(NamedTuple):
    """One line: its shape and what it is called on; `rest`: its attributes."""

    name: str
    kind: str
    shape: str
    operands: list[str]
    arguments: str
    rest: str
    is_root: bool

    def called(self, by: str) -> str:
        """The computation that an attribute names."""
        return re.search(rf"{by}=%?([\w.\-]+)", self.rest)[1]  # type: ignore[index]

    @property
    def scope(self) -> str:
        """The named scopes that it was traced in."""
        found = re.search(r'op_name="([^"]*)"', self.rest)
        path = found[1].split("/") if found else []
        return "/".join(part for part in path if not NO_SCOPE.fullmatch(part))


class Cost(NamedTuple):
    """Of one run."""

    cycles: float = 0
    bytes: float = 0
    operations: float = 0
    waits: float = 0
    """Turns of loops and branches whose number is not known before."""

    def plus(self, other: "Cost", times: float = 1) -> "Cost":
        return Cost(*(a + times * b for a, b in zip(self, other, strict=True)))


class Counts(NamedTuple):
    """How often, of the scopes of loops and branches: mean turns a run of a loop, and shares of a branch's sides."""

    turns: dict[str, float]
    shares: dict[str, list[float]]


class Text:
    """A program's text."""

    def __init__(self, text: str):
        self.computations: dict[str, dict[str, Operation]] = {}
        self.entry = ""
        own: dict[str, Operation] | None = None
        for line in text.splitlines():
            if own is None and (head := re.match(r"(ENTRY )?%?([\w.\-]+) .*->.*\{$", line)):
                own = self.computations[head[2]] = {}
                self.entry = head[2] if head[1] else self.entry
            elif line.startswith("}"):
                own = None
            elif own is not None and (found := re.match(r"\s+(ROOT )?%?([\w.\-]+) = (.*)$", line)):
                own[found[2]] = _operation(found[2], re.sub(r"/\*.*?\*/", "", found[3]), found[1] is not None)

    def cost(self, counts: Counts, of: str | None = None) -> Cost:
        """Of a computation, with all that it calls.

        Raises KeyError for a loop or branch of unknown length whose scope is not counted.
        """
        own, total = self.computations[of or self.entry], Cost()
        for each in own.values():
            if each.kind == "while":
                known = self._turns(each)
                turns = counts.turns[each.scope] if known is None else known
                total = total.plus(self.cost(counts, each.called("body")), turns)
                total = total.plus(Cost(waits=0 if known is not None else turns + 1))
            elif each.kind == "conditional":
                sides = list(_branches(each))
                for side, share in zip(sides, counts.shares[each.scope], strict=True):
                    total = total.plus(self.cost(counts, side), share)
                total = total.plus(Cost(waits=1))
            elif each.kind == "call":
                total = total.plus(self.cost(counts, each.called("to_apply")))
            elif each.kind not in FREE:
                cycles = re.search(r'"estimated_cycles":"(\d+)"', each.rest)
                total = total.plus(Cost(int(cycles[1]) if cycles else 0, self._moved(each, own), 1))
        return total

    def _turns(self, loop: Operation) -> int | None:
        """Of a loop whose condition compares with a constant: its number of turns."""
        own = self.computations[loop.called("condition")]
        root = next(each for each in own.values() if each.is_root)
        compared = [own[name] for name in root.operands if name in own]
        if root.kind == "fusion":
            inner = self.computations[root.called("calls")]
            last = next(each for each in inner.values() if each.is_root)
            for each in (inner[name] for name in last.operands if name in inner):
                compared.append(own[root.operands[int(each.arguments)]] if each.kind == "parameter" else each)
        constants = [each.arguments for each in compared if each.kind == "constant"]
        return next((int(value) for value in constants if value.lstrip("-").isdigit()), None)

    def _moved(self, each: Operation, own: dict[str, Operation]) -> float:
        """Bytes that an operation reads and writes in the main memory."""
        if each.kind == "fusion":
            inner = self.computations[each.called("calls")]
            sources = [(number, own[name].shape) for number, name in enumerate(each.operands) if name in own]
            return self._written(each, inner) + sum(self._read(inner, n, size_of(shape)) for n, shape in sources)
        if each.kind == "dynamic-update-slice":
            return 2 * size_of(own[each.operands[1]].shape)
        if each.kind in SLICES or each.kind == "copy-start":
            return 2 * min(
                size_of(each.shape), *(size_of(own[name].shape) for name in each.operands[:1] if name in own)
            )
        return size_of(each.shape) + sum(size_of(own[name].shape) for name in each.operands if name in own)

    def _read(self, inner: dict[str, Operation], number: int, whole: float) -> float:
        """Of a fused computation's parameter: what is sliced of it where it is only sliced."""
        names = [each.name for each in inner.values() if each.kind == "parameter" and each.arguments == str(number)]
        total = 0.0
        while names:
            name = names.pop()
            for user in inner.values():
                for place in (place for place, operand in enumerate(user.operands) if operand == name):
                    if user.kind == "bitcast":
                        names.append(user.name)
                    elif user.kind in SLICES and place == 0:
                        total += size_of(user.shape)
                    elif user.kind == "fusion":
                        total += self._read(self.computations[user.called("calls")], place, whole)
                    elif user.kind != "dynamic-update-slice" or place:
                        return whole
        return min(total, whole)

    def _written(self, each: Operation, inner: dict[str, Operation]) -> float:
        root = next(part for part in inner.values() if part.is_root)
        results = [inner[name] for name in root.operands if name in inner] if root.kind == "tuple" else [root]
        while len(results) == 1 and results[0].kind in ("bitcast", "fusion"):
            if results[0].kind == "fusion":
                inner = self.computations[results[0].called("calls")]
                results = [next(part for part in inner.values() if part.is_root)]
            else:
                results = [inner[results[0].operands[0]]]
        in_place = [inner[part.operands[1]].shape for part in results if part.kind == "dynamic-update-slice"]
        whole = sum(size_of(part.shape) for part in results if part.kind != "dynamic-update-slice")
        return min(size_of(each.shape), whole + sum(map(size_of, in_place)))


def size_of(shape: str) -> float:
    """Bytes of a shape's parts that lie in the main memory."""
    parts = SHAPE.findall(shape)
    return sum(BYTES[kind] * math.prod(map(int, sizes.split(","))) if sizes else BYTES[kind]
               for kind, sizes, layout in parts if "S(" not in layout)  # fmt: skip


def _operation(name: str, text: str, is_root: bool) -> Operation:
    """`text`: shape kind(operands), attributes."""
    end = _closing(text, 0) + 1 if text.startswith("(") else text.index(" ")
    shape, rest = text[:end], text[end:].lstrip()
    first = rest.index("(")
    last = _closing(rest, first)
    inside = rest[first + 1 : last]
    return Operation(name, rest[:first], shape, re.findall(r"%([\w.\-]+)", inside), inside, rest[last + 1 :], is_root)


def _closing(text: str, first: int) -> int:
    """Where the parenthesis at `first` is closed."""
    depth = 0
    for at in range(first, len(text)):
        depth += (text[at] == "(") - (text[at] == ")")
        if not depth:
            return at
    raise ValueError(f"expected a closing parenthesis in {text[:80]}")


def _branches(each: Operation) -> Iterator[str]:
    """The false side first."""
    if found := re.search(r"branch_computations=\{([^}]*)\}", each.rest):
        yield from re.findall(r"%?([\w.\-]+)", found[1])
    else:
        yield from (each.called("false_computation"), each.called("true_computation"))


def flops(jaxpr: Any, counts: Counts, outer: tuple[str, ...] = ()) -> float:
    """Of the matrix products of a traced program, loops and branches as often as counted; `outer`: its scopes."""
    total = 0.0
    for equation in jaxpr.eqns:
        scopes = *outer, *filter(None, str(equation.source_info.name_stack).split("/"))
        scope = "/".join(part for part in scopes if not NO_SCOPE.fullmatch(part))
        kind, inner = equation.primitive.name, jaxprs_in_params(equation.params)
        if kind == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            depth = math.prod(equation.invars[0].aval.shape[axis] for axis in contracted)
            total += 2 * depth * math.prod(equation.outvars[0].aval.shape)
        elif kind == "while":
            total += counts.turns[scope] * flops(equation.params["body_jaxpr"].jaxpr, counts, scopes)
        elif kind == "cond":
            sides = [side.jaxpr for side in equation.params["branches"]]
            total += sum(share * flops(s, counts, scopes) for share, s in zip(counts.shares[scope], sides, strict=True))
        else:
            total += equation.params.get("length", 1) * sum(flops(each, counts, scopes) for each in inner)
    return total
