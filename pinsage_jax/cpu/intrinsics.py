"""What Numba lacks for C functions that XLA calls: pointers, atomic words, calls by address.

Used by ffi_handlers.py and pooling_kernels.py, and inlined there.
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

# C functions of the system's library.
malloc = types.ExternalFunction("malloc", types.intp(types.uintp))
free = types.ExternalFunction("free", types.void(types.intp))
sched_yield = types.ExternalFunction("sched_yield", types.int32())
# A table of addresses, known by that name to LLVM before anything that reads it is linked.
TABLE_SYMBOL = "pinsage_jax_work_addresses"


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
def call_work(typing, function, operands, part, parts):
    """function(operands, part, parts) of int64 f(int64, int64, int64), by its address."""

    def generate(context, builder, signature, arguments):
        word = ir.IntType(64)
        form = ir.FunctionType(word, [word] * 3).as_pointer()
        return builder.call(builder.inttoptr(arguments[0], form), arguments[1:])

    return types.int64(*[types.int64] * 4), generate


@intrinsic
def table_address(typing):
    """The address behind TABLE_SYMBOL, an int64."""

    def generate(context, builder, signature, arguments):
        module, word = builder.module, ir.IntType(64)
        if TABLE_SYMBOL in module.globals:
            table = module.globals[TABLE_SYMBOL]
        else:
            table = ir.GlobalVariable(module, word, TABLE_SYMBOL)
        return builder.ptrtoint(table, word)

    return types.int64(), generate
