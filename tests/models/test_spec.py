"""Messages about fields that make no network, whoever wrote them."""

import math
import re

import pytest

from alexnet_jax.config import make_config
from alexnet_jax.errors import UserError
from alexnet_jax.models import spec, variants
from alexnet_jax.validation import validate

FIELDS = variants.fields('alexnet')
NUMBERS = (-1, 0, 1e300, math.inf, math.nan, True, 10**400)
OTHERS = (None, '', 'x', [], [1], {})
LISTS = [[value] * 5 for value in (10**400, None, True, 'x', [1])]
ODD = (*NUMBERS, *OTHERS, *LISTS)
LISTS_OF_LAYERS = 'pool_layers', 'norm_layers', 'bias_layers'
# The few odd values that fields take.
TAKEN = {
  **dict.fromkeys(('dropout', 'batch_norm_momentum'), (0,)),
  **dict.fromkeys(('lrn_alpha', 'lrn_beta', 'bias_init'), (-1, 0)),
  **dict.fromkeys(LISTS_OF_LAYERS, ([], [1])),
  'norm_before_relu': (0, True),
  'block_order': ([],),
  'hidden': ([], [1]),
}


def problem(**changes):
  return spec.problem({**FIELDS, **changes})


@pytest.mark.parametrize('name', FIELDS)
def test_odd_values_are_named(name):
  found = {repr(value): problem(**{name: value}) for value in ODD}
  taken = [key for key, message in found.items() if not message]
  assert taken == [repr(value) for value in TAKEN.get(name, ())]
  for message in filter(None, found.values()):
    assert name in message or 'entries for' in message


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'block_order': ('relu-norm',)}, '.*: 1 entries for 5'),
    (
      {'block_order': ('relu-norm', *('',) * 4)},
      '.*of convolution 1 must name each of relu, norm, pool once',
    ),
    ({'block_order': ('relu-lrn-pool', *('',) * 4)}, ".*'lrn' is not one of"),
    (
      {'block_order': (*('',) * 4, 'pool-spatial-spatial-relu')},
      '.*spatial more than once',
    ),
    ({'norm': 'layer'}, "norm is 'layer', not one of"),
    ({'dropout': 1.0}, 'dropout is 1.0; it takes a number from 0 below 1'),
    ({'lrn_size': 10**20 - 1}, '.*; it takes an odd number from 1 to 1023'),
    ({'hidden': (2**16 + 1,)}, '.*; it takes a list of .* from 1 to 65536'),
    ({'paddings': ((1, 2, 3), 1, 1, 1, 1)}, r'paddings is .*SAME, VALID'),
    ({'groups': (1, 5, 1, 1, 1)}, '.*: 5 must divide the 96 .* the 256 that'),
    (
      {'norm_layers': (1, 6)},
      r'norm_layers is \(1, 6\); layers count from 1 to 5',
    ),
    ({'channels': ()}, r'channels is \(\); it takes a list of one or more'),
    (
      {'block_order': ('relu-norm-pool', *('',) * 4), 'norm': 'none'},
      r"norm is 'none', but block_order is \('relu-norm-pool",
    ),
  ],
)
def test_messages(changes, message):
  assert re.match(message, problem(**changes))


def test_a_config_has_the_fields_and_their_messages():
  config = make_config()
  defaults = config.model.to_dict()
  assert {name: defaults[name] for name in FIELDS} == spec.defaults()
  config.model.block_order = (1, 2, 3, 4, 5)
  with pytest.raises(UserError, match=r'config\.model\.block_order is \(1, 2'):
    validate(config)
