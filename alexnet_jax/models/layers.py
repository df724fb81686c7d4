"""What AlexNet needs and flax does not have: dropout, initializers, padding."""

import jax
import jax.numpy as jnp

# One layer's padding: 'SAME', 'VALID', one number for every side or (before,
# after) for both axes.
Padding = str | int | tuple[int, int]

KERNEL_INITS = (
  'paper',
  'source_release',
  'caffe',
  'he',
  'glorot',
  'lecun',
  'torch',
)

# Standard deviations of the normal initializers by (role, number of the layer,
# from 1); a role alone is the default of that role.
_NORMAL_STDDEV = {
  'paper': {'conv': 0.01, 'dense': 0.01, 'head': 0.01},
  'source_release': {
    'conv': 0.01,
    ('conv', 3): 0.03,
    ('conv', 4): 0.03,
    ('conv', 5): 0.03,
    'dense': 0.01,
    'head': 0.01,
  },
  'caffe': {'conv': 0.01, 'dense': 0.005, 'head': 0.01},
}


def kernel_initializer(name: str, role: str, number: int):
  """Initializer of the kernel of one layer.

  Args:
    name: one of `KERNEL_INITS`. `paper` is N(0, 0.01) everywhere (Krizhevsky et
      al. 2012, section 5); `source_release` the same with 0.03 in the third to
      fifth convolution; `caffe` the same with 0.005 in the hidden dense layers;
      `he`, `glorot` and `lecun` scale with the layer's fan; `torch` is uniform
      within 1 / sqrt(fan_in), PyTorch's default.
    role: `conv`, `dense` (hidden) or `head` (logits).
    number: position of the layer among those of its role, from 1.

  Returns:
    A function (key, shape, dtype) -> array.

  Raises:
    ValueError: if `name` is unknown.
  """
  if name in _NORMAL_STDDEV:
    table = _NORMAL_STDDEV[name]
    stddev = table.get((role, number), table[role])
    return jax.nn.initializers.normal(stddev)
  scaled = {
    'he': jax.nn.initializers.he_normal,
    'glorot': jax.nn.initializers.glorot_uniform,
    'lecun': jax.nn.initializers.lecun_normal,
    'torch': lambda: jax.nn.initializers.variance_scaling(
      1 / 3, 'fan_in', 'uniform'
    ),
  }
  if name not in scaled:
    raise ValueError(f'kernel_init is {name!r}, not one of {KERNEL_INITS}')
  return scaled[name]()


def bias_initializer(name: str, value: float, fan_in: int):
  """Initializer of the bias of one layer: `value`, unless PyTorch's is wanted.

  Args:
    name: of the kernel's initializer; `torch` draws biases that would be 0
      uniformly within 1 / sqrt(fan_in), as PyTorch does.
    value: of every other bias.
    fan_in: inputs of one output of the layer.

  Returns:
    A function (key, shape, dtype) -> array.
  """
  if name != 'torch' or value:
    return jax.nn.initializers.constant(value)
  bound = fan_in**-0.5

  def init(key, shape, dtype=jnp.float32):
    return jax.random.uniform(key, shape, dtype, -bound, bound)

  return init


def dropout(
  x: jax.Array,
  keys: jax.Array,
  rate: float,
  number: int,
  scale: bool = True,
) -> jax.Array:
  """Sets a share of each example's units to zero and may scale up the others.

  As flax' Dropout (Hinton et al. 2012; with `scale` inverted, so that
  evaluation changes nothing), but with a key for each example: which of its
  units are kept depends on its key and the number of the layer only, not on the
  examples beside it.

  Args:
    x: [batch, ...], float32 or bfloat16.
    keys: typed keys [batch].
    rate: share of the units set to zero, below 1.
    number: of the layer, so that layers draw different units.
    scale: whether the others are divided by 1 - rate; if not, evaluation has to
      multiply all units by it, as in the paper.

  Returns:
    An array of the shape and dtype of `x`.

  Raises:
    ValueError: if there is not one key for each example.
  """
  if keys.shape != x.shape[:1]:
    raise ValueError(
      f'keys of shape {keys.shape} for a batch of {x.shape[0]}: dropout needs'
      ' one key for each example'
    )

  def kept(key):
    key = jax.random.fold_in(key, number)
    return jax.random.bernoulli(key, 1 - rate, x.shape[1:])

  others = x / (1 - rate) if scale else x
  return jnp.where(jax.vmap(kept)(keys), others, jnp.zeros_like(x))


def explicit_padding(padding: Padding) -> str | list[tuple[int, int]]:
  """Padding of one convolution in the form that `nn.Conv` takes."""
  if isinstance(padding, str):
    return padding
  if isinstance(padding, int):
    padding = (padding, padding)
  return [tuple(padding)] * 2
