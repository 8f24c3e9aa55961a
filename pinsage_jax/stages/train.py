"""The stage that trains the network, from the neighbor lists to the checkpoints."""

from __future__ import annotations

import datetime
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np
from absl import logging

from pinsage_jax.batching.blocks import BatchSpec
from pinsage_jax.batching.builder import MinibatchBuilder
from pinsage_jax.batching.graph_view import GraphView, spectral_bases
from pinsage_jax.catalog.prepare import Prepared, open_prepared
from pinsage_jax.config.settings import Config
from pinsage_jax.core import files
from pinsage_jax.core.costs import RUN_FILE, Costs, provenance
from pinsage_jax.core.errors import UserError
from pinsage_jax.cpu import kernel_cache, ops
from pinsage_jax.distributed import process_group
from pinsage_jax.distributed.devices import make_devices
from pinsage_jax.distributed.joining import connect
from pinsage_jax.evaluation import calibration
from pinsage_jax.graph.validation_split import ValidationSplit, with_more_cold_pairs
from pinsage_jax.inference.encoder import Encoder
from pinsage_jax.model import grouped_pooling
from pinsage_jax.sampling import kernels
from pinsage_jax.sampling.pairs import PairSource, hard_band
from pinsage_jax.stages.checkpoint import (
    carried_over,
    check_init_from,
    fixed_cold_start_bias,
    saved_model,
)
from pinsage_jax.stages.runs import data_identity, remember, stop_requested, validation_split_of
from pinsage_jax.training import loop
from pinsage_jax.training.curriculum import hard_negatives_in, hard_slots
from pinsage_jax.training.device_inputs import table_form
from pinsage_jax.training.loop import Outcome
from pinsage_jax.training.resume import is_finished

# With fewer steps than this a run says how to train longer.
_FEW_STEPS = 100


def train(
    config: Config,
    should_stop: Callable[[], bool] | None = None,
    split: ValidationSplit | None = None,
) -> Outcome:
    """Trains the network, or continues training, and saves checkpoints in WORKDIR/checkpoints.

    Args:
      should_stop: called after every step; True ends training with a checkpoint.  By
        default a signal does.
      split: the validation split; None: that of these settings.

    Raises:
      UserError: settings do not fit the data, the devices or an existing checkpoint.
    """
    started = datetime.datetime.now(datetime.UTC)
    check_init_from(config)
    prepared = open_prepared(config.workdir)
    identity = data_identity(prepared)
    # Reading a checkpoint uses JAX already.
    connect()
    if process_group.broadcast_from_rank0(lambda: is_finished(config, identity), "finished run"):
        logging.info("train: %s/checkpoints holds the finished run", config.workdir)
        remember(config)
        return Outcome(0, 0, {}, interrupted=False)
    remember(config)
    ops.choose_kernels(config.train.cpu_kernels)
    grouped_pooling.choose_kernels(config.train.accelerator_kernels)
    if not kernel_cache.is_on_disk(kernels.sample_block):
        # Measured: 28 s of one core, until the first step.
        logging.info("compiling, once: about half a minute")
    if split is None:
        split = validation_split_of(config, prepared)
    bases = process_group.rank0_first(
        lambda: spectral_bases(config, prepared, split), "spectral features"
    )
    encoder = Encoder.over(config, prepared, split.train_graph, bases)
    if not config.sampling.resample:
        source = encoder.lists.source
        if source.store == "disk":
            process_group.rank0_first(source.materialize, "neighborhoods")
        else:
            source.materialize()
    pairs = PairSource(
        split.train_graph,
        config.seed,
        split.train_pairs,
        config.train.pairs_per_epoch,
        config.sampling.pair_power,
        config.data.weighs_edges,
        config.train.least_epoch_pairs,
    )
    if hard_slots(config.train, pairs.per_epoch):
        logging.debug(
            "hard negatives come from ranks %d to %d",
            *hard_band(config.sampling, prepared.graph.num_items),
        )
    builder = _builder(config, encoder, pairs, prepared.graph.num_items)
    validate, baselines = None, calibration.BaselineHitRates({})
    if process_group.is_rank0():
        validate, baselines = _validator(config, prepared, encoder, split)
    outcome = loop.train(
        config,
        builder,
        identity,
        validate,
        should_stop or stop_requested,
        _warm_start(config, prepared),
    )
    if outcome.pairs and process_group.is_rank0():
        kind = make_devices(config.train.devices)[0].device_kind
        files.write_json(pathlib.Path(config.workdir) / RUN_FILE, provenance(started, kind))
    if not outcome.interrupted:
        best = outcome.best
        judged = f"; best: step {best['step']}, score {best['score']:.4f}" if best else ""
        logging.info("trained %d steps%s", outcome.step, judged)
        _warn_if_below(best, baselines)
        given = config.train.epochs is not None and config.train.max_steps is None
        if outcome.total < _FEW_STEPS and given and validate:
            logging.info("train: these are few steps; --epochs=auto, the default, takes more")
    spent = Costs(
        seconds={"train": outcome.seconds},
        devices=outcome.devices,
        pairs=outcome.pairs,
        wait_share=outcome.wait_share,
    )
    if config.mode != "pipeline":
        # The pipeline says at its end what all stages cost.
        logging.info("training cost %s", spent.summary())
    return outcome


