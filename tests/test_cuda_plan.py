"""The planner's choices, as a table: no GPU or compiler is needed."""

from math import ceil

import pytest
import torch

from rnnkit.cells import CELLS
from rnnkit.cuda import scan, stepwise
from rnnkit.cuda.plan import A100, FORMS, H100, KINDS, MOST_GROUPS, Gpu, Plan, Tile, plan

GPUS = {"A100": A100, "H100": H100, "RTX 4090": Gpu(128, 99 * 1024)}
SIZES = (1, 20, 160, 192, 256, 512, 768, 1024, 1536, 2048)
BATCHES = (1, 16, 64, 256)


@pytest.mark.parametrize("gpu", GPUS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("plain", ["lstm", "gru_before", "lstm_norm"])
def test_plans_cover_the_problem_and_fit(plain, kind, gpu):
    gpu, planned = GPUS[gpu], 0
    for backward in (False, True):
        for H in SIZES:
            for B in BATCHES:
                for N in (1, 2, 12):
                    found = plan(plain, kind, backward, H, B, N, gpu)
                    if isinstance(found, Plan):
                        tile = Tile(plain, kind, found.unit_tiles, backward, found.via)
                        check(found, tile, H, B, N, gpu)
                        planned += 1
                    else:
                        assert f"H = {H}" in found, found
    assert planned > 100


def check(found, tile, H, B, N, gpu):
    blocks = found.blocks * found.slices * N
    assert found.blocks * tile.units >= H > (found.blocks - 1) * tile.units
    assert found.slices * found.chunks * found.columns >= B
    assert (found.slices - 1) * found.chunks < ceil(B / found.columns)
    assert found.shared_bytes <= gpu.shared_bytes
    assert found.slices * N <= MOST_GROUPS
    if found.via == "block":
        assert (found.blocks, found.chunks, found.columns) == (1, 1, 1)
        assert blocks <= found.waves * gpu.processors * 2
    elif found.via == "cluster":
        assert found.blocks <= len(gpu.clusters)
        assert blocks <= found.waves * gpu.processors
    else:
        assert found.waves == 1 and blocks <= gpu.processors


@pytest.mark.parametrize("plain", CELLS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["bfloat16", "ieee"])
def test_no_form_needs_more_for_fewer_rows(plain, kind, form):
    unit_tiles, via = form
    tile = Tile(plain, kind, unit_tiles, True, via)
    needs = [tile.shared_bytes(256, chunks) for chunks in range(1, 5)]
    assert needs == sorted(needs)


# What an LSTM runs as: (via, blocks, slices, chunks), or None where it runs step by step.
TABLE = {
    ("A100", "bfloat16", 256, 64): ("L2", 8, 8, 1),
    ("A100", "bfloat16", 1024, 16): ("L2", 64, 1, 1),
    ("A100", "bfloat16", 2048, 16): None,
    ("A100", "ieee", 512, 16): ("L2", 32, 2, 1),
    ("A100", "ieee", 1024, 1): None,
    ("H100", "bfloat16", 160, 16): ("cluster", 5, 2, 1),
    ("H100", "bfloat16", 256, 64): ("cluster", 8, 8, 1),
    ("H100", "bfloat16", 512, 64): ("L2", 16, 8, 1),
    ("H100", "bfloat16", 512, 16): ("cluster", 16, 2, 1),
    ("H100", "bfloat16", 512, 256): ("L2", 16, 8, 4),
    ("H100", "bfloat16", 768, 64): ("L2", 24, 4, 2),
    ("H100", "bfloat16", 1024, 64): ("L2", 32, 4, 2),
    ("H100", "bfloat16", 2048, 16): ("L2", 128, 1, 1),
    ("H100", "tf32", 256, 64): ("cluster", 8, 8, 1),
    ("A100", "ieee", 64, 64): ("block", 1, 64, 1),
    ("H100", "tf32", 20, 256): ("block", 1, 256, 1),
    ("H100", "tf32", 128, 16): ("block", 1, 16, 1),
    ("H100", "tf32", 128, 256): ("L2", 4, 32, 1),
    ("H100", "ieee", 128, 256): ("block", 1, 256, 1),
    ("H100", "bfloat16", 64, 64): ("cluster", 2, 8, 1),
    ("H100", "ieee", 512, 64): ("L2", 32, 4, 2),
    ("H100", "ieee", 1024, 16): ("L2", 64, 2, 1),
    ("H100", "ieee", 2048, 1): None,
    ("RTX 4090", "bfloat16", 64, 16): ("L2", 2, 2, 1),
    ("RTX 4090", "bfloat16", 1024, 64): ("L2", 64, 2, 2),
    ("RTX 4090", "tf32", 64, 64): ("block", 1, 64, 1),
    ("RTX 4090", "tf32", 128, 64): ("L2", 4, 8, 1),
    ("RTX 4090", "tf32", 768, 16): None,
}


@pytest.mark.parametrize("problem", TABLE, ids=str)
def test_the_table(problem):
    name, kind, H, B = problem
    found = plan("lstm", kind, False, H, B, 1, GPUS[name])
    expected = TABLE[problem]
    if expected is None:
        assert not isinstance(found, Plan)
    else:
        assert isinstance(found, Plan), found
        assert (found.via, found.blocks, found.slices, found.chunks) == expected


def test_clusters_run_in_waves_where_blocks_must_not():
    """More groups than multiprocessors: clusters do not wait for each other."""
    found = plan("lstm", "bfloat16", False, 64, 8, 200, H100)
    assert isinstance(found, Plan) and found.via == "cluster" and found.waves > 1
    assert "200 groups takes" in str(plan("lstm", "bfloat16", False, 64, 8, 200, A100))


@pytest.mark.parametrize("sizes", [(0, 4, 2), (256, 0, 2), (256, 4, 0)])
def test_what_is_empty_is_planned_too(sizes):
    assert isinstance(plan("lstm", "bfloat16", True, *sizes, H100), Plan)


def test_a_gpu_without_clusters_never_has_one():
    """Not even one of a single block."""
    found = plan("lstm", "bfloat16", False, 16, 8, 1, Gpu(0, 227 * 1024))
    assert "0 multiprocessors" in str(found)


@pytest.mark.parametrize("possible", [True, False])
def test_large_batches_go_step_by_step(monkeypatch, possible):
    """By the model, where cuBLAS can be called."""
    monkeypatch.setattr(scan, "gpu_of", lambda device: H100)
    monkeypatch.setattr(stepwise, "gemm", lambda: (1, None if possible else "no cuBLAS"))

    def persistent(cell, H, B):
        sizes = ("bfloat16", False, H, B, 1, torch.device("cpu"))
        return isinstance(scan.planned(cell, *sizes), Plan)

    assert all(persistent("lstm", H, B) for H, B in [(160, 64), (512, 64), (512, 256), (1024, 64)])
    assert persistent("lstm", 1024, 256) != possible
    assert persistent("lstm_norm", 1024, 256)


def test_two_blocks_share_a_multiprocessor_where_it_has_the_memory_for_both():
    waves = {}
    for name, gpu in GPUS.items():
        found = plan("lstm", "ieee", True, 64, 2 * gpu.processors, 1, gpu.only((4, "block")))
        assert isinstance(found, Plan)
        waves[name] = found.waves
    assert waves == {"A100": 1, "H100": 1, "RTX 4090": 2}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("plain", CELLS)
def test_every_gpu_has_room_for_weights_on_their_way_to_registers(plain, kind):
    """Whatever H and how many rows: what a block needs at least."""
    for unit_tiles, via in FORMS:
        for backward in (False, True):
            tile = Tile(plain, kind, unit_tiles, backward, via)
            assert tile.shared_bytes(16, 1) <= 99 * 1024, tile
