"""What Numba lacks for C functions that XLA calls: pointers, atomic words, calls by address.

Used by pooling_kernels.py.  All are inlined where they are used; compiled kernels are
cached on disk by their own file, so a change here takes effect once that cache goes.
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

# C functions of the system's library.
allocate = types.ExternalFunction("malloc", types.intp(types.uintp))
free = types.ExternalFunction("free", types.void(types.intp))
give_way = types.ExternalFunction("sched_yield", types.int32())
# Known by that name to LLVM before anything that reads its address is linked.
TASK_SYMBOL = "pinsage_jax_pool_task"


@intrinsic
def pointer(typing, number):
    """A pointer from its address, an int64."""

    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], ir.IntType(8).as_pointer())

    return types.voidptr(types.int64), generate


@intrinsic
def add_to_word(typing, words, place, number):
    """Adds to words[place] of a contiguous int64 array at once; returns what stood there."""

    def generate(context, builder, signature, arguments):
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        return builder.atomic_rmw("add", builder.gep(data, [arguments[1]]), arguments[2], "seq_cst")

    return types.int64(words, types.int64, types.int64), generate


@intrinsic
def call(typing, function, argument):
    """function(argument), both addresses as int64: of int64 f(void *)."""

    def generate(context, builder, signature, arguments):
        byte, word = ir.IntType(8).as_pointer(), ir.IntType(64)
        form = ir.FunctionType(word, [byte]).as_pointer()
        return builder.call(
            builder.inttoptr(arguments[0], form), [builder.inttoptr(arguments[1], byte)]
        )

    return types.int64(types.int64, types.int64), generate


@intrinsic
def task_address(typing):
    """The address behind TASK_SYMBOL, an int64."""

    def generate(context, builder, signature, arguments):
        module = builder.module
        if TASK_SYMBOL in module.globals:
            function = module.globals[TASK_SYMBOL]
        else:
            byte = ir.IntType(8).as_pointer()
            function = ir.Function(module, ir.FunctionType(byte, [byte]), TASK_SYMBOL)
        return builder.ptrtoint(function, ir.IntType(64))

    return types.int64(), generate
