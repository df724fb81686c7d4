import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_jax.data import pipeline, sources
from alexnet_jax.data.loader import Loader
from alexnet_jax.training import measure, parallel, step

OPTIONS = step.StepOptions(0.0, 1.0)


class MeanColor:
  """A state whose logits follow the mean red of an image."""

  eval_params = batch_stats = ()

  def __init__(self, classes=6):
    self.classes = classes

  def apply_fn(self, variables, images, train):
    del variables
    assert not train
    red = images[..., 0].mean((1, 2))[:, None]
    return -jnp.abs(red - jnp.arange(self.classes)[None, :] * 40.0) / 20


jax.tree_util.register_pytree_node(
  MeanColor,
  # With no leaf at all pmap would take the batch's for its arguments.
  lambda state: ((np.zeros(1),), state.classes),
  lambda classes, children: MeanColor(classes),
)


def evaluate(source, batch_size, kind, progress=lambda done: None):
  mesh = parallel.make_mesh()
  eval_step = parallel.map_over_devices(
    functools.partial(step.eval_step, options=OPTIONS, top=3), mesh, kind
  )
  return measure.evaluate(
    eval_step,
    MeanColor(),
    pipeline.eval_dataset(Loader(source, 8), 8, pipeline.Batching(batch_size)),
    lambda batch: parallel.batch_to_devices(batch, mesh, kind),
    progress,
    num_examples=source.num_examples,
  )


@pytest.mark.parametrize(
  ('kind', 'batch'), [('pmap', 4), ('pmap', 24), ('shard_map', 100)]
)
def test_every_image_counts_once_on_four_devices(kind, batch):
  """23 images, which no batch size here divides."""
  rng = np.random.default_rng(0)
  images = np.zeros((23, 8, 8, 3), np.uint8)
  images[..., 0] = rng.integers(0, 240, 23)[:, None, None]
  labels = rng.integers(0, 6, 23).astype(np.int32)
  source = sources.ArraySource('reds', images, labels, tuple('abcdef'))
  seen = []
  measured = evaluate(source, batch, kind, seen.append)
  assert seen == list(range(1, -(-23 // batch) + 1))
  red = images[:, 0, 0, :1].astype(float)
  logits = -np.abs(red - np.arange(6) * 40) / 20
  ranks = (-logits).argsort(1, kind='stable')
  losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(23), labels]
  values = measured.values
  assert values['eval/loss'] == pytest.approx(losses.mean(), rel=1e-6)
  assert values['eval/top1'] == (ranks[:, 0] == labels).mean()
  assert values['eval/top5'] == (ranks[:, :5] == labels[:, None]).any(1).mean()
  confusion = np.zeros((6, 6))
  np.add.at(confusion, (labels, ranks[:, 0]), 1)
  np.testing.assert_array_equal(measured.confusion.toarray(), confusion)
  assert values['eval/micro_f1'] == pytest.approx(values['eval/top1'])
  predictions = measured.predictions
  np.testing.assert_array_equal(predictions.labels, labels)
  assert predictions.counts.all()
  np.testing.assert_array_equal(predictions.classes[:, 0], ranks[:, 0])
  np.testing.assert_allclose(predictions.loss, losses, rtol=1e-4)
  assert predictions.probabilities.shape == (23, 3)


def test_nothing_grows_with_the_square_of_the_classes():
  """What leaves the devices does not grow with the classes at all."""
  mesh = parallel.make_mesh()
  eval_step = parallel.map_over_devices(
    functools.partial(step.eval_step, options=OPTIONS), mesh, 'shard_map'
  )
  batch = {
    'image': jax.ShapeDtypeStruct((8, 4, 4, 3), np.uint8),
    'label': jax.ShapeDtypeStruct((8,), np.int32),
    'mask': jax.ShapeDtypeStruct((8,), bool),
  }
  sums = jax.eval_shape(eval_step, MeanColor(5000), batch)
  assert max(leaf.size for leaf in jax.tree.leaves(sums)) == 8 * 5
  program = eval_step.lower(MeanColor(5000), batch).compile()
  assert program.memory_analysis().temp_size_in_bytes < 8 * 5000 * 4 * 20
