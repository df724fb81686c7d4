"""This package's own loader, as training uses it."""

import numpy as np

from alexnet_jax.bench.examples import cv2
from alexnet_jax.bench.layouts import CROP
from alexnet_jax.bench.layouts import open_source


def contenders() -> dict:
  """{name: makes batches}, see `timing.Batches`."""
  return {
    'ours': lambda task, count: _batches(task, count, mirrors=False),
    'ours, mirrored on the host': lambda task, count: _batches(
      task, count, mirrors=True
    ),
  }


def _batches(task, count, mirrors):
  from alexnet_jax.data import augment
  from alexnet_jax.data import pipeline
  from alexnet_jax.data.loader import Loader

  loader = Loader(
    open_source(task), task.layout.resize_size, num_threads=task.threads
  )
  iterator = pipeline.make_train_iter(
    loader,
    augment.Augmentation(augment.Crop(CROP)),
    pipeline.Batching(task.batch_size),
    num_steps=count,
    seed=0,
  )
  for batch in iterator:
    image = batch['image']
    if mirrors:
      rows = np.flatnonzero(batch['flip'])
      loader.for_each(
        lambda a, b, image=image, rows=rows: _flip(image, rows[a:b]),
        len(rows),
        chunk=16,
      )
    yield image, batch['label']


def _flip(image, rows):
  for row in rows:
    if cv2:
      cv2.flip(image[row], 1, dst=image[row])
    else:
      image[row] = image[row, :, ::-1].copy()
