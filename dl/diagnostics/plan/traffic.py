"""What one device does in a step, read from its compiled program.

XLA's own analysis counts the body of a loop once. Here each instruction counts as often as it runs: the body
of a loop counts once for each iteration. Bytes moved are those between the main memory of a device and its
cores: the results and operands of each instruction that is not a part of a fusion. Arrays that the compiler
has placed in a core's own memory, which a layout marks as `S(1)`, do not count. If an instruction reads or
writes a slice of an array, only the slice counts.
"""

import dataclasses
import math
import re
from collections.abc import Iterator, Sequence

from dl.diagnostics.plan.hlo import NAME, Computation, Instruction, parse, size_of

_BRANCHES = re.compile(r"(?:branch_computations=\{([^}]*)\}|(?:true|false)_computation=%([\w.\-]+))")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
# They move nothing: they name, join or split arrays, or contain instructions that are counted themselves.
_FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "while", "conditional"),
    *("call", "async-start", "async-update", "async-done", "partition-id", "replica-id", "opt-barrier"),
}
_DONE = "async-collective-done"
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


class _Module:
    def __init__(self, text: str, num_devices: int):
        self._computations, self._entry = parse(text)
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

    def _executed(self, name: str, times: int) -> Iterator[tuple[Computation, Instruction, int]]:
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
        self, instruction: Instruction, times: int
    ) -> Iterator[tuple[Computation, Instruction, int]]:
        found = _BRANCHES.findall(instruction.attributes)
        names = [name for many, one in found for name in (NAME.findall(many) if many else [one])]
        branches = [list(self._executed(name, times)) for name in names]
        yield from max(branches, key=lambda ran: sum(n * self._moved(c, i) for c, i, n in ran), default=[])

    def _trips(self, computation: Computation, loop: Instruction) -> int:
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
        self, computation: Computation, instruction: Instruction
    ) -> Iterator[tuple[str, int, int]]:
        """Yields kind, group and bytes of the collectives of an instruction, also within a fusion."""
        if instruction.opcode == "fusion" and instruction.called:
            if _goes_on(instruction):
                return
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
            results = size_of(instruction.shape)
            operands = sum(size_of(computation.instructions[name].shape) for name in instruction.operands)
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

    def _moved(self, computation: Computation, instruction: Instruction) -> int:
        """Returns the bytes that one execution of an instruction moves."""
        opcode, operands = instruction.opcode, instruction.operands
        if opcode in _FREE or instruction.name.startswith(_DONE):
            return 0
        shapes = [
            computation.instructions[name].shape for name in operands if name in computation.instructions
        ]
        written = size_of(instruction.shape, in_main_memory=True)
        if opcode in ("slice-start", "dynamic-slice-start"):  # it returns the whole array too
            return size_of(instruction.shape) - sum(map(size_of, shapes))
        if opcode.endswith("-start"):  # its results are counted where they are done
            return sum(size_of(shape, in_main_memory=True) for shape in shapes)
        if opcode.endswith("-done"):
            return written
        if opcode in _SLICES:
            return 2 * written
        if opcode == "dynamic-update-slice":
            return 2 * size_of(shapes[1], in_main_memory=True)
        if opcode == "fusion" and instruction.called in self._computations:
            inner = self._computations[instruction.called]
            free = KINDS if _goes_on(instruction) else ()
            read = sum(
                min(
                    size_of(shape, in_main_memory=True),
                    self._read(inner, inner.parameters[number].name, free),
                )
                for number, shape in enumerate(shapes)
                if number in inner.parameters
            )
            return read + min(written, self._written(inner, inner.root, free))
        return written + sum(size_of(shape, in_main_memory=True) for shape in shapes)

    def _read(self, computation: Computation, name: str, free: Sequence[str] = ()) -> int:
        """Returns the bytes that a fusion reads of an array within it; operations in `free` read nothing."""
        whole = size_of(computation.instructions[name].shape)
        read = 0
        for user in computation.users.get(name, ()):
            if user.opcode in _SLICES and user.operands[0] == name:
                read += size_of(user.shape)
            elif user.opcode == "dynamic-update-slice" and user.operands[0] == name:
                continue  # it is updated in place
            elif user.opcode == "tuple" or user.opcode in free:
                continue  # it is handed on
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

    def _written(self, computation: Computation, root: Instruction, free: Sequence[str] = ()) -> int:
        """Returns the bytes that a fusion writes for one of its results."""
        if root.opcode == "parameter" or root.opcode in free:
            return 0
        if root.opcode == "tuple":
            parts = (computation.instructions[name] for name in root.operands)
            return sum(self._written(computation, part, free) for part in parts)
        if root.opcode in ("bitcast", "reshape") and root.operands[0] in computation.instructions:
            return self._written(computation, computation.instructions[root.operands[0]], free)
        if root.opcode == "dynamic-update-slice":
            return size_of(computation.instructions[root.operands[1]].shape)
        if root.opcode == "fusion" and root.called in self._computations:
            inner = self._computations[root.called]
            return self._written(inner, inner.root)
        return size_of(root.shape)


def _goes_on(fusion: Instruction) -> bool:
    """Returns whether a fusion of a TPU computes while a collective goes on that another fusion started."""
    return fusion.name.startswith(_DONE) or (fusion.called or "").startswith("async_collective_fusion")
