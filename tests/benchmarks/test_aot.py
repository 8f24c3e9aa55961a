"""Programs compiled ahead of time: what is read from them, and what they must not hold.

The tests marked aot need a compiler for accelerators (extras aot-tpu, aot-cuda), each in an
environment of its own; .ci/run has both.
"""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest
from small_runs import make_run

from benchmarks.aot import programs, report, targets
from pinsage_jax.config.settings import Config

TEXT = """HloModule jit_f, is_scheduled=true

%add.1 (x: bf16[], y: bf16[]) -> bf16[] {
  %x = bf16[] parameter(0)
  %y = bf16[] parameter(1)
  ROOT %sum = bf16[] add(%x, %y)
}

%gathered (param_0: f32[1000,8], param_1: s32[4]) -> f32[4,8] {
  %param_1 = s32[4]{0} parameter(1)
  %param_0 = f32[1000,8]{1,0:T(8,128)} parameter(0)
  ROOT %gather.1 = f32[4,8]{1,0} gather(%param_0, %param_1), offset_dims={1}
}

%body (carried: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %carried = (s32[], f32[4,8]{1,0}) parameter(0)
  %at = s32[] get-tuple-element(%carried), index=0
  %held = f32[4,8]{1,0} get-tuple-element(%carried), index=1
  %doubled = f32[4,8]{1,0} add(%held, %held)
  ROOT %both = (s32[], f32[4,8]{1,0}) tuple(%at, %doubled)
}

%condition (carried.1: (s32[], f32[4,8])) -> pred[] {
  %bound = s32[]{:T(128)} BOUND
  %carried.1 = (s32[], f32[4,8]{1,0}) parameter(0)
  %at.1 = s32[] get-tuple-element(%carried.1), index=0
  ROOT %less = pred[] compare(%at.1, %bound), direction=LT
}

ENTRY %main (table: f32[1000,8], rows: s32[4], wide: bf16[6,8]) -> f32[4,8] {
  %table = f32[1000,8]{1,0:T(8,128)} parameter(0)
  %rows = s32[4]{0} parameter(1)
  %wide = bf16[6,8]{1,0} parameter(2)
  %added = bf16[4,8]{1,0:T(8,128)(2,1)S(1)} broadcast(%rows)
  %room = f32[4,8]{1,0} custom-call(), custom_call_target="AllocateBuffer"
  %scatter.1 = bf16[6,8]{1,0} scatter(%wide, %rows, %added), to_apply=%add.1
  %fusion.1 = f32[4,8]{1,0} fusion(%table, %rows), kind=kLoop, calls=%gathered
  %all-reduce.1 = f32[4,8]{1,0} all-reduce(%fusion.1), replica_groups={}, to_apply=%add.1
  %zero = s32[] constant(0)
  %start = (s32[], f32[4,8]{1,0}) tuple(%zero, %all-reduce.1)
  %loop = (s32[], f32[4,8]{1,0}) while(%start), condition=%condition, body=%body, LOOP
  ROOT %out = f32[4,8]{1,0} get-tuple-element(%loop), index=1
}
"""
KNOWN = 'backend_config={"known_trip_count":{"n":"5"}}'
NAMED = 'metadata={op_name="jit(f)/pieces_9_64/while"}'


BATCH, SIX = "get-tuple-element(%carried.1), index=0", "constant(6), metadata={}"


@pytest.mark.parametrize(
    "loop, bound, scoped, trips",
    [
        (KNOWN, BATCH, {}, 5),
        (NAMED, BATCH, {"pieces_9_64": 7}, 7),
        (NAMED, BATCH, {}, 0),
        ("", SIX, {}, 6),
    ],
)
def test_bytes_count_gathered_rows_and_the_trips_of_loops(loop, bound, scoped, trips):
    read = report.Program.of(TEXT.replace("LOOP", loop).replace("BOUND", bound), scoped)
    row = 4 * 8 * 4
    # Indices and what they name, read and written; the sum; the scatter, twice what it adds and
    # itself; three arrays a trip. What is on the chip costs nothing.
    gathered, summed, doubled = 16 + row + row, 2 * row, 3 * row * max(trips, 1)
    scattered = 3 * 0 + 16
    assert read.bytes() == gathered + summed + doubled + scattered
    assert read.loops_without_trips() == (trips == 0)


def test_a_kernel_moves_what_it_declares():
    called = ('%kernel = f32[4,8]{1,0} custom-call(%table, %rows), custom_call_target="CALL", '
              'metadata={op_name="jit(f)/pooled_9/pallas_call"}')  # fmt: skip
    text = TEXT.replace("LOOP", KNOWN).replace("BOUND", SIX).replace("%fusion.1 =", "ROOM")
    without = report.Program.of(text.replace("ROOM", "%fusion.1 ="))
    for target in ("tpu_custom_call", "__gpu$xla.gpu.triton"):
        made = text.replace("ROOM", called.replace("CALL", target) + "\n  %fusion.1 =")
        read = report.Program.of(made, scoped_bytes={"pooled_9": 1e6})
        assert read.kernels() == ["kernel"]
        assert read.bytes() == without.bytes() + 1e6
    assert without.kernels() == []


def test_what_a_program_holds_is_listed():
    read = report.Program.of(TEXT.replace("LOOP", KNOWN).replace("BOUND", SIX))
    assert read.temporaries() == [("f32[4,8]", 128), ("bf16[6,8]", 96)]
    assert read.temporaries(on_chip=True)[-1] == ("bf16[4,8]", 64)
    [(target, added)] = read.low_precision_scatters()
    assert (str(target), str(added)) == ("bf16[6,8]", "bf16[4,8]")
    assert read.collectives() == {"all-reduce": {"f32": 128.0}}


@pytest.mark.parametrize("table", [False, True])
def test_the_shapes_are_those_of_real_batches(table):
    run = make_run(features=np.ones((40, 5), np.float32), sampling={"content_neighbors": 0})
    builder = run.builder(devices=2, table=table, transposed=True)
    size = programs.Size(
        lambda: Config("train", "-", sampling=run.sampling, model=run.model, train=run.train),
        "", 40, 5, builder.spec.hard_slots, builder.budgets.rows, (), table,
    )  # fmt: skip
    # A size is of one device; here two share the pairs.
    halved = dataclasses.replace(run.train, batch_size=run.train.batch_size // 2)
    config = dataclasses.replace(size.config(), train=halved)
    shapes = programs.batch_shapes(dataclasses.replace(size, config=lambda: config), 2)
    batch, _ = builder.make(0)
    for name, shape, array in zip(batch._fields, shapes, batch, strict=True):
        assert (shape.shape, shape.dtype) == (array.shape, array.dtype), name


def test_a_target_that_is_none_is_refused_in_one_sentence():
    command = [sys.executable, "-m", "benchmarks.run", "accelerator", "--target=k80"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode != 0 and "Traceback" not in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("--target=k80 is no target")


@pytest.mark.aot
@pytest.mark.parametrize("target", ["h200", "v5e:2x2", "v5p:2x2x1"])
def test_pooling_gathers_in_parts_and_scatters_nothing(target):
    if reason := targets.obstacle(target):
        pytest.skip(reason)
    # In a process of its own: what compilers read once would change other tests.
    command = [sys.executable, "-m", "benchmarks.aot.checks", target]
    done = subprocess.run(command, capture_output=True, text=True, timeout=570)
    assert done.returncode == 0, done.stderr[-2000:]
    pooled, plain = json.loads(done.stdout.splitlines()[-1])
    assert pooled == []
    # The plain form has what is looked for.
    assert plain != []
