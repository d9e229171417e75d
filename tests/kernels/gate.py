"""Compiles every kernel for real GPUs, on any machine, and looks at the machine code.

    python -m tests.kernels.gate            registers of each kernel beside those of registers.json
    python -m tests.kernels.gate --write    takes them as the new table of the installed Triton's version

ptxas, cuobjdump and nvdisasm come inside Triton's wheel. The shapes are those of the recipes: 2048 or 2560 channels and
12 x 20 cells, of which Triton sees that 16 divides them.
"""

import argparse
import json
import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from kernels import gather, normalise, sampling
from kernels.backend import LAUNCH

TABLE = Path(__file__).with_name("registers.json")
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
VERSION = ".".join(triton.__version__.split(".")[:2])
CAPABILITIES = (80, 90, 100)
BYTES = {"fp16": 2, "bf16": 2, "fp32": 4}
THREADS = 128
UNROLLED = 4  # times that the compiler writes out the loop over the sequences of a grid


@dataclass
class Variant:
    """One specialisation of a kernel, and the 128-bit loads and stores that a thread needs at least."""

    kernel: Any
    types: dict[str, str]  # by argument; those left out are int32
    constants: dict[str, Any]
    divisible: set[str]  # integers that 16 divides
    loads: float = 0
    stores: float = 0
    maps: int = 0  # narrow loads at most: of positions and slots
    warps: int = THREADS // 32


