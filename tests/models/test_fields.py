"""What is said of fields that make no network, whoever wrote them."""

import math
import re

import pytest

from alexnet_jax.config import flatten
from alexnet_jax.config import make_config
from alexnet_jax.errors import UserError
from alexnet_jax.models import fields as fields_lib
from alexnet_jax.models import variants
from alexnet_jax.models.alexnet import AlexNet
from alexnet_jax.validation import validate

FIELDS = variants.fields('alexnet')
ODD = (
  *(None, -1, 0, 1e300, math.inf, math.nan, '', 'x', [], [1], {}, True),
  *(10**400, [10**400] * 5, [None] * 5, [True] * 5, ['x'] * 5, [[1]] * 5),
)


def problem(**changes):
  return fields_lib.problem({**FIELDS, **changes})


@pytest.mark.parametrize('name', variants.VARIANTS)
def test_the_named_networks_are_well(name):
  assert fields_lib.problem(vars(AlexNet(**variants.fields(name)))) == ''


@pytest.mark.parametrize('name', FIELDS)
def test_odd_values_are_named(name):
  """Of 18 values at most the few that the field takes are let through."""
  for value in ODD:
    found = problem(**{name: value})
    assert found == '' or name in found or 'entries for' in found
  assert sum(problem(**{name: value}) == '' for value in ODD) < 7
  if not isinstance(FIELDS[name], bool):
    assert problem(**{name: True}) != ''


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    (
      {'block_order': (1, 2, 3, 4, 5)},
      r'block_order is \(1, 2.*it takes texts',
    ),
    ({'block_order': 'relu'}, "block_order is 'relu'; it takes a list"),
    ({'width_multiplier': math.inf}, 'width_multiplier is inf; it takes a num'),
    ({'bias_init': math.nan}, 'bias_init is nan; it takes a finite'),
    ({'dropout': 1.0}, 'dropout is 1.0; it takes at least 0, below 1'),
    ({'pool_stride': 0}, 'pool_stride is 0; it takes a whole number from 1'),
    ({'lrn_size': 4}, 'lrn_size is 4; it must be odd'),
    ({'kernels': (3, 3, 3, 3, 2.5)}, 'kernels is .*whole numbers from 1'),
    ({'paddings': ((1, 2, 3), 1, 1, 1, 1)}, r'paddings has \(1, 2, 3\)'),
    ({'paddings': (-1, 1, 1, 1, 1)}, 'paddings has -1; it takes SAME'),
    (
      {'groups': (2, 1, 1, 1, 1)},
      r'groups is .*: 2 must divide the 3 channels',
    ),
    ({'groups': (1, 5, 1, 1, 1)}, '.*: 5 must divide the 96 .* the 256 that'),
    (
      {
        'groups': (1, 2, 1, 1, 3),
        'channels': (12,) * 5,
        'width_multiplier': 0.5,
      },
      '.*: 2 must divide .* the largest of groups',
    ),
    (
      {'norm_layers': (1, 6)},
      r'norm_layers is \(1, 6\); layers count from 1 to 5',
    ),
    ({'norm_hidden': (3,)}, r'norm_hidden is \(3,\); layers count from 1 to 2'),
  ],
)
def test_what_is_wrong_is_said(changes, message):
  assert re.match(message, problem(**changes))


def test_what_nothing_would_read_is_refused():
  orders = ('relu-norm-pool', *('',) * 4)
  assert problem(block_order=orders, norm_layers=(1,)) == ''
  found = problem(block_order=orders, norm_layers=(1,), norm='none')
  assert found.startswith(
    "norm is 'none', but block_order is ('relu-norm-pool'"
  )
  for name in ('size', 'k', 'alpha', 'beta'):
    field = f'spatial_{name}'
    other = {field: FIELDS[field] + 2}
    assert problem(**other).startswith(f'{field} is {FIELDS[field] + 2}, which')
    spatial = (*('',) * 4, 'relu-spatial-pool')
    assert problem(**other, block_order=spatial) == ''


def test_a_config_says_so():
  config = make_config()
  config.model.block_order = (1, 2, 3, 4, 5)
  with pytest.raises(UserError, match=r'config\.model\.block_order is \(1, 2'):
    validate(config)
  defaults = flatten(make_config())
  assert fields_lib.problem({n: defaults[f'model.{n}'] for n in FIELDS}) == ''
