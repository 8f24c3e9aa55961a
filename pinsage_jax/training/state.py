"""What a training step carries along, and the optimizer that moves it.

Learning rate: linear warm-up over the first epoch to a peak that is scaled
linearly with the batch, then exponential decay (Ying et al. 2018, section 3.3,
after Goyal et al.).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from pinsage_jax.config.training import TrainConfig

_REFERENCE_BATCH = 1024


class TrainState(NamedTuple):
    """One pytree, checkpointed whole.

    Attributes:
      step: int32 scalar, steps taken.
      params: the network's parameters.
      opt_state: Optax state.
    """

    step: jax.Array
    params: Any
    opt_state: Any


def learning_rate_schedule(config: TrainConfig, steps_per_epoch: float) -> optax.Schedule:
    """The learning rate of a step (from 0): warm-up, then decay by `decay` per epoch.

    The same as optax.schedules.warmup_exponential_decay_schedule, save for rounding: that
    one adds its warm-up from differences, which loses digits in long warm-ups, and runs
    trained with this one would no longer repeat bit for bit.
    """
    peak = config.learning_rate * config.batch_size / _REFERENCE_BATCH
    warmup = max(round(config.warmup_epochs * steps_per_epoch), 1)

    def learning_rate_fn(step: jax.Array) -> jax.Array:
        """float32 learning rate of a step (counted from 0)."""
        step = jnp.asarray(step, jnp.float32)
        rising = (step + 1.0) / warmup
        passed = jnp.maximum(step + 1.0 - warmup, 0.0) / steps_per_epoch
        return peak * jnp.minimum(rising, 1.0) * jnp.float32(config.decay) ** passed

    return learning_rate_fn


def make_optimizer(config: TrainConfig, steps_per_epoch: float) -> optax.GradientTransformation:
    """AdamW under the schedule, with gradients clipped to `clip_norm` if it is set."""
    adam = optax.adamw(
        learning_rate_schedule(config, steps_per_epoch),
        b2=config.adam_b2,
        weight_decay=config.weight_decay,
        # Biases and other vectors are not shrunk towards zero.
        mask=lambda params: jax.tree.map(lambda leaf: leaf.ndim > 1, params),
    )
    if config.clip_norm > 0:
        return optax.chain(optax.clip_by_global_norm(config.clip_norm), adam)
    return adam


def initial_state(params: Any, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step."""
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))
