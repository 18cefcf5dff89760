"""What one device does in a step, read from the text of a compiled program (HLO).

XLA's own analysis counts the body of a loop once. Here each instruction counts as often as it runs: the body
of a loop counts once for each iteration. Bytes moved are those between the main memory of a device and its
cores: the results and operands of each instruction that is not a part of a fusion. Arrays that the compiler
has placed in a core's own memory, which a layout marks as `S(1)`, do not count. If an instruction reads or
writes a slice of an array, only the slice counts.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Iterator, Mapping

_BITS = {"pred": 8, "s4": 4, "u4": 4, "s2": 2, "u2": 2, "bf16": 16, "c64": 64, "c128": 128, "token": 0}
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\](?:\{([^}]*)\})?")
_NAME = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(r"(?:calls|to_apply|body)=%([\w.\-]+)")
_BRANCHES = re.compile(r"(?:branch_computations=\{([^}]*)\}|(?:true|false)_computation=%([\w.\-]+))")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
# They move nothing: they name, join or split arrays, or contain instructions that are counted themselves.
_FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "while", "conditional"),
    *("call", "async-start", "async-update", "async-done", "partition-id", "replica-id", "opt-barrier"),
}
_SLICES = {"dynamic-slice", "slice", "gather"}


@dataclasses.dataclass(frozen=True)
class Collective:
    """The collectives of one kind in a step, on one device.

    Attributes:
      kind: such as `all-gather`.
      group: number of devices that exchange data with each other.
      count: number of executions.
      size: bytes of the whole arrays: the result of a gather, the operands of the others.
    """

    kind: str
    group: int
    count: int
    size: int

    @property
    def traffic(self) -> float:
        """Bytes that each device sends in a ring."""
        if self.kind == "collective-permute":
            return float(self.size)
        return self.size * (self.group - 1) / self.group * (2 if self.kind == "all-reduce" else 1)


@dataclasses.dataclass(frozen=True)
class Traffic:
    """What one device moves in a step.

    Attributes:
      bytes_moved: bytes between the main memory and the cores.
      collectives: the exchanges with other devices, the largest first.
      num_unknown_loops: number of loops whose iterations are not known and count once.
    """

    bytes_moved: int
    collectives: tuple[Collective, ...]
    num_unknown_loops: int


def read_traffic(text: str, num_devices: int) -> Traffic:
    """Returns what a device moves when it runs a compiled program once.

    Args:
      text: the program, as `jax.stages.Compiled.as_text` returns it.
      num_devices: number of devices that the program runs on.
    """
    return _Module(text, num_devices).traffic()


@dataclasses.dataclass(frozen=True)
class _Instruction:
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
class _Computation:
    instructions: Mapping[str, _Instruction]

    @functools.cached_property
    def users(self) -> Mapping[str, list[_Instruction]]:
        found: dict[str, list[_Instruction]] = {}
        for instruction in self.instructions.values():
            for operand in dict.fromkeys(instruction.operands):
                found.setdefault(operand, []).append(instruction)
        return found

    @functools.cached_property
    def root(self) -> _Instruction:
        return next(i for i in self.instructions.values() if i.is_root)

    @functools.cached_property
    def parameters(self) -> Mapping[int, _Instruction]:
        return {int(i.operands[0]): i for i in self.instructions.values() if i.opcode == "parameter"}


class _Module:
    def __init__(self, text: str, num_devices: int):
        self._computations, self._entry = _parse(text)
        self._num_devices = num_devices
        self._num_unknown = 0

    def traffic(self) -> Traffic:
        moved = 0
        totals: dict[tuple[str, int], list[int]] = {}
        for computation, instruction, times in self._executed(self._entry, 1):
            moved += times * self._moved(computation, instruction)
            for kind, group, size in self._exchanged(computation, instruction):
                total = totals.setdefault((kind, group), [0, 0])
                total[0] += times
                total[1] += times * size
        collectives = [Collective(kind, group, *total) for (kind, group), total in totals.items()]
        collectives.sort(key=lambda c: c.traffic, reverse=True)
        return Traffic(moved, tuple(collectives), self._num_unknown)

    def _executed(self, name: str, times: int) -> Iterator[tuple[_Computation, _Instruction, int]]:
        """Yields the instructions that run, with the number of times that each runs."""
        computation = self._computations[name]
        for instruction in computation.instructions.values():
            yield computation, instruction, times
            if instruction.opcode == "while" and instruction.called:
                yield from self._executed(instruction.called, times * self._trips(computation, instruction))
            elif instruction.opcode in ("call", "async-start") and instruction.called:
                yield from self._executed(instruction.called, times)
            elif instruction.opcode == "conditional":
                yield from self._longest_branch(instruction, times)

    def _longest_branch(
        self, instruction: _Instruction, times: int
    ) -> Iterator[tuple[_Computation, _Instruction, int]]:
        found = _BRANCHES.findall(instruction.attributes)
        names = [name for many, one in found for name in (_NAME.findall(many) if many else [one])]
        branches = [list(self._executed(name, times)) for name in names]
        yield from max(branches, key=lambda ran: sum(n * self._moved(c, i) for c, i, n in ran), default=[])

    def _trips(self, computation: _Computation, loop: _Instruction) -> int:
        """Returns the number of iterations: stated by the compiler, or read from the condition."""
        if stated := _TRIPS.search(loop.attributes):
            return int(stated[1])
        found = re.search(r"condition=%([\w.\-]+)", loop.attributes)
        limits = self._integers(found[1]) if found else []
        if len(limits) == 1:  # a loop of JAX counts from zero to a constant
            return max(limits[0], 1)
        self._num_unknown += 1
        return 1

    def _integers(self, name: str) -> list[int]:
        found = []
        for instruction in self._computations[name].instructions.values():
            if instruction.opcode == "constant" and re.match(r"[su]\d+\[\]", instruction.shape):
                found.append(int(instruction.operands[0]))
            elif instruction.opcode == "fusion" and instruction.called:
                found += self._integers(instruction.called)
        return found

    def _exchanged(
        self, computation: _Computation, instruction: _Instruction
    ) -> Iterator[tuple[str, int, int]]:
        """Yields kind, group and bytes of the collectives of an instruction, also within a fusion."""
        if instruction.opcode == "fusion" and instruction.called:
            inner = self._computations[instruction.called]
            for each in inner.instructions.values():
                for kind, group, size in self._exchanged(inner, each):
                    # A device that keeps a slice of a sum takes part in a scatter.
                    is_scattered = kind == "all-reduce" and inner.root.opcode == "dynamic-slice"
                    yield "reduce-scatter" if is_scattered else kind, group, size
            return
        kind = instruction.opcode.removesuffix("-start")
        if kind not in KINDS:
            return
        group = 2 if kind == "collective-permute" else self._group(instruction.attributes)
        if group > 1:
            results = _size(instruction.shape)
            operands = sum(_size(computation.instructions[name].shape) for name in instruction.operands)
            if instruction.opcode == "all-gather-start":
                results -= operands  # which are a part of what it returns
            yield kind, group, results if kind == "all-gather" else operands

    def _group(self, attributes: str) -> int:
        """Returns the number of devices in a group of `replica_groups`, in each of its notations."""
        if found := re.search(r"replica_groups=\[(\d+),(\d+)\]<=", attributes):
            return int(found[2])
        if found := re.search(r"replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}", attributes):
            sizes = dict(re.findall(r"'(\w+)'=(\d+)", found[1]))
            return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", found[2]))
        if found := re.search(r"replica_groups=\{\{([\d,]*)\}", attributes):
            return len(found[1].split(","))
        return self._num_devices

    def _moved(self, computation: _Computation, instruction: _Instruction) -> int:
        """Returns the bytes that one execution of an instruction moves."""
        opcode, operands = instruction.opcode, instruction.operands
        if opcode in _FREE:
            return 0
        shapes = [
            computation.instructions[name].shape for name in operands if name in computation.instructions
        ]
        written = _size(instruction.shape, in_main_memory=True)
        if opcode.endswith("-start"):  # its results are counted where they are done
            return sum(_size(shape, in_main_memory=True) for shape in shapes)
        if opcode.endswith("-done"):
            return written
        if opcode in _SLICES:
            return 2 * written
        if opcode == "dynamic-update-slice":
            return 2 * _size(shapes[1], in_main_memory=True)
        if opcode == "fusion" and instruction.called in self._computations:
            inner = self._computations[instruction.called]
            read = sum(
                min(_size(shape, in_main_memory=True), self._read(inner, inner.parameters[number].name))
                for number, shape in enumerate(shapes)
                if number in inner.parameters
            )
            return read + min(written, self._written(inner, inner.root))
        return written + sum(_size(shape, in_main_memory=True) for shape in shapes)

    def _read(self, computation: _Computation, name: str) -> int:
        """Returns the bytes that a fusion reads of an array within it."""
        whole = _size(computation.instructions[name].shape)
        read = 0
        for user in computation.users.get(name, ()):
            if user.opcode in _SLICES and user.operands[0] == name:
                read += _size(user.shape)
            elif user.opcode == "dynamic-update-slice" and user.operands[0] == name:
                continue  # it is updated in place
            elif user.opcode in ("bitcast", "reshape"):
                read += self._read(computation, user.name)
            elif user.opcode == "fusion" and user.called in self._computations:
                inner = self._computations[user.called]
                for number, operand in enumerate(user.operands):
                    if operand == name and number in inner.parameters:
                        read += self._read(inner, inner.parameters[number].name)
            else:
                return whole
        return min(read, whole)

    def _written(self, computation: _Computation, root: _Instruction) -> int:
        """Returns the bytes that a fusion writes for one of its results."""
        if root.opcode == "tuple":
            return sum(self._written(computation, computation.instructions[name]) for name in root.operands)
        if root.opcode in ("bitcast", "reshape") and root.operands[0] in computation.instructions:
            return self._written(computation, computation.instructions[root.operands[0]])
        if root.opcode == "dynamic-update-slice":
            return _size(computation.instructions[root.operands[1]].shape)
        if root.opcode == "fusion" and root.called in self._computations:
            inner = self._computations[root.called]
            return self._written(inner, inner.root)
        return _size(root.shape)


def _size(shape: str, in_main_memory: bool = False) -> int:
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


def _parse(text: str) -> tuple[dict[str, _Computation], str]:
    """Returns the computations of a module by name, and the name of the one that runs first."""
    computations: dict[str, _Computation] = {}
    entry = ""
    instructions: dict[str, _Instruction] | None = None
    for line in text.splitlines():
        header = re.match(r"(ENTRY )?%?([\w.\-]+) (?:\(.*\) -> .*)?\{$", line)
        if header and not line.startswith(" "):
            instructions = {}
            computations[header[2]] = _Computation(instructions)
            entry = header[2] if header[1] else entry
        elif instructions is not None and (instruction := _parse_instruction(line)) is not None:
            instructions[instruction.name] = instruction
    return computations, entry


def _parse_instruction(line: str) -> _Instruction | None:
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
    operands = (inside,) if opcode in ("parameter", "constant") else tuple(_NAME.findall(inside))
    return _Instruction(found[2], shape, opcode, operands, rest[closing + 1 :], bool(found[1]))


def _closing(text: str, opening: int) -> int:
    """Returns the place of the parenthesis that closes the one at `opening`."""
    depth = 0
    for place in range(opening, len(text)):
        depth += {"(": 1, ")": -1}.get(text[place], 0)
        if depth == 0:
            return place
    return len(text) - 1