def _warm_start(config: Config, prepared: Prepared) -> Callable[[Any], Any] | None:
    """What makes the first parameters of random ones, with --init_from."""
    if not config.retraining.init_from:
        return None
    return lambda params: carried_over(saved_model(config), prepared, params)


def _builder(
    config: Config, encoder: Encoder, pairs: PairSource, num_items: int
) -> MinibatchBuilder:
    """The builder of minibatches for this process's devices, with all items as negatives."""
    num_devices, local_devices = _devices(config)
    spec = BatchSpec(
        config.train,
        config.model.num_layers,
        config.seed,
        hard_in_epoch=lambda epoch: hard_negatives_in(epoch, config.train),
        hard_slots=hard_slots(config.train, pairs.per_epoch),
        num_devices=num_devices,
        local_devices=local_devices,
        table=table_form(config.train, encoder.inputs),
        transposed=ops.needs_transposed_lists(config.model.pooling),
    )
    view = GraphView(encoder.lists, encoder.inputs)
    return MinibatchBuilder(view, pairs, spec, np.arange(num_items, dtype=np.int32))


def _devices(config: Config) -> tuple[int, range]:
    """The number of devices of all processes, and the range of those of this process.

    Raises:
      UserError: the processes have unequal numbers of devices, or the batch cannot be cut
        into as many equal parts.
    """
    local = len(make_devices(config.train.devices))
    counts = process_group.all_gather_object(local, "number of devices")
    if len({*counts}) > 1:
        raise UserError(
            f"The processes have {counts} devices; set --devices to have as many in each."
        )
    devices = sum(counts)
    if config.train.batch_size % devices:
        raise UserError(
            f"--batch_size={config.train.batch_size} is not a multiple of the {devices} devices; "
            "change it or set --devices."
        )
    first = local * process_group.current().index
    return devices, range(first, first + local)


def _warn_if_below(best: dict[str, float], baselines: calibration.BaselineHitRates) -> None:
    """Warns once if the embeddings are below the walk or the content that they are made from.

    Args:
      best: validation metrics of the step that is used; {} without any.
    """
    below = [
        f"{name} for {kind} pairs (hit@{k} {found:.3f}, {name} {rate:.3f})"
        for (kind, k), rate in baselines.rates.items()
        for name in ("content" if kind == "cold" else "walk",)
        if (found := best.get(f"{kind}_hit@{k}", rate)) < rate - baselines.noise(kind, k)
    ]
    if below:
        logging.warning(
            "train: in validation the embeddings are below what they are made from: %s; the "
            "ranker of the next stage makes lists of both.",
            ", ".join(below),
        )


def _validator(
    config: Config, prepared: Prepared, encoder: Encoder, split: ValidationSplit
) -> tuple[loop.Validate, calibration.BaselineHitRates]:
    """A function that scores parameters on the validation pairs, over the training graph.

    Returns:
      It, and the hit-rates of the baselines on these pairs.
    """
    items = prepared.graph.num_items
    graph = split.train_graph
    split = with_more_cold_pairs(prepared.graph, split, config.split.validation_pairs, config.seed)
    baselines = calibration.BaselineHitRates.measure(
        graph, prepared.features, split, config.sampling, config.seed, config.host_threads
    )
    if baselines.rates:
        rates = [f"{kind} hit@{k} {rate:.4f}" for (kind, k), rate in baselines.rates.items()]
        logging.info("validation: plain baselines have %s", ", ".join(rates))
    isolated = graph.degree()[:items] == 0

    def validate(params: Any) -> dict[str, float]:
        if not baselines.rates:
            # There is no pair to score, and a large catalog takes minutes to embed.
            return {}
        vectors = encoder.embed(params, quiet=True)[:items]
        return calibration.validate(
            vectors, isolated, split, baselines, fixed_cold_start_bias(config)
        )

    return validate, baselines
