"""The text of a compiled program (HLO): its computations and their instructions."""

import dataclasses
import functools
import math
import re
from collections.abc import Mapping

_BITS = {"pred": 8, "s4": 4, "u4": 4, "s2": 2, "u2": 2, "bf16": 16, "c64": 64, "c128": 128, "token": 0}
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\](?:\{([^}]*)\})?")
NAME = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(r"(?:calls|to_apply|body)=%([\w.\-]+)")


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One instruction.

    Attributes:
      name: its name.
      shape: the shape of its result as text.
      opcode: such as `fusion`.
      operands: names of its operands; of a parameter its number, and of a constant its value.
      attributes: the rest of its line.
      is_root: whether its result is that of its computation.
    """

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    attributes: str
    is_root: bool

    @functools.cached_property
    def called(self) -> str | None:
        """The computation that it calls; of a loop, its body."""
        found = re.search(r"body=%([\w.\-]+)", self.attributes) or _CALLED.search(self.attributes)
        return found[1] if found else None


@dataclasses.dataclass(frozen=True)
class Computation:
    """A function of the program: its instructions by name."""

    instructions: Mapping[str, Instruction]

    @functools.cached_property
    def users(self) -> Mapping[str, list[Instruction]]:
        found: dict[str, list[Instruction]] = {}
        for instruction in self.instructions.values():
            for operand in dict.fromkeys(instruction.operands):
                found.setdefault(operand, []).append(instruction)
        return found

    @functools.cached_property
    def root(self) -> Instruction:
        return next(i for i in self.instructions.values() if i.is_root)

    @functools.cached_property
    def parameters(self) -> Mapping[int, Instruction]:
        return {int(i.operands[0]): i for i in self.instructions.values() if i.opcode == "parameter"}


def size_of(shape: str, in_main_memory: bool = False) -> int:
    """Returns the bytes of an array or a tuple.

    Args:
      shape: its shape as text.
      in_main_memory: whether only arrays in the main memory count.
    """
    total = 0
    for dtype, dims, layout in _ARRAY.findall(shape):
        if in_main_memory and (place := re.search(r"S\((\d+)\)", layout)) and place[1] != "0":
            continue
        bits = _BITS.get(dtype) if dtype in _BITS else int(re.sub(r"\D", " ", dtype).split()[0])
        total += -(-math.prod(int(dim) for dim in dims.split(",") if dim) * (bits or 0) // 8)
    return total


def parse(text: str) -> tuple[dict[str, Computation], str]:
    """Returns the computations of a module by name, and the name of the one that runs first."""
    computations: dict[str, Computation] = {}
    entry = ""
    instructions: dict[str, Instruction] | None = None
    for line in text.splitlines():
        header = re.match(r"(ENTRY )?%?([\w.\-]+) (?:\(.*\) -> .*)?\{$", line)
        if header and not line.startswith(" "):
            instructions = {}
            computations[header[2]] = Computation(instructions)
            entry = header[2] if header[1] else entry
        elif instructions is not None and (instruction := _parse_instruction(line)) is not None:
            instructions[instruction.name] = instruction
    return computations, entry


def _parse_instruction(line: str) -> Instruction | None:
    found = re.match(r"\s+(ROOT )?%([\w.\-]+) = ", line)
    if found is None:
        return None
    rest = line[found.end() :]
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    shape, rest = rest[:end], rest[end:].lstrip()
    opening = rest.index("(")
    closing = _closing(rest, opening)
    inside = rest[opening + 1 : closing]
    opcode = rest[:opening]
    operands = (inside,) if opcode in ("parameter", "constant") else tuple(NAME.findall(inside))
    return Instruction(found[2], shape, opcode, operands, rest[closing + 1 :], bool(found[1]))


def _closing(text: str, opening: int) -> int:
    """Returns the place of the parenthesis that closes the one at `opening`."""
    depth = 0
    for place in range(opening, len(text)):
        depth += {"(": 1, ")": -1}.get(text[place], 0)
        if depth == 0:
            return place
    return len(text) - 1
