"""The machine code of a kernel, as nvdisasm prints it: its blocks, its loops, and a path."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from functools import cached_property
from typing import NamedTuple

LABEL = re.compile(r"(\.L_\w+):")
INSTRUCTION = re.compile(r"/\*[0-9a-f]+\*/\s+(.+?)\s*;")
SECTION = re.compile(r"\s+\.section\s+(\.text\.)?([^,\s]+)")
PARAMETERS = re.compile(r"PARAM_CBANK.+?constant0\.(\w+)\).+?\.short\s+(0x\w+)", re.DOTALL)
# What ends a block. A call comes back, but for those with which the assembler leaves a loop: their
# place has a label in the function, not a name.
JUMPS = re.compile(r"(@\S+ )?((BRA|EXIT|RET|BRX|JMP|JMX)\b|CALL.+\(\.L_)")


class Instruction(str):
    """Its text: "@!P0 BRA `(.L_x_1)"."""

    @property
    def opcode(self) -> str:
        words = self.split()
        return words[1 if self.startswith("@") else 0]

    def jumps(self) -> bool:
        return bool(JUMPS.match(self))

    def may_fall_through(self) -> bool:
        """A predicate may stand before the opcode, or be an operand of the jump."""
        return not self.jumps() or bool(re.search(r"^@|^\S+ !?U?P\d", self))


class Block(NamedTuple):
    """Instructions that run in a row, and the blocks that may come next."""

    code: list[Instruction]
    next: list[int]

    def count(self, *opcodes: str) -> int:
        return sum(each.opcode.startswith(opcodes) for each in self.code)


def functions(disassembly: str) -> dict[str, Function]:
    """The functions of a program by their mangled names."""
    found: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in disassembly.splitlines():
        if begun := SECTION.match(line):
            lines = found.setdefault(begun[2], []) if begun[1] else []
        lines.append(line)
    places = {name: int(place, 16) for name, place in PARAMETERS.findall(disassembly)}
    return {name: Function(blocks_of(lines), places[name]) for name, lines in found.items()}


def blocks_of(lines: list[str]) -> list[Block]:
    """Parts at labels and after jumps."""
    parts: list[list[Instruction]] = [[]]
    labels: dict[str, int] = {}
    for line in lines:
        if label := LABEL.match(line):
            if parts[-1]:
                parts.append([])
            labels[label[1]] = len(parts) - 1
        elif found := INSTRUCTION.search(line):
            parts[-1].append(Instruction(found[1]))
            if parts[-1][-1].jumps():
                parts.append([])
    blocks = []
    for number, code in enumerate(parts):
        after = [number + 1] if number + 1 < len(parts) else []
        if code and code[-1].jumps():
            after = after if code[-1].may_fall_through() else []
            after += [labels[name] for name in re.findall(r"\.L_\w+", code[-1])]
        blocks.append(Block(code, after))
    return blocks


class Function:
    """The blocks of a kernel; the first is where it begins. What it calls may lie behind it.

    parameters: where they begin in the first bank of constants.
    """

    def __init__(self, blocks: list[Block], parameters: int) -> None:
        self.blocks, self.parameters = blocks, parameters

    @cached_property
    def dominators(self) -> dict[int, set[int]]:
        """For each block that can be reached: those that every way to it passes, itself too."""
        found = {0: {0}}
        changed = True
        while changed:
            changed = False
            for number in sorted(found):
                for to in self.blocks[number].next:
                    now = (found[number] & found.get(to, found[number])) | {to}
                    changed |= now != found.get(to)
                    found[to] = now
        return found

    @cached_property
    def loops(self) -> dict[int, set[int]]:
        """The blocks of each loop, by the block where it begins."""
        before: dict[int, list[int]] = {}
        for number in self.dominators:
            for to in self.blocks[number].next:
                before.setdefault(to, []).append(number)
        found: dict[int, set[int]] = {}
        for number, above in self.dominators.items():
            for head in above.intersection(self.blocks[number].next):
                body, left = found.setdefault(head, {head}), [number]
                while left:
                    if (block := left.pop()) not in body:
                        body.add(block)
                        left += before[block]
        return found

    def busiest_loop(self, *opcodes: str) -> tuple[int, set[int]]:
        """The smallest of the loops that have the most of these instructions, and its head."""

        def order(head: int) -> tuple[int, int]:
            body = [self.blocks[k] for k in self.loops[head]]
            return -sum(b.count(*opcodes) for b in body), sum(len(b.code) for b in body)

        head = min(self.loops, key=order)
        return head, self.loops[head]

    def path(self, head: int, body: Collection[int], worth: Callable[[int], int]) -> list[int]:
        """One pass of a loop, each block once: the shortest of the ways that are worth the most."""
        arriving: dict[int, tuple[int, int, list[int]]] = {head: (0, 0, [])}
        ways = []
        for number in self.forward_order(head, body):
            missed, length, way = arriving[number]
            block = self.blocks[number]
            here = missed - worth(number), length + len(block.code), [*way, number]
            if head in block.next:
                ways.append(here)
            for to in set(block.next) & set(body) - self.dominators[number]:
                arriving[to] = min(arriving.get(to, here), here)
        return min(ways)[2]

    def forward_order(self, head: int, body: Collection[int]) -> list[int]:
        """The body's blocks, each after all that may come before it but for the way back."""
        found: list[int] = []
        seen: set[int] = set()

        def visit(number: int) -> None:
            seen.add(number)
            for to in self.blocks[number].next:
                if to in body and to not in seen:
                    visit(to)
            found.append(number)

        visit(head)
        return found[::-1]
