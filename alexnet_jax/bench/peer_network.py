"""Which networks and updates are written for PyTorch and Keras, too."""

from alexnet_jax.errors import UserError

# What the peers have no counterpart of, and what leaves it out.
_PLAIN = {
  'norm_hidden': (),
  'block_order': (),
  'lrn_groups': 1,
  'dropout_scaling': 'training',
}

# The peers make the updates of SGD with momentum at a constant rate.
_UPDATES = {
  'optimizer.name': 'sgd',
  'optimizer.rate_scaling': 'none',
  'optimizer.decoupled_decay': False,
  'optimizer.decay': 'all',
  'optimizer.bias_lr_multiplier': 1.0,
  'loss.label_smoothing': 0.0,
  'loss.l1': 0.0,
  'loss.l2': 0.0,
}


class NotWritten(NotImplementedError):
  """A peer lacks something that the recipe has."""


def check_updates(config: dict) -> None:
  """Refuses a loss or an optimizer that the peers do not have.

  Args:
    config: the config, as a dict of groups.

  Raises:
    UserError: naming the key.
  """
  for key, plain in _UPDATES.items():
    group, _, name = key.partition('.')
    if (value := config[group][name]) != plain:
      raise UserError(
        f'--against: config.{key} is {value!r}, which is not written for the'
        f' others; compare with --config.{key}={plain}, or leave --against out'
      )


def check(model: dict) -> None:
  """Refuses a network that the peers do not have.

  Args:
    model: `config.model` of the config; what it lacks is as usual.

  Raises:
    NotWritten: naming the key.
  """
  if model['norm'] == 'batch':
    raise NotWritten('batch norm is not written for the peers')
  for key, plain in _PLAIN.items():
    value = model.get(key, plain)
    if (tuple(value) if isinstance(value, list) else value) != plain:
      raise NotWritten(f'model.{key} = {value!r} is not written for the peers')
