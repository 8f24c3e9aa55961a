"""Memory ahead of its use and past the caches: what kernels tell the processor.

Walks, pooling and gathers read places that no hardware foresees.  A processor waits for
only so many reads at a time that go to its first-level cache (24 lines on a Zen 4 core,
which are 7 GB/s from memory); requests for the second-level cache are kept in longer
queues (24 GB/s).  So kernels ask for what they will read a few hundred lines later.

Only speed depends on it: nothing is read, and any address is allowed.
"""

from __future__ import annotations

import numba
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

LINE_BYTES = 64
# Of LLVM's prefetch: to read; to keep in the second-level cache; data, not code.
_READ, _SECOND_LEVEL, _DATA = 0, 2, 1


@intrinsic
def _ask(typing, array, place):
    """Asks for the line with entry `place`, an int64, of a contiguous array."""

    def generate(context, builder, signature, arguments):
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        form = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
        prefetch = builder.module.declare_intrinsic("llvm.prefetch", [byte], form)
        address = builder.bitcast(builder.gep(data, [arguments[1]]), byte)
        flags = [ir.Constant(number, flag) for flag in (_READ, _SECOND_LEVEL, _DATA)]
        builder.call(prefetch, [address, *flags])
        return context.get_dummy_value()

    return types.void(array, types.int64), generate


def _line_copier(past_caches: bool):
    @intrinsic
    def copy(typing, target, place, source, start):
        def generate(context, builder, signature, arguments):
            line = ir.VectorType(ir.FloatType(), LINE_BYTES // 4).as_pointer()

            def address(array, at):
                data = context.make_array(signature.args[array])(context, builder, arguments[array])
                return builder.bitcast(builder.gep(data.data, [arguments[at]]), line)

            taken = builder.load(address(2, 3), align=4)
            if past_caches:
                once = builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)])
                written = builder.store(taken, address(0, 1), align=LINE_BYTES)
                written.set_metadata("nontemporal", once)
            else:
                builder.store(taken, address(0, 1), align=4)
            return context.get_dummy_value()

        return types.void(target, types.int64, source, types.int64), generate

    return copy


if numba.config.DISABLE_JIT:

    def prefetch(array, place):
        """Does nothing: interpreted kernels have no use for it."""

    def copy_line(target, place, source, start):
        """Copies as many entries of float32 vectors as a line has."""
        entries = LINE_BYTES // 4
        target[place : place + entries] = source[start : start + entries]

    nontemporal_copy = copy_line

else:
    prefetch = _ask
    copy_line, nontemporal_copy = _line_copier(past_caches=False), _line_copier(past_caches=True)
# copy_line(target, place, source, start) copies one line's worth of entries of float32
# vectors; nontemporal_copy past the caches, to an address on a line's edge.
