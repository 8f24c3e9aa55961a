"""A tile of a matrix product in the processor's registers, for pooling_kernels.py.

The derivative towards a projection's weights is a product of two tall matrices, rows of
inputs and rows that come back.  The rows that come back need not be written to memory
when the product takes them a block at a time; the block's product is made here.
"""

from __future__ import annotations

import llvmlite.binding
import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic


def _rows() -> int:
    """Rows of a tile: accumulators are half of AVX-512's 32 registers of 16 numbers, or 8 of 8."""
    try:
        return 16 if llvmlite.binding.get_host_cpu_features().get("avx512f") else 4
    except RuntimeError:
        # LLVM does not know the processor.
        return 4


TILE_ROWS, TILE_COLUMNS = _rows(), 16


@intrinsic
def _add_tile(typing, sums, place, left, first, right, second, count):
    """See add_tile."""

    def generate(context, builder, signature, arguments):
        number, word = ir.FloatType(), ir.IntType(64)
        vector = ir.VectorType(number, TILE_COLUMNS)
        nowhere, zero = ir.Constant(vector, ir.Undefined), ir.Constant(ir.IntType(32), 0)
        everywhere = ir.Constant(ir.VectorType(ir.IntType(32), TILE_COLUMNS), [0] * TILE_COLUMNS)

        def entries(argument):
            array = context.make_array(signature.args[argument])
            data = array(context, builder, arguments[argument]).data
            return builder.gep(data, [arguments[argument + 1]])

        def at(data, index, kind):
            index = ir.Constant(word, index) if isinstance(index, int) else index
            return builder.bitcast(builder.gep(data, [index]), kind.as_pointer())

        def times(index, size):
            return builder.mul(index, ir.Constant(word, size))

        total, lefts, rights = entries(0), entries(2), entries(4)
        rows = [at(total, row * TILE_COLUMNS, vector) for row in range(TILE_ROWS)]
        begun = [builder.load(row, align=4) for row in rows]
        before = builder.block
        loop, after = builder.append_basic_block(), builder.append_basic_block()
        builder.branch(loop)
        builder.position_at_end(loop)
        step = builder.phi(word)
        held = [builder.phi(vector) for _ in rows]
        factor = builder.load(at(rights, times(step, TILE_COLUMNS), vector), align=4)
        left_row, grown = builder.gep(lefts, [times(step, TILE_COLUMNS)]), []
        for row, sum_so_far in enumerate(held):
            one = builder.insert_element(nowhere, builder.load(at(left_row, row, number)), zero)
            spread = builder.shuffle_vector(one, nowhere, everywhere)
            # Contracted to one instruction where the processor has it.
            product = builder.fmul(spread, factor, flags=("contract",))
            grown.append(builder.fadd(sum_so_far, product, flags=("contract",)))
        following = builder.add(step, ir.Constant(word, 1))
        step.add_incoming(ir.Constant(word, 0), before)
        step.add_incoming(following, loop)
        for sum_so_far, first_sum, next_sum in zip(held, begun, grown, strict=True):
            sum_so_far.add_incoming(first_sum, before)
            sum_so_far.add_incoming(next_sum, loop)
        builder.cbranch(builder.icmp_signed("<", following, arguments[6]), loop, after)
        builder.position_at_end(after)
        for row, ended in zip(rows, grown, strict=True):
            builder.store(ended, row, align=4)
        return context.get_dummy_value()

    whole = types.int64
    return types.void(sums, whole, left, whole, right, whole, whole), generate


def _add_tile_slowly(sums, place, left, first, right, second, count):
    size = TILE_ROWS * TILE_COLUMNS
    steps = np.arange(count)[:, None] * TILE_COLUMNS
    rows, columns = steps + np.arange(TILE_ROWS), steps + np.arange(TILE_COLUMNS)
    product = np.einsum("ki,kj->ij", left[first + rows], right[second + columns])
    sums[place : place + size] += product.reshape(size)


# add_tile(sums, place, left, first, right, second, count): the tile [TILE_ROWS, TILE_COLUMNS]
# at sums[place] grows by L^T R, with L [count, TILE_ROWS] from left[first] on and
# R [count, TILE_COLUMNS] from right[second] on, the rows of both TILE_COLUMNS entries apart.
# Contiguous float32 vectors; count at least 1.
add_tile = _add_tile_slowly if numba.config.DISABLE_JIT else _add_tile
