"""Which networks are written for PyTorch and Keras, too."""

# What the peers have no counterpart of, and what leaves it out.
_PLAIN = {
  'norm_hidden': (),
  'orders': (),
  'lrn_groups': 1,
  'dropout_scaling': 'training',
}


def check(model: dict) -> None:
  """Refuses a network that the peers do not have.

  Args:
    model: `config.model` of the config; what it lacks is as usual.

  Raises:
    NotImplementedError: naming the key.
  """
  if model['norm'] == 'batch':
    raise NotImplementedError('batch norm is not written for the peers')
  for key, plain in _PLAIN.items():
    value = model.get(key, plain)
    if (tuple(value) if isinstance(value, list) else value) != plain:
      raise NotImplementedError(
        f'model.{key} = {value!r} is not written for the peers'
      )
