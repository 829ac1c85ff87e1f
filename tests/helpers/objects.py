"""What object files of x86-64 hold: instructions above a level, and names that others can see.

The linker keeps one copy of a function that several files define as weak, such as an inline one. If
that came from a file with wider vectors, it would crash a processor that lacks them, far from the
choice of the instruction set. So files of a target may define nothing that others see but a table.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

TOOLS = ("objdump", "nm")
MISSING = [tool for tool in TOOLS if shutil.which(tool) is None]

PREFIXES = frozenset(
    ["66", "67", "f2", "f3", "2e", "36", "3e", "26", "64", "65", "f0"]
    + [f"{rex:02x}" for rex in range(0x40, 0x50)]
)
# Of general registers, in no level; these in VEX encoding.
BMI = {
    *("andn", "bextr", "blsi", "blsmsk", "blsr"),
    *("bzhi", "mulx", "pdep", "pext", "rorx", "sarx", "shlx", "shrx"),
}
# Above SSE2 without an opcode map of their own.
SSE3 = {
    *("addsubpd", "addsubps", "haddpd", "haddps", "hsubpd", "hsubps"),
    *("lddqu", "movddup", "movshdup", "movsldup", "popcnt", "lzcnt"),
}
LEVELS = {
    "baseline": {"x86-64"},
    "avx2": {"x86-64", "SSE4", "AVX"},
    "avx512": {"x86-64", "SSE4", "AVX", "AVX-512"},
}


def kind(code: list[str], mnemonic: str) -> str:
    """The family of an instruction, by its bytes in hexadecimal."""
    legacy = next((k for k, byte in enumerate(code) if byte not in PREFIXES), len(code))
    opcode = code[legacy:]
    if mnemonic.rstrip("lq") in BMI or mnemonic in BMI:
        return "BMI"
    if opcode[:1] == ["62"]:
        return "AVX-512"
    if opcode[:1] in (["c4"], ["c5"]):
        return "AVX"
    if mnemonic in SSE3 or opcode[:2] in (["0f", "38"], ["0f", "3a"]):
        return "SSE4"
    return "x86-64"


def instructions(path: Path) -> Iterator[tuple[str, list[str], str]]:
    """(function, bytes, text) of each instruction of a file."""
    command = ["objdump", "--disassemble", "--wide", str(path)]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    function = ""
    for line in listing.splitlines():
        if label := re.fullmatch(r"[0-9a-f]+ <(.+)>:", line):
            function = label[1]
        elif len(fields := line.split("\t")) == 3:
            yield function, fields[1].split(), fields[2]


def above_level(path: Path, level: str) -> list[str]:
    """The instructions of a file that processors of the level may not have."""
    return [
        f"{path.name}: {function}: {text} ({family})"
        for function, code, text in instructions(path)
        for family in [kind(code, text.split()[0] if text else "")]
        if family not in LEVELS[level]
    ]


def visible(path: Path) -> set[str]:
    """The names that a file defines for others to see, weak ones too."""
    command = ["nm", "--defined-only", "--extern-only", "--format=posix", str(path)]
    listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {line.split()[0] for line in listing.splitlines()}
