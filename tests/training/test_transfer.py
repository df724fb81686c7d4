import functools

import jax
import numpy as np
import pytest

from alexnet_jax.errors import UserError
from alexnet_jax.training import transfer
from tests.training import steps

make_state = functools.partial(steps.make_state, norm='batch')
LAYERS = ('conv1', 'conv2', 'dense1', 'head')
NAMES = [f'{layer}/{leaf}' for layer in LAYERS for leaf in ('bias', 'kernel')]
NAMES += [f'norm{i}/{leaf}' for i in (1, 2) for leaf in ('bias', 'scale')]


@pytest.mark.parametrize(
  ('patterns', 'expected'),
  [
    ((), set()),
    (('conv1',), {'conv1/kernel', 'conv1/bias'}),
    (('conv?/kernel',), {'conv1/kernel', 'conv2/kernel'}),
    (('norm1', '*/scale'), {'norm1/bias', 'norm1/scale', 'norm2/scale'}),
    (('[!h]*',), {name for name in NAMES if not name.startswith('head')}),
  ],
)
def test_patterns(patterns, expected):
  assert transfer.matching(NAMES, patterns, 'key') == expected


def test_patterns_that_fit_nothing_or_everything_are_refused():
  with pytest.raises(
    UserError, match=r"key: .* fits 'cnov1'; the layers are conv1, conv2"
  ):
    transfer.matching(NAMES, ('conv1', 'cnov1'), 'key')
  with pytest.raises(UserError, match='nothing is left to train'):
    transfer.frozen_names(make_state(), ('*',))


@pytest.mark.parametrize('ema', [False, True])
def test_all_weights_and_statistics_are_taken(ema):
  """The averaged weights, where there are some."""
  fresh, other = make_state(seed=0, ema=ema), make_state(seed=1, ema=ema)
  other = other.replace(
    step=other.step + 7,
    batch_stats=jax.tree.map(lambda leaf: leaf + 3, other.batch_stats),
    ema_params=jax.tree.map(lambda leaf: leaf / 2, other.ema_params),
  )
  state = transfer.start_from(fresh, other, (), 'there')
  for mine, theirs in (
    (state.params, other.eval_params),
    (state.batch_stats, other.batch_stats),
    (state.ema_params, other.ema_params),
  ):
    jax.tree.map(np.testing.assert_array_equal, mine, theirs)
  assert state.step == 0
  assert fresh.opt_state is state.opt_state
  skipped = transfer.start_from(fresh, other, ('norm1',), 'there').batch_stats
  assert (skipped['norm1']['mean'] == 0).all()
  assert (skipped['norm2']['mean'] == 3).all()


def test_two_spellings_of_an_accent_are_one_class():
  one, other = 'caf\N{LATIN SMALL LETTER E WITH ACUTE}', 'cafe\u0301'
  assert transfer.same_classes([one, 'tea'], [other, 'tea'])
  assert not transfer.same_classes([one, 'tea'], ['cafe', 'tea'])
