"""The gate: every kernel compiles for real GPUs, without spills, with wide loads and stores, and in few registers."""

import dataclasses
import json

import pytest

pytest.importorskip("triton", reason="Triton's compiler isn't installed")

from tests.kernels.gate import CAPABILITIES, TABLE, VERSION, compile_variant, variants

VARIANTS = variants()
REGISTERS = json.loads(TABLE.read_text())
QUICK = 90  # compiled by `make test`, too


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize(
    "capability",
    [pytest.param(of, marks=() if of == QUICK else pytest.mark.slow, id=f"sm_{of}") for of in CAPABILITIES],
)
def test_code_has_no_spills_and_is_wide_and_lean(name, capability):
    variant = VARIANTS[name]
    code = compile_variant(variant, capability)
    assert code.spilled == 0
    assert not [name for name in code.instructions if name.startswith(("LDL", "STL"))]
    assert code.wide("LDG") >= variant.loads
    assert code.wide("STG") >= variant.stores
    if variant.stores:  # the kernels that move features and tokens; the others write a few bytes
        assert code.narrow("LDG") <= variant.maps
        assert code.narrow("STG") == 0
    if VERSION not in REGISTERS:
        pytest.skip(f"registers.json has no table for Triton {VERSION}: python -m tests.kernels.gate --write")
    limit = REGISTERS[VERSION][name][CAPABILITIES.index(capability)]
    assert code.registers <= limit, "more registers; if that is worth it: python -m tests.kernels.gate --write"


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in VARIANTS if name.endswith(("fp16", "fp16_all_cells"))])
def test_sizes_of_one_compile(name):
    """To Triton an integer of 1 is a constant, of another type and without methods: one image, cell or channel."""
    variant = VARIANTS[name]
    sizes = {
        "num_tokens",
        "num_samples",
        "num_cells",
        "height",
        "width",
        "channels",
        "num_grids",
        "row_entries",
        "rows",
        "stretches",
    }
    ones = dict.fromkeys(sizes & set(variant.kernel.arg_names), 1)
    code = compile_variant(dataclasses.replace(variant, constants=variant.constants | ones, divisible=set()), 90)
    assert code.registers > 0
