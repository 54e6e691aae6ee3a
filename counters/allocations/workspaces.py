"""What libraries and kernels of the GPU take beside their outputs, on a Hopper GPU with 132 multiprocessors."""

CUBLAS = 32 * 2**20
"""cuBLAS's workspace, taken by a thread's first product and kept; 8,519,680 bytes before Hopper."""
CUBLAS_LT = 2**20
"""cuBLASLt's, for products with a bias."""
MULTIPROCESSORS = 132
THREADS = 2048
"""Threads that a multiprocessor holds."""


def summing_bytes(rows: int, cols: int) -> int:
    """What a sum over the rows of (rows, cols) hands from block to block (torch's native/cuda/Reduce.cuh).

    Threads take four columns each; a block is 32 of them wide and 4 high, or narrower and higher where there are few.
    """
    groups = -(-cols // 4)
    width = _power_below(min(groups, 32))
    height = _power_below(min(rows, 128 // width))
    values = -(-rows // height) if rows >= min(256, 16 * height) else rows
    grid = -(-groups // width)
    target = MULTIPROCESSORS * (THREADS // (width * height))
    if values == rows or values < 256 or grid > target:
        return 0
    blocks = max(min(-(-target // grid), -(-values // 16)), -(-values // 256))
    return 4 * cols * blocks * width * 4 if blocks > 1 else 0


def sorting_bytes(rows: int) -> int:
    """What sorting so many numbers of eight bytes with their places takes for itself, within some thousand bytes."""
    return 16 * rows + rows // 4 + 16_895


def _power_below(number: int) -> int:
    return 1 << (number.bit_length() - 1)
