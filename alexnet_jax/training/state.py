"""The train state: what is trained and saved, its names and its digest."""

from collections.abc import Callable, Sequence
import hashlib

from flax import linen as nn
from flax.core import FrozenDict
from flax.training import train_state
import jax
import jax.numpy as jnp
import numpy as np
import optax

from alexnet_jax import files
from alexnet_jax.errors import NonFiniteLossError


class TrainState(train_state.TrainState):
  """Parameters, optimizer state and statistics after `step` updates."""

  batch_stats: FrozenDict  # running statistics of batch norms
  ema_params: FrozenDict  # a moving average of the parameters; empty: none

  @property
  def eval_params(self):
    """Returns the parameters for evaluation: averaged ones, if kept."""
    return self.ema_params or self.params


def create_train_state(
  model: nn.Module,
  tx: optax.GradientTransformation,
  key: jax.Array,
  image_shape: Sequence[int],
  *,
  ema: bool = False,
) -> TrainState:
  """Initializes parameters and optimizer `tx` on the default device.

  Images are of `image_shape`, (height, width, channels). With `ema` an average
  of the parameters is kept; it starts with them.
  """

  def init(key):
    variables = model.init(key, jnp.zeros((1, *image_shape)))
    params = variables['params']
    return TrainState(
      step=jnp.zeros((), jnp.int32),
      apply_fn=model.apply,
      params=params,
      tx=tx,
      opt_state=tx.init(params),
      batch_stats=variables.get('batch_stats', {}),
      ema_params=jax.tree.map(jnp.copy, params) if ema else {},
    )

  return jax.jit(init)(key)


def saved_tree(state: TrainState) -> dict:
  """Returns the fields of the state that a checkpoint holds."""
  names = 'step', 'params', 'opt_state', 'batch_stats', 'ema_params'
  return {name: getattr(state, name) for name in names}


def with_learning_rate(state: TrainState, **values: jax.Array) -> TrainState:
  """Returns the state with another learning rate; recompiles nothing.

  The values, float32 [], are those of `optimizer.make_optimizer`.
  """
  hyperparams = state.opt_state.hyperparams | values
  opt_state = state.opt_state._replace(hyperparams=hyperparams)
  return state.replace(opt_state=opt_state)


def leaf_names(tree) -> dict[str, object]:
  """Returns {'params/conv1/kernel': leaf, ...}."""
  leaves = jax.tree.leaves_with_path(tree)
  return {_leaf_name(path): leaf for path, leaf in leaves}


def map_named(function: Callable, tree, *rest):
  """Returns the tree with each leaf as `function(name, leaf, *others)`."""
  return jax.tree.map_with_path(
    lambda path, *leaves: function(_leaf_name(path), *leaves), tree, *rest
  )


def _leaf_name(path):
  return jax.tree_util.keystr(path, simple=True, separator='/')


def state_digest(tree: dict) -> str:
  """Returns a SHA-256 of a `saved_tree`; two runs are equal exactly if it is.

  It is over the names, shapes, dtypes and bytes of all but the step.
  """
  sha = hashlib.sha256()
  fields = {name: field for name, field in tree.items() if name != 'step'}
  for name, leaf in sorted(leaf_names(fields).items()):
    array = np.ascontiguousarray(leaf)
    sha.update(f'{name}\0{array.shape}\0{array.dtype}\0'.encode())
    sha.update(array.reshape(-1).view(np.uint8).data)
  return sha.hexdigest()


def refuse_non_finite(tree: dict) -> None:
  """Raises NonFiniteLossError if a parameter of `saved_tree` is not finite."""
  for name, leaf in leaf_names(tree['params']).items():
    if not np.isfinite(leaf).all():
      raise NonFiniteLossError(
        f'step {int(tree["step"])} is not saved: {name} is not finite. With a'
        ' new --workdir try a lower config.optimizer.learning_rate or a warm-up'
      )


def misfits(theirs, ours) -> str:
  """Returns a line for each array of another dtype or shape in two trees."""

  def kind(leaf):
    return f'{np.dtype(leaf.dtype).name}{list(leaf.shape)}'

  kinds = (leaf_names(jax.tree.map(kind, tree)) for tree in (theirs, ours))
  return ''.join(
    f'  {name}: {there or "nothing"} there, {here or "nothing"} here\n'
    for name, (there, here) in files.differences(*kinds).items()
  )


def summarize(state: TrainState) -> dict:
  """Returns {step, parameters, state_digest}, of the results of commands."""
  return {
    'step': int(state.step),
    'parameters': num_parameters(state),
    'state_digest': state_digest(saved_tree(state)),
  }


def num_parameters(state: TrainState) -> int:
  """Returns the number of trained parameters."""
  from clu import parameter_overview  # takes half a second

  return int(parameter_overview.count_parameters(state.params))
