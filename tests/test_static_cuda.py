"""The CUDA kernels compile for GPUs that need not be here, and what is read from their code."""

import json
from itertools import product
from types import SimpleNamespace

import pytest
from cuda_harness import compiles_for_gpus

from benchmarks import plan, sass
from rnnkit.cuda.plan import FORMS, H100, Plan, Tile
from rnnkit.native.recipes import NoLibrary

static = pytest.importorskip("benchmarks.static")
nvcc = pytest.importorskip("benchmarks.nvcc")

# A loop that may miss a special function, and is left by what looks like a call.
CODE = """
	.section	.text.kernel,"ax",@progbits
        /*0000*/                   MOV R1, c[0x0][0x28] ;
.L_x_1:
        /*0010*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;
        /*0020*/              @!P0 BRA `(.L_x_2) ;
        /*0030*/                   LDC.64 R2, c[0x0][0x210] ;
        /*0040*/                   MUFU.EX2 R4, R2 ;
.L_x_2:
        /*0050*/                   CALL.REL.NOINC `($__internal_0_$division) ;
        /*0060*/               @P1 CALL.REL.NOINC `(.L_x_3) ;
        /*0070*/                   BRA `(.L_x_1) ;
.L_x_3:
        /*0080*/                   EXIT ;
	.section	.nv.info.kernel,"",@"SHT_CUDA_INFO"
	//----- nvinfo : EIATTR_PARAM_CBANK
        /*01f4*/ 	.word	index@(.nv.constant0.kernel)
        /*01f8*/ 	.short	0x0210
"""


def test_a_path_misses_nothing_that_is_worth_something():
    code = sass.functions(CODE)["kernel"]
    head, body = code.busiest_loop("BAR")
    assert (head, body) == (1, {1, 2, 3, 4}) and code.parameters == 0x210
    assert code.path(head, body, lambda k: code.blocks[k].count("MUFU")) == [1, 2, 3, 4]
    assert code.path(head, body, lambda k: 0) == [1, 3, 4]


def test_a_loop_is_found_behind_a_table_of_jumps():
    table = 'BRX R2 -0x2620 (*"BRANCH_TARGETS .L_x_1,.L_x_3"*) ;'
    code = sass.functions(CODE.replace("MOV R1, c[0x0][0x28] ;", table))["kernel"]
    assert code.blocks[0].next == [1, 5]
    assert code.busiest_loop("BAR") == (1, {1, 2, 3, 4})


def test_arguments_are_known_by_their_place():
    code = sass.functions(CODE)["kernel"]
    kernel = nvcc.Kernel("lstm", 1, False, "L2", {}, code)
    assert [kernel.arguments_of(block) for block in code.blocks[:3]] == [set(), set(), {"T"}]


def rows_of(capsys, *arguments):
    status = static.main(["--operators", "cuda", "--json", *arguments])
    said = capsys.readouterr()
    rows = [json.loads(line) for line in said.out.splitlines()]
    bad = [row for row in rows if row["stack"] or row["shared"] > row["limit"]]
    assert status == 0 and not bad, f"{bad} {said.err}"
    return rows


@compiles_for_gpus
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_kernels_compile_without_stack_and_their_loops_are_found(dtype, capsys):
    cells = {"bf16": ["gru_before", "lstm", "lstm_norm"], "fp32": ["lstm"]}[dtype]
    rows = rows_of(capsys, "--targets", "sm_90", "--dtypes", dtype, "--cells", *cells)
    known = ("cell", "backward", "unit_tiles", "via")
    for kind in {row["kind"] for row in rows}:
        # A block by itself is for full precision.
        forms = [form for form in FORMS if kind == "ieee" or form[1] != "block"]
        kernels = {tuple(row[name] for name in known) for row in rows if row["kind"] == kind}
        assert kernels == {
            (cell, backward, *form) for cell, backward, form in product(cells, (False, True), forms)
        }
    alone = [row for row in rows if row["via"] == "block"]
    assert {row["unit_tiles"] for row in alone} == ({4, 8} if dtype == "fp32" else set())
    for row in alone:
        assert ("issue_us" in row) == (row["H"] <= 16 * row["unit_tiles"]), row
        assert row["fit"] == (2 if row["unit_tiles"] == 4 else 1), row
    for row in rows:
        assert row["local"] == row["spilled"] == 0 and row["fit"] >= 1, row
        assert row["barriers"] > 0 and row["products"] > 0, row
        # A block by itself has no weights to multiply beyond its units.
        assert row["issued"] > row["products"] or (row["via"] == "block" and "reason" in row), row
        tile = Tile(*(row[name] for name in ("cell", "kind", "unit_tiles", "backward", "via")))
        planned = tile.plan(row["H"], row["B"], 1, H100)
        if isinstance(planned, Plan):
            assert row["shared"] >= planned.shared_bytes and row["issue_us"] > 0, row
        else:
            assert row["reason"] == planned, row


@compiles_for_gpus
@pytest.mark.slow
@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100"])
def test_every_kind_compiles_without_stack(target, capsys):
    rows = rows_of(capsys, "--targets", target)
    assert {row["kind"] for row in rows} == {"half", "bfloat16", "tf32", "ieee"}
    assert all(row["barriers"] > 0 and row["local"] == row["spilled"] == 0 for row in rows)


def test_no_compiler_is_a_plain_message(capsys, monkeypatch):
    def known():
        raise NoLibrary("there is no working CUDA compiler")

    monkeypatch.setattr(nvcc, "RECIPE", SimpleNamespace(known=known))
    assert static.main(["--operators", "cuda"]) == 2
    assert "cuda: skipped, there is no working CUDA compiler\n" in capsys.readouterr().err


def test_the_planners_table(capsys):
    options = ["--gpus", "H100", "--kinds", "bfloat16", "--sizes", "512", "9000"]
    assert plan.main([*options, "--batches", "64"]) == 0
    names, *lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[:5] for line in lines] == [
        ["H100", "bfloat16", side, H, "64"]
        for side, H in product(("forward", "backward"), ("512", "9000"))
    ]
    found = plan.plan("lstm", "bfloat16", False, 512, 64, 1, H100)
    row = dict(zip(names, lines[0], strict=True))
    assert {name: row[name] for name in Plan._fields} == {
        name: str(value) for name, value in found._asdict().items()
    }
    assert row["held"] == "100%" and float(row["us"]) == pytest.approx(found.cycles / 1755, 1e-3)
    assert "multiprocessors" in lines[1] or "memory," in lines[1]
