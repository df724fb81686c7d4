"""What is trained and saved."""

from collections.abc import Sequence
import hashlib

from flax import linen as nn
from flax.core import FrozenDict
from flax.training import train_state
import jax
import jax.numpy as jnp
import numpy as np
import optax

SAVED_FIELDS = ('step', 'params', 'opt_state', 'batch_stats')


class TrainState(train_state.TrainState):
  """step (int32: updates applied), params, opt_state and batch_stats."""

  batch_stats: FrozenDict


def create_train_state(
  model: nn.Module,
  tx: optax.GradientTransformation,
  key: jax.Array,
  image_shape: Sequence[int],
) -> TrainState:
  """Initialises parameters and optimizer on the default device.

  Args:
    model: gives logits of float images.
    tx: the optimizer.
    key: decides the parameters.
    image_shape: (height, width, 3) of the crops.
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
    )

  return jax.jit(init)(key)


def saved_tree(state: TrainState) -> dict:
  """The fields of the state that a checkpoint holds."""
  return {name: getattr(state, name) for name in SAVED_FIELDS}


def with_learning_rate(state: TrainState, rate: jax.Array) -> TrainState:
  """The state with another learning rate, float32 []; recompiles nothing."""
  hyperparams = {**state.opt_state.hyperparams, 'learning_rate': rate}
  return state.replace(
    opt_state=state.opt_state._replace(hyperparams=hyperparams)
  )


def leaf_names(tree) -> dict[str, object]:
  """{'params/conv1/kernel': leaf, ...}"""
  leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
  return {
    jax.tree_util.keystr(path, simple=True, separator='/'): leaf
    for path, leaf in leaves
  }


def state_digest(tree: dict) -> str:
  """SHA-256 over what is trained; two runs are equal exactly if it is.

  Args:
    tree: `saved_tree` of a state, on the host or on devices.

  Returns:
    64 hexadecimal digits over the names, shapes, dtypes and bytes of params,
    batch_stats and opt_state.
  """
  sha = hashlib.sha256()
  fields = {name: tree[name] for name in ('params', 'batch_stats', 'opt_state')}
  for name, leaf in sorted(leaf_names(fields).items()):
    array = np.ascontiguousarray(leaf)
    sha.update(f'{name}\0{array.shape}\0{array.dtype}\0'.encode())
    sha.update(array.reshape(-1).view(np.uint8).data)
  return sha.hexdigest()


def num_parameters(state: TrainState) -> int:
  """Number of trained parameters."""
  return sum(leaf.size for leaf in jax.tree.leaves(state.params))
