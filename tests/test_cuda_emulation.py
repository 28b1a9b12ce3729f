"""The emulation of CUDA that kernels are tested in (tests/cuda): its instructions do what NVIDIA
documents, and what would go wrong on a GPU goes wrong in it."""

import ctypes
from contextlib import nullcontext

import numpy as np
import pytest
from cuda_harness import (
    EMULATION,
    WATCHED,
    Fault,
    compile_for_gpus,
    compiles_for_gpus,
    emulates,
    emulator,
)

UNITS = [(EMULATION / name,) for name in ("cluster.cu", "grid.cu", "matrix.cu", "threads.cu")]
SEEDS = range(20)


@pytest.fixture(scope="module")
def cuda(pytestconfig):
    return emulator(pytestconfig, "emulation", UNITS)


@pytest.fixture(scope="module")
def watched(pytestconfig):
    """The same, whose threads are watched for races."""
    return emulator(pytestconfig, "watched", [(*unit, WATCHED) for unit in UNITS])


@compiles_for_gpus
def test_the_kernels_compile_for_gpus(tmp_path):
    compile_for_gpus(tmp_path, UNITS)


# The layout of the fragments, in the words of the PTX ISA ("Matrix Fragments for mma.m16n8k16" and
# "mma.m16n8k8"): where element i of a lane's fragment is in the matrix. Groups are of four lanes.
LANE = np.arange(32)[:, None]
GROUP, IN_GROUP = LANE // 4, LANE % 4
OF_A, OF_B = np.arange(8), np.arange(4)
HALVES = {
    "a": (
        np.where((OF_A < 2) | ((OF_A >= 4) & (OF_A < 6)), GROUP, GROUP + 8),
        IN_GROUP * 2 + (OF_A & 1) + np.where(OF_A < 4, 0, 8),
    ),
    "b": (IN_GROUP * 2 + (OF_B & 1) + np.where(OF_B < 2, 0, 8), GROUP + 0 * OF_B),
}
WORDS = {
    "a": (
        np.where(OF_B % 2 == 0, GROUP, GROUP + 8),
        np.where(OF_B < 2, IN_GROUP, IN_GROUP + 4),
    ),
    "b": (IN_GROUP + 4 * np.arange(2), GROUP + 0 * np.arange(2)),
}
SUMS = (np.where(OF_B < 2, GROUP, GROUP + 8), IN_GROUP * 2 + (OF_B & 1))


def bfloat16(x):
    """The bits, of numbers that have few."""
    return (x.view(np.uint32) >> 16).astype(np.uint16)


TYPES = {
    "bfloat16": (16, HALVES, bfloat16),
    "half": (16, HALVES, lambda x: x.astype(np.float16).view(np.uint16)),
    "float": (8, WORDS, lambda x: x.view(np.uint32)),
}


def few_bits(random, *shape):
    """Numbers that every type has, of many sizes, whose sums of products are exact."""
    return (random.integers(-16, 16, shape) * 2.0 ** random.integers(-2, 3, shape)).astype("f4")


