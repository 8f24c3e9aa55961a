"""Prefetches and stores past the caches, for Numba kernels that read or write scattered rows.

No hardware foresees the reads of walks, pooling and gathers.  A processor waits for few reads
at a time that go to its first-level cache (24 lines on a Zen 4 core, which are 7 GB/s from
memory); prefetches into the second-level cache wait in longer queues (24 GB/s).  So kernels
prefetch what they will read a few hundred lines later.

A prefetch changes nothing but speed: it reads no value, and any address is allowed.

  prefetch(array, place)                           the cache line of entry `place`, an int64
  nontemporal_copy(target, place, source, start)   one line of entries from source[start] on to
                                                   target[place], float32 vectors; that entry is
                                                   at the beginning of a cache line
"""

from __future__ import annotations

import numba
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

LINE_BYTES = 64
# Arguments of LLVM's prefetch: for reading; into the second-level cache; data, not code.
_READ, _SECOND_LEVEL, _DATA = 0, 2, 1


@intrinsic
def _prefetch(typing, array, place):
    def generate(context, builder, signature, arguments):
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        byte, number = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
        function = builder.module.declare_intrinsic("llvm.prefetch", [byte], kind)
        address = builder.bitcast(builder.gep(data, [arguments[1]]), byte)
        flags = [ir.Constant(number, flag) for flag in (_READ, _SECOND_LEVEL, _DATA)]
        builder.call(function, [address, *flags])
        return context.get_dummy_value()

    return types.void(array, types.int64), generate


@intrinsic
def _nontemporal_copy(typing, target, place, source, start):
    def generate(context, builder, signature, arguments):
        line = ir.VectorType(ir.FloatType(), LINE_BYTES // 4).as_pointer()

        def address(array, at):
            data = context.make_array(signature.args[array])(context, builder, arguments[array])
            return builder.bitcast(builder.gep(data.data, [arguments[at]]), line)

        loaded = builder.load(address(2, 3), align=4)
        stored = builder.store(loaded, address(0, 1), align=LINE_BYTES)
        flag = builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)])
        stored.set_metadata("nontemporal", flag)
        return context.get_dummy_value()

    return types.void(target, types.int64, source, types.int64), generate


if numba.config.DISABLE_JIT:

    def prefetch(array, place):
        """Does nothing: interpreted kernels have no use for it."""

    def nontemporal_copy(target, place, source, start):
        """An ordinary copy."""
        entries = LINE_BYTES // 4
        target[place : place + entries] = source[start : start + entries]

else:
    prefetch, nontemporal_copy = _prefetch, _nontemporal_copy
