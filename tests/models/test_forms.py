import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_jax.models import forms
from alexnet_jax.models import fused
from alexnet_jax.models.alexnet import AlexNet
from tests.some_slow import some_slow

SMALL = {
  'num_classes': 5,
  'channels': (32, 32, 32),  # enough for Winograd's way in each group
  'kernels': (7, 5, 3),
  'strides': (3, 1, 1),
  'paddings': ((2, 1), 'SAME', 'SAME'),
  'groups': (1, 2, 2),
  'pool_layers': (1, 2),
  'hidden': (16,),
  'bias_layers': (2,),
  'lrn_alpha': 0.05,
  'kernel_init': 'he',
}


def device(platform, **fields):
  return types.SimpleNamespace(platform=platform, **fields)


CPU, GPU = device('cpu'), device('gpu', compute_capability='9.0')


def loss_and_grads(network, dtype, **fields):
  model = AlexNet(**SMALL, dtype=dtype, **fields)
  images = jax.random.normal(jax.random.key(0), (6, 47, 44, 3))
  variables = model.init(jax.random.key(1), images)
  keys = jax.random.split(jax.random.key(2), 6)

  def loss(params):
    logits, _ = model.clone(forms=network).apply(
      {**variables, 'params': params},
      images,
      train=True,
      dropout_keys=keys,
      mutable=['batch_stats'],
    )
    return jnp.square(logits - 1).mean()

  return jax.jit(jax.value_and_grad(loss))(variables['params'])


@pytest.mark.parametrize(
  ('place', 'norm', 'dtype', 'tolerance'),
  some_slow(
    [
      (CPU, 'lrn', jnp.float32, 2e-5),
      (GPU, 'lrn', jnp.float32, 2e-5),
      (CPU, 'batch', jnp.float32, 2e-5),
      (GPU, 'batch', jnp.float32, 2e-5),
      (CPU, 'lrn', jnp.bfloat16, 0.05),
      (GPU, 'lrn', jnp.bfloat16, 0.05),
    ],
    quick=[(GPU, 'batch', jnp.float32, 2e-5)],
  ),
)
def test_a_network_of_other_forms_is_the_same(
  place, norm, dtype, tolerance, monkeypatch
):
  for name in ('lrn_max_pool', 'relu_max_pool'):  # there is no GPU
    kernel = functools.partial(getattr(fused, name), interpret=True)
    monkeypatch.setattr(fused, name, kernel)
  chosen = forms.chosen('auto', place)
  assert chosen != forms.PLAIN
  value, grads = loss_and_grads(chosen, dtype, norm=norm)
  plain_value, plain_grads = loss_and_grads(forms.PLAIN, dtype, norm=norm)
  np.testing.assert_allclose(value, plain_value, rtol=tolerance)
  for ours, plain in zip(
    jax.tree.leaves(grads), jax.tree.leaves(plain_grads), strict=True
  ):
    atol = tolerance * float(jnp.abs(plain).max())
    np.testing.assert_allclose(ours, plain, rtol=0, atol=atol)


def test_plain_forms_are_a_setting_away():
  assert forms.chosen('plain', CPU) == forms.PLAIN
  assert forms.chosen('auto', device('tpu')) == forms.PLAIN
  assert str(forms.PLAIN) == 'plain'
  assert 'lrn closed' in str(forms.chosen('auto', CPU))


def test_kernels_of_triton_are_for_gpus_that_have_it():
  for capability, tail in (
    ('9.0', 'fused'),
    ('8.0', 'fused'),
    ('7.5', 'plain'),
  ):
    gpu = device('gpu', compute_capability=capability)
    assert forms.chosen('auto', gpu).tail == tail
  for gpu in (device('gpu', compute_capability='gfx90a'), device('gpu')):
    assert forms.chosen('auto', gpu).tail == 'plain'
    assert forms.chosen('auto', gpu).lrn == 'closed'


def test_unknown_forms_are_refused():
  with pytest.raises(ValueError, match="forms is 'fast'"):
    forms.chosen('fast', CPU)
  with pytest.raises(ValueError, match="lrn is 'fft'"):
    forms.Forms(lrn='fft')
