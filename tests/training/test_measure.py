import functools

import jax
import numpy as np
import pytest

from alexnet_jax.data import pipeline, sources
from alexnet_jax.data.loader import Loader
from alexnet_jax.training import measure, parallel, step
from tests.training.steps import (
  host_batch,
  logits_of,
  make_state,
  mapped,
  mesh_of,
  SIZE,
)


@pytest.mark.parametrize(
  ('kind', 'batch'), [('pmap', 4), ('pmap', 24), ('shard_map', 100)]
)
def test_every_image_counts_once_on_four_devices(kind, batch):
  """23 images, which no batch size here divides."""
  mesh, seen, examples = mesh_of(4), [], host_batch(size=23)
  images, labels = examples.values()
  source = sources.ArraySource('noise', images, labels, tuple('abcdef'))
  measured = measure.evaluate(
    mapped(functools.partial(step.eval_step, top=3), mesh, kind),
    parallel.replicate(make_state(), mesh),
    pipeline.eval_dataset(Loader(source, SIZE), SIZE, pipeline.Batching(batch)),
    lambda one: parallel.batch_to_devices(one, mesh, kind),
    seen.append,
    num_examples=23,
  )
  assert seen == list(range(1, -(-23 // batch) + 1))
  logits = logits_of(make_state(), images)
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
  np.testing.assert_allclose(predictions.loss, losses, 1e-4, 1e-5)
  assert predictions.probabilities.shape == (23, 3)


def test_nothing_grows_with_the_square_of_the_classes():
  """What leaves the devices does not grow with the classes at all."""
  eval_step = mapped(step.eval_step, mesh_of(4), 'shard_map')
  batch = host_batch() | {'mask': np.ones(8, bool)}
  arguments = make_state(classes=5000), batch
  sums = jax.eval_shape(eval_step, *arguments)
  assert max(leaf.size for leaf in jax.tree.leaves(sums)) == 8 * 5
  program = eval_step.lower(*arguments).compile()
  assert program.memory_analysis().temp_size_in_bytes < 8 * 5000 * 4 * 20
