"""Optimizers, the decay mask and the paper's update rule."""

import jax
import optax


def kernel_mask(params):
  """True for kernels, False for biases and normalisation scales."""
  return jax.tree_util.tree_map_with_path(
    lambda path, _: path[-1].key == 'kernel', params
  )


def bias_mask(params):
  """True for biases."""
  return jax.tree_util.tree_map_with_path(
    lambda path, _: path[-1].key == 'bias', params
  )


def make_optimizer(
  learning_rate: float,
  *,
  momentum: float = 0.9,
  nesterov: bool = False,
  weight_decay: float = 5e-4,
  decay: str = 'all',
  bias_rate: float = 1.0,
  update_rule: str = 'optax',
) -> optax.GradientTransformation:
  """SGD with momentum, its learning rate a part of the optimizer's state.

  With g the gradient plus weight_decay * w and lr the learning rate:

  - `optax` (as PyTorch): v <- momentum * v + g; w <- w - lr * v
  - `paper` (Krizhevsky et al. 2012, section 5): v <- momentum * v - lr * g;
    w <- w + v, so that a drop of lr does not slow what is under way.

  Args:
    learning_rate: initial value; `state.with_learning_rate` replaces it.
    momentum: factor on the velocity.
    nesterov: whether the gradient is taken one step ahead.
    weight_decay: factor on the weights that joins the gradient.
    decay: `all` parameters decay, or `kernels` only.
    bias_rate: factor on the learning rate of biases; the paper's code has 2.
    update_rule: `optax` or `paper`.

  Returns:
    A transformation whose state has `hyperparams['learning_rate']`, float32.
  """

  def make(learning_rate):
    decay_step = optax.add_decayed_weights(
      weight_decay, kernel_mask if decay == 'kernels' else None
    )
    velocity = optax.trace(momentum, nesterov)
    rate = optax.scale_by_learning_rate(learning_rate)
    order = [velocity, rate] if update_rule == 'optax' else [rate, velocity]
    steps = [decay_step, *order]
    if bias_rate != 1.0:
      steps.append(optax.masked(optax.scale(bias_rate), bias_mask))
    return optax.chain(*steps)

  return optax.inject_hyperparams(make)(learning_rate=learning_rate)
