"""Numba intrinsics for C functions: pointers, atomic additions, stack memory, calls by address.

ffi_handlers.py and pooling_kernels.py use these functions; they are inlined there.
Addresses are int64.
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

# Functions of the C library; malloc returns 0 where there is no memory.
malloc = types.ExternalFunction("malloc", types.intp(types.uintp))
free = types.ExternalFunction("free", types.void(types.intp))
sched_yield = types.ExternalFunction("sched_yield", types.int32())
# The name by which LLVM knows the table of addresses that `table_address` returns.
TABLE_SYMBOL = "cpu_kernels_table_of_addresses"
_STACK_WORDS = 6


@intrinsic
def pointer(typing, address):
    """A pointer, for numba.carray and as what a C function returns."""

    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], ir.IntType(8).as_pointer())

    return types.voidptr(types.int64), generate


@intrinsic
def stack_words(typing):
    """The address of six 64-bit words on the stack, as long as the calling function runs.

    Every place that calls it has words of its own, which a loop finds again.
    """

    def generate(context, builder, signature, arguments):
        words = ir.ArrayType(ir.IntType(64), _STACK_WORDS)
        return builder.ptrtoint(cgutils.alloca_once(builder, words), ir.IntType(64))

    return types.int64(), generate


@intrinsic
def add_to_word(typing, words, place, number):
    """Adds to words[place] of a contiguous int64 array atomically; returns the value before."""

    def generate(context, builder, signature, arguments):
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        return builder.atomic_rmw("add", builder.gep(data, [arguments[1]]), arguments[2], "seq_cst")

    return types.int64(words, types.int64, types.int64), generate


@intrinsic
def call(typing, function, argument):
    """function(argument) of the C function `int64 function(void *)`, both by address."""

    def generate(context, builder, signature, arguments):
        byte, word = ir.IntType(8).as_pointer(), ir.IntType(64)
        kind = ir.FunctionType(word, [byte]).as_pointer()
        return builder.call(
            builder.inttoptr(arguments[0], kind), [builder.inttoptr(arguments[1], byte)]
        )

    return types.int64(types.int64, types.int64), generate


@intrinsic
def call_task(typing, function, operands, chunk, chunks):
    """function(operands, chunk, chunks) of a C function of three int64, by address."""

    def generate(context, builder, signature, arguments):
        word = ir.IntType(64)
        kind = ir.FunctionType(word, [word] * 3).as_pointer()
        return builder.call(builder.inttoptr(arguments[0], kind), arguments[1:])

    return types.int64(*[types.int64] * 4), generate


@intrinsic
def table_address(typing):
    """The address that LLVM knows as TABLE_SYMBOL."""

    def generate(context, builder, signature, arguments):
        module, word = builder.module, ir.IntType(64)
        if TABLE_SYMBOL in module.globals:
            table = module.globals[TABLE_SYMBOL]
        else:
            table = ir.GlobalVariable(module, word, TABLE_SYMBOL)
        return builder.ptrtoint(table, word)

    return types.int64(), generate
