"""Which form of an operation is used where.

They compute the same but for roundings, and differ in speed and memory. `plain`
is how one writes it first; the others have gradients of their own.
"""

import dataclasses

FORMS = {
  'convolution': ('plain', 'ordered'),
  'lrn': ('plain', 'closed'),
  'max_pool': ('plain', 'compared'),
  'tail': ('plain', 'fused'),
  'dense': ('plain', 'early'),
}


@dataclasses.dataclass(frozen=True)
class Forms:
  """Forms of a network's operations.

  Attributes:
    convolution: `plain` or `ordered`, see `convolution`.
    lrn: `plain` or `closed`, see `normalization.local_response_norm`.
    max_pool: `plain` or `compared`, see `pooling.max_pool`.
    tail: of what follows a convolution: `plain` or, where it can be, `fused`,
      see `fused`.
    dense: `plain` or `early`, see `dense`.
  """

  convolution: str = 'plain'
  lrn: str = 'plain'
  max_pool: str = 'plain'
  tail: str = 'plain'
  dense: str = 'plain'

  def __post_init__(self):
    for name, allowed in FORMS.items():
      if getattr(self, name) not in allowed:
        raise ValueError(
          f'the form of {name} is {getattr(self, name)!r}, not one of {allowed}'
        )

  def __str__(self):
    fields = dataclasses.asdict(self)
    if set(fields.values()) == {'plain'}:
      return 'plain'
    return ', '.join(f'{name} {form}' for name, form in fields.items())


PLAIN = Forms()

# By the name of the platform, as of `jax.Device.platform`. On the CPU as
# measured (`bench step`), on GPUs as counted in the compiled program (`bench
# plan`): cuDNN has the gradients of convolutions.
_FASTEST = {
  'cpu': Forms(convolution='ordered', lrn='closed', max_pool='compared'),
  'gpu': Forms(lrn='closed', max_pool='compared', tail='fused', dense='early'),
}


# Of the GPUs that Pallas' Triton compiles for: NVIDIA's from Ampere on.
_LEAST_CAPABILITY = 8.0


def chosen(setting: str, device) -> Forms:
  """The forms for a device.

  Args:
    setting: config.forms: `auto` or `plain`.
    device: a `jax.Device`, here or not; a platform that is not known gets the
      plain forms.

  Raises:
    ValueError: if the setting is unknown.
  """
  if setting not in ('auto', 'plain'):
    raise ValueError(f"forms is {setting!r}, not 'auto' or 'plain'")
  if setting == 'plain':
    return PLAIN
  forms = _FASTEST.get(device.platform, PLAIN)
  if forms.tail == 'fused' and not _has_triton(device):
    return dataclasses.replace(forms, tail='plain')
  return forms


def _has_triton(device):
  try:  # AMD's have names, such as gfx90a
    capability = float(getattr(device, 'compute_capability', ''))
  except ValueError:
    return False
  return capability >= _LEAST_CAPABILITY