@dataclass
class Code:
    """What ptxas made of a variant."""

    registers: int
    spilled: int  # bytes
    instructions: Counter[str]  # "LDG.128", "STG.16", ...

    def narrow(self, operation: str) -> int:
        """Number of loads or stores of less than 128 bits."""
        return sum(n for name, n in self.instructions.items() if name.startswith(operation) and int(name[4:]) < 128)

    def wide(self, operation: str) -> int:
        """Number of loads or stores of 128 bits; twice that for 256."""
        widths = {name: int(name[4:]) for name in self.instructions if name.startswith(operation)}
        return sum(self.instructions[name] * width // 128 for name, width in widths.items())


DIVISIBLE = {"num_tokens", "num_cells", "channels", "num_grids"}
ALONE = {"grid_of": None, "sequences": None, "first": None}  # each sequence has a grid of its own
SHARED_DRAWN = {"next_slots": None}
SHARED_ALL_CELLS = {"slots": None, "next_slots": None}
DRAWN, ALL_CELLS = SHARED_DRAWN | ALONE, SHARED_ALL_CELLS | ALONE
NO_TABLES = {"row_table": None, "column_table": None}


def pointers(dtype: str) -> dict[str, str]:
    """Types of the gather kernels' pointers, everything that may be half in `dtype`."""
    halves = (
        "features",
        "row_table",
        "column_table",
        "tokens",
        "d_tokens",
        "d_features",
        "d_row_table",
        "d_column_table",
    )
    others = {"d_cells": "*fp32", "positions": "*i32", "slots": "*i16", "next_slots": "*i16"}
    others |= {"grid_of": "*i32", "sequences": "*i32", "first": "*i32"}
    return dict.fromkeys(halves, f"*{dtype}") | others


# A thread of most tiles below has 16 elements of each tensor: as many 128-bit loads or stores as an element has bytes.


def forward_rows(dtype: str, constants: dict[str, Any], tensors: int = 3) -> Variant:
    constants = constants | dict(zip(("TOKENS", "CHANNELS"), gather.TILE_OF_ROWS, strict=True))
    size = BYTES[dtype]
    maps = 4 if "grid_of" in constants else 8
    return Variant(gather.forward_rows_kernel, pointers(dtype), constants, DIVISIBLE, tensors * size, size, maps)


def forward_planes(dtype: str, constants: dict[str, Any]) -> Variant:
    constants = constants | dict(zip(("CELLS", "CHANNELS"), gather.TILE_OF_PLANES, strict=True))
    size = BYTES[dtype]
    maps = 8 if "next_slots" in constants else 24  # following the chain of a repeated cell takes more of them
    maps *= 1 if "sequences" in constants else UNROLLED
    return Variant(gather.forward_planes_kernel, pointers(dtype), constants, DIVISIBLE, 3 * size, size, maps)


def backward(dtype: str, layout: str, constants: dict[str, Any]) -> Variant:
    tile, one, other = {
        "rows": (gather.TILE_OF_ROWS, "channel_stride", "cell_stride"),
        "planes": (gather.TILE_OF_PLANES, "cell_stride", "channel_stride"),
        "shared_planes": (gather.TILE_OF_SHARED_PLANES, "cell_stride", "channel_stride"),
    }[layout]
    constants = constants | {one: 1} | dict(zip(("CELLS", "CHANNELS"), tile, strict=True))
    wide = tile[0] * tile[1] / THREADS / 16  # 128-bit accesses for each byte of an element
    stores = wide * sum(size for name, size in (("d_features", BYTES[dtype]), ("d_cells", 4)) if name not in constants)
    divisible = DIVISIBLE | {other}
    maps = 8 * (1 if "sequences" in constants else UNROLLED)
    return Variant(gather.backward_kernel, pointers(dtype), constants, divisible, wide * BYTES[dtype], stores, maps)


def norms(dtype: str) -> dict[str, Variant]:
    """Batch norm's kernels as a block calls them: with a shortcut and ReLU, and with ReLU alone."""
    size = BYTES[dtype]
    halves = ("features", "shortcut", "out", "d_out", "d_again", "d_features", "d_shortcut", "scale", "shift")
    fp32 = ("sums", "mean", "var", "running_mean", "running_var", "d_scale", "d_shift")
    types = dict.fromkeys(halves, f"*{dtype}") | dict.fromkeys(fp32, "*fp32") | {"eps": "fp32", "momentum": "fp32"}
    tile, stretch_tile = (
        dict(zip(("ROWS", "CHANNELS"), tile, strict=True)) for tile in (normalise.TILE, normalise.STRETCH_TILE)
    )
    sums = dict(zip(("STRETCHES", "CHANNELS"), normalise.SUMS_TILE, strict=True))
    relu, alone = tile | {"RELU": True}, {"d_again": None, "out": None, "d_shortcut": None}
    by_batch = {"BY_BATCH": True}

    def variant(kernel: Any, constants: dict[str, Any], loads: int, stores: int = 0, warps: int = 4) -> Variant:
        return Variant(kernel, types, constants, {"rows", "channels"}, loads * size, stores * size, warps=warps)

    def along(constants: dict[str, Any], loads: int) -> Variant:
        return variant(normalise.gradient_sums_kernel, constants | stretch_tile, loads, warps=normalise.STRETCH_WARPS)

    return {
        "statistics": variant(normalise.statistics_kernel, stretch_tile, loads=1, warps=normalise.STRETCH_WARPS),
        "finish_statistics": variant(normalise.finish_statistics_kernel, sums, loads=0),
        "apply": variant(normalise.apply_kernel, relu, loads=2, stores=1),
        "apply_alone": variant(normalise.apply_kernel, relu | {"shortcut": None}, loads=1, stores=1),
        "gradient_sums": along(relu, loads=4),
        "gradient_sums_alone": along(relu | alone, loads=2),
        "finish_sums": variant(normalise.finish_sums_kernel, sums, loads=0),
        "norm_backward": variant(normalise.backward_kernel, tile | {"RELU": False} | by_batch, loads=2, stores=1),
        "norm_backward_alone": variant(normalise.backward_kernel, relu | by_batch, loads=2, stores=1),
    }


def variants() -> dict[str, Variant]:
    """Every kernel in every dtype and layout of the recipes, and the rarer ways to call it."""
    found = {
        f"sample_{block}": Variant(
            sampling.sample_cells_kernel,
            {"state": "*i64", "positions": "*i32", "slots": "*i16"},
            {"INDEX_BITS": sampling.INDEX_BITS, "BLOCK": block},
            divisible=set(),
        )
        for block in (256, 512, 1024)
    }
    for dtype in BYTES:
        found[f"forward_rows_{dtype}"] = forward_rows(dtype, ALONE)
        found[f"forward_planes_{dtype}"] = forward_planes(dtype, DRAWN)
        found[f"backward_rows_{dtype}"] = backward(dtype, "rows", DRAWN)
        found[f"backward_planes_{dtype}"] = backward(dtype, "planes", DRAWN)
        tile = {"SPLITS": gather.SPLITS, "CELLS": 16, "CHANNELS": gather.TILE_OF_ROWS[1]}
        table_gradients = gather.table_gradients_kernel
        found[f"table_gradients_{dtype}"] = Variant(table_gradients, pointers(dtype), tile, {"channels"}, loads=4)
    for dtype in ("fp16", "fp32"):
        found |= {f"{name}_{dtype}": variant for name, variant in norms(dtype).items()}
        found[f"forward_planes_{dtype}_given"] = forward_planes(dtype, ALONE)
        found[f"backward_rows_{dtype}_given"] = backward(dtype, "rows", ALONE)
        found[f"backward_planes_{dtype}_given"] = backward(dtype, "planes", ALONE)
        found[f"forward_rows_{dtype}_shared"] = forward_rows(dtype, {})
        found[f"forward_planes_{dtype}_shared"] = forward_planes(dtype, SHARED_DRAWN)
        found[f"backward_rows_{dtype}_shared"] = backward(dtype, "rows", SHARED_DRAWN)
        found[f"backward_planes_{dtype}_shared"] = backward(dtype, "shared_planes", SHARED_DRAWN)
    found["forward_rows_fp16_all_cells"] = forward_rows("fp16", ALONE | {"positions": None})
    found["forward_planes_fp16_all_cells"] = forward_planes("fp16", ALL_CELLS)
    found["backward_rows_fp16_all_cells"] = backward("fp16", "rows", ALL_CELLS)
    found["forward_rows_fp16_no_tables"] = forward_rows("fp16", ALONE | NO_TABLES, tensors=1)
    found["backward_rows_fp16_shared_all_cells"] = backward("fp16", "rows", SHARED_ALL_CELLS)
    found["backward_rows_fp16_no_tables"] = backward("fp16", "rows", DRAWN | {"d_cells": None})
    found["backward_rows_fp16_only_tables"] = backward("fp16", "rows", DRAWN | {"d_features": None})
    return found


def compile_variant(variant: Variant, capability: int) -> Code:
    """Machine code of a variant for one compute capability, with no GPU involved."""
    names = variant.kernel.arg_names
    aligned = {
        name
        for name in names
        if name not in variant.constants and (name in variant.divisible or variant.types.get(name, "").startswith("*"))
    }
    source = ASTSource(
        variant.kernel,
        {name: "constexpr" if name in variant.constants else variant.types.get(name, "i32") for name in names},
        constexprs={(names.index(name),): value for name, value in variant.constants.items() if name in names},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )
    options = {"num_warps": variant.warps, **LAUNCH}
    binary = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options).asm["cubin"]
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        usage, assembly = (
            subprocess.run([*tool, file.name], check=True, capture_output=True, text=True).stdout
            for tool in ([TOOLS / "cuobjdump", "-res-usage"], [TOOLS / "nvdisasm"])
        )
    instructions: Counter[str] = Counter()
    for operation, modifiers in re.findall(r"\b(LDG|STG|LDL|STL)((?:\.\w+)*)", assembly):
        width = re.search(r"\.(?:ENL2\.)?[US]?(8|16|64|128|256)\b", modifiers)
        instructions[f"{operation}.{width[1] if width else 32}"] += 1
    registers, stack = (int(re.search(rf"{name}:(\d+)", usage)[1]) for name in ("REG", "STACK"))  # type: ignore[index]
    return Code(registers, stack, instructions)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="make this Triton's registers the new table")
    arguments = parser.parse_args()
    table = json.loads(TABLE.read_text()) if TABLE.exists() else {}
    found: dict[str, list[int]] = {}
    for name, variant in variants().items():
        codes = [compile_variant(variant, capability) for capability in CAPABILITIES]
        found[name] = [code.registers for code in codes]
        spilled = [code.spilled for code in codes]
        print(f"{name:34} registers {found[name]}, table {table.get(VERSION, {}).get(name)}, spilled bytes {spilled}")
    if arguments.write:
        table[VERSION] = found
        versions = [
            f'  "{version}": {{\n'
            + ",\n".join(f'    "{name}": {json.dumps(registers)}' for name, registers in rows.items())
            + "\n  }"
            for version, rows in sorted(table.items())
        ]
        TABLE.write_text("{\n" + ",\n".join(versions) + "\n}\n")


if __name__ == "__main__":
    main()