@emulates
@pytest.mark.parametrize("name", TYPES)
def test_a_product_is_laid_out_as_documented(cuda, name):
    depth, layout, bits = TYPES[name]
    random = np.random.default_rng(0)
    warps = 6
    a, b, c = (few_bits(random, warps, *s) for s in ((16, depth), (depth, 8), (16, 8)))

    def fragments(matrix, places):
        return np.ascontiguousarray(bits(matrix)[:, places[0], places[1]]).view(np.uint32)

    sums = np.ascontiguousarray(c[:, SUMS[0], SUMS[1]])
    cuda(f"multiply_{name}", fragments(a, layout["a"]), fragments(b, layout["b"]), sums, warps // 2)
    np.testing.assert_array_equal(sums, (c + a @ b)[:, SUMS[0], SUMS[1]])


@emulates
def test_products_do_not_see_what_tf32_lacks(cuda):
    random = np.random.default_rng(0)
    a, b = (few_bits(random, 2, 32, n).view(np.uint32) for n in (4, 2))
    with_more = [x | random.integers(0, 1 << 13, x.shape, dtype=np.uint32) for x in (a, b)]
    sums = np.zeros((2, 2, 32, 4), np.float32)
    cuda("multiply_float", a, b, sums[0], 1)
    cuda("multiply_float", *with_more, sums[1], 1)
    assert sums.any() and (sums[0] == sums[1]).all()


def tf32(x):
    """The nearest number with ten bits after the first, or a multiple of the smallest such."""
    exponent = np.maximum(np.frexp(x.astype(np.float64))[1] - 1, -126)
    unit = np.ldexp(1.0, exponent - 10)
    with np.errstate(over="ignore"):
        return np.copysign(np.floor(np.abs(x) / unit + 0.5) * unit, x).astype(np.float32)


@emulates
def test_rounding_to_tf32(cuda):
    """To the nearest, away from zero at a tie."""
    random = np.random.default_rng(0)
    bits = random.integers(0, 1 << 32, 20000, dtype=np.uint32)
    ties = bits & ~np.uint32(0x1FFF) | np.uint32(0x1000)
    x = np.concatenate([bits, ties, ties - 1, ties + 1]).view(np.float32)
    x = np.concatenate([x[np.isfinite(x)], np.float32([0, -0.0, np.finfo("f4").max])])
    y = np.empty_like(x)
    cuda("round_floats", x, y, len(x))
    np.testing.assert_array_equal(y.view(np.uint32), tf32(x).view(np.uint32))

    special = np.float32([np.inf, -np.inf, np.nan, -np.nan])
    cuda("round_floats", special, special, len(special))
    np.testing.assert_array_equal(special, np.float32([np.inf, -np.inf, np.nan, np.nan]))


@emulates
def test_shuffles(cuda):
    values = np.random.default_rng(0).integers(0, 1000, (2, 8, 32), dtype=np.int32)
    found = np.zeros_like(values)
    cuda("shuffles", values, found, 2)
    masks = 2 ** np.arange(5)
    expected = sum(mask * values[..., np.arange(32) ^ mask] for mask in masks)
    np.testing.assert_array_equal(found, expected)


def ring(cuda, kind, missing, seed, steps=5):
    """Whether neighbours see each other's numbers at every step."""
    start = np.random.default_rng(seed).integers(0, 1 << 20, (8, 256), dtype=np.uint32)
    values = start.copy()
    cuda(f"{kind}_ring", values, steps, missing, seed=seed)
    expected = start.reshape(-1, 256 if kind == "block" else 32)
    for _ in range(steps):
        expected = np.roll(expected, 1, -1) + np.roll(expected, -1, -1)
    return np.array_equal(values.ravel(), expected.ravel())


def exchange(cuda, missing, seed, shape=(20, 2), steps=5):
    """Whether blocks see each other's numbers at every step."""
    blocks = shape[0] * shape[1]
    start = np.random.default_rng(seed).integers(0, 1 << 20, (blocks, 64, 4), dtype=np.uint32)
    words = np.zeros((3, *start.shape), np.uint32)
    words[0] = start
    flag = np.zeros(1, np.uint32)
    cuda("exchanges", words, flag, *shape, steps, missing, seed=seed)
    expected = start
    for _ in range(steps):
        others = [np.roll(expected, -way * (blocks // 3), 0) for way in (1, 2)]
        expected = expected + others[0] + others[1]
    return flag[0] == steps * blocks and np.array_equal(words[0], expected)


def follow(cuda, buffers, seed, blocks=8, steps=12):
    """Whether blocks see each other's numbers, however far one is ahead."""
    words = np.zeros((buffers, blocks, 64, 4), np.uint32)
    found = np.zeros((steps, blocks, 64, 4), np.uint32)
    flags = np.zeros(blocks, np.uint32)
    cuda("follows", words, flags, found, blocks, steps, buffers, seed=seed)
    expected = np.arange(steps * blocks).reshape(steps, blocks, 1, 1)
    return (found[:, :-1] == expected[:, 1:]).all()


def all_to_all(cuda, missing, seed, words=4, cluster=4, steps=5):
    """Whether blocks of a cluster see each other's numbers at every step."""
    start = np.random.default_rng(seed).integers(0, 99, (2, cluster, 64, words), dtype=np.uint32)
    found = start.copy()
    cuda(f"all_to_all_{words}", found, 2 * cluster, cluster, steps, missing, seed=seed)
    expected = start
    for _ in range(steps):
        scaled = expected * np.arange(1, cluster + 1, dtype=np.uint32)[:, None, None]
        expected = np.broadcast_to(scaled.sum(1, keepdims=True, dtype=np.uint32), start.shape)
    return np.array_equal(found, expected)


@emulates
@pytest.mark.parametrize("kind", ["block", "warp"])
def test_barriers(cuda, kind):
    assert all(ring(cuda, kind, 0, seed) for seed in SEEDS)


@emulates
@pytest.mark.parametrize("shape", [(1, 1), (2, 1), (20, 2)])
def test_blocks_wait_for_flags(cuda, shape):
    assert all(exchange(cuda, 0, seed, shape) for seed in SEEDS)


@emulates
@pytest.mark.parametrize("words", [1, 2, 4])
@pytest.mark.parametrize("cluster", [1, 2, 8])
def test_clusters_exchange_numbers(cuda, words, cluster):
    assert all(all_to_all(cuda, 0, seed, words, cluster) for seed in SEEDS[:10])


def caught(holds, *arguments):
    """How many seeds show the fault, and what was said of it."""
    count, said = 0, set()
    for seed in SEEDS:
        try:
            count += not holds(*arguments, seed)
        except Fault as fault:
            count += 1
            said.add(str(fault))
    return count, "\n".join(said)


@emulates
@pytest.mark.parametrize("kind", ["block", "warp"])
@pytest.mark.parametrize("missing", [1, 2], ids=["before", "after"])
def test_a_missing_barrier_shows(cuda, kind, missing):
    assert caught(ring, cuda, kind, missing)[0] > 0


@emulates
@pytest.mark.parametrize("missing", [1, 2, 3], ids=["wait", "barrier", "buffer"])
def test_a_missing_part_of_the_wait_for_flags_shows(cuda, missing):
    assert caught(exchange, cuda, missing)[0] > 0


@emulates
def test_blocks_come_to_be_far_apart(cuda):
    assert caught(follow, cuda, 12)[0] == 0
    assert caught(follow, cuda, 6)[0] > 0


@emulates
@pytest.mark.parametrize(
    ("missing", "message"),
    [
        pytest.param(1, "", id="wait"),
        pytest.param(2, "there is no barrier", id="barrier"),
        pytest.param(3, "", id="buffer"),
        pytest.param(4, "a block that had returned", id="last_wait"),
    ],
)
def test_a_missing_part_of_a_clusters_exchange_shows(cuda, missing, message):
    count, said = caught(all_to_all, cuda, missing)
    assert count > 0 and message in said


@emulates
def test_what_is_in_order_is_no_race(watched):
    for seed in SEEDS[:3]:
        assert ring(watched, "block", 0, seed) and ring(watched, "warp", 0, seed)
        assert few_exchange(watched, 0, seed)
        assert follow(watched, 12, seed)
        for words, cluster in ((1, 1), (2, 2), (4, 8)):
            assert all_to_all(watched, 0, seed, words, cluster)


def few_exchange(cuda, missing, seed):
    return exchange(cuda, missing, seed, (5, 2))


RACES = {
    "a block's barrier, before": (ring, "block", 1),
    "a block's barrier, after": (ring, "block", 2),
    "a warp's barrier, before": (ring, "warp", 1),
    "a warp's barrier, after": (ring, "warp", 2),
    "a wait for a flag": (few_exchange, 1),
    "a barrier before a flag": (few_exchange, 2),
    "a buffer": (few_exchange, 3),
    "steps of distance": (follow, 11),
    "a wait for a cluster": (all_to_all, 1),
    "a cluster's buffer": (all_to_all, 3),
}


@emulates
@pytest.mark.parametrize("missing", RACES)
def test_a_race_shows_in_whatever_order_threads_run(watched, missing):
    kernel, *arguments = RACES[missing]
    for seed in SEEDS[:3]:
        with pytest.raises(Fault, match=r"^race: |reads what nobody wrote"):
            kernel(watched, *arguments, seed)


@emulates
def test_races_are_said_to_be_where_they_are(watched):
    with pytest.raises(Fault, match=r"thread \d+ of block \(0, 0\) writes .*: global memory"):
        watched("races", np.zeros(1, np.int32))
    with pytest.raises(Fault, match=r"byte \d+ of the shared memory of block \(\d, 0\)"):
        ring(watched, "block", 1, 0)
    message = r"thread 0 of block \(0, 0\) reads what nobody wrote: byte 252 of the shared memory"
    with pytest.raises(Fault, match=message):
        watched("faults", np.zeros(1, np.uint32), 5)


@emulates
def test_memory_of_no_tensor(watched):
    values = np.zeros((8, 256), np.uint32)
    for size, message in ((values.nbytes, None), (values.nbytes - 4, "memory of no tensor")):
        memory = (ctypes.c_void_p * 1)(values.ctypes.data)
        watched.library.emulation_tensors(memory, (ctypes.c_size_t * 1)(size), 1)
        with pytest.raises(Fault, match=message) if message else nullcontext():
            watched("block_ring", values, 2, 0)
    watched.library.emulation_tensors(None, None, 0)
    watched("block_ring", values, 2, 0)


@emulates
@pytest.mark.parametrize(
    ("which", "message"),
    [
        (0, r"deadlock: 48 at synchronise\(\), .*; 16 at synchronise_warp\(\), .* thread 32 of"),
        (1, r"thread 0 of block \(0, 0\) returned|for threads that have returned"),
        (2, r"is at s.*, but others wait for it at s"),
        (3, r"deadlock: .* 1 at no barrier, .* thread 0 .*63 at synchronise\(\)"),
        (4, "past its shared memory"),
    ],
)
def test_what_would_hang_or_break_is_reported(cuda, which, message):
    for seed in SEEDS:
        with pytest.raises(Fault, match=message):
            cuda("faults", np.zeros(1, np.uint32), which, seed=seed)
    assert ring(cuda, "block", 0, 0)  # the next launch begins anew


@emulates
@pytest.mark.parametrize("arguments", [(33, 0, 1), (2048, 0, 1), (64, 1 << 20, 1), (64, 0, 3)])
def test_launches_that_a_gpu_refuses(cuda, arguments):
    with pytest.raises(Fault, match=r"threads|shared memory|clusters"):
        cuda("refused", *arguments)


@emulates
def test_a_seed_gives_one_order(cuda):
    def last(seed):
        found = np.zeros(1, np.int32)
        cuda("races", found, seed=seed)
        return int(found[0])

    assert [last(seed) for seed in SEEDS] == [last(seed) for seed in SEEDS]
    assert len({last(seed) for seed in SEEDS}) > 10


@emulates
def test_the_systems_contexts_do_too(pytestconfig):
    """Where there is no switch of our own."""
    units = [(EMULATION / "threads.cu",)]
    portable = emulator(pytestconfig, "ucontext", units, "-DEMULATION_UCONTEXT")
    assert ring(portable, "block", 0, 0) and not ring(portable, "block", 1, 0)
    with pytest.raises(Fault, match="deadlock"):
        portable("faults", np.zeros(1, np.uint32), 0)
