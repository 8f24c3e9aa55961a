"""The state of training, and the optimizer that updates it.

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
    """The pytree that a step updates and a checkpoint stores.

    Attributes:
      step: int32 scalar, steps taken.
      params: the network's parameters.
      opt_state: state of the Optax optimizer.
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
    """AdamW with the learning rate schedule, and gradients clipped to `clip_norm` (0: not)."""
    adam = optax.adamw(
        learning_rate_schedule(config, steps_per_epoch),
        b2=config.adam_b2,
        weight_decay=config.weight_decay,
        # Weight decay is for matrices only, not for biases and other vectors.
        mask=lambda params: jax.tree.map(lambda leaf: leaf.ndim > 1, params),
    )
    if config.clip_norm > 0:
        adam = optax.chain(optax.clip_by_global_norm(config.clip_norm), adam)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        # Adam raises a float to its int32 step count, which a program with strict dtype
        # promotion refuses.
        with jax.numpy_dtype_promotion("standard"):
            return adam.update(updates, state, params)

    return optax.GradientTransformation(adam.init, update)


def initial_state(params: Any, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step."""
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))
