"""Other loaders, each in the best form that was found for it.

A function here imports its library and returns {contender: makes batches}, see
`timing.Batches`; it raises ImportError if the library is not installed. A
contender that cannot read a layout raises NotImplementedError.
"""

import functools

import numpy as np

from alexnet_jax.bench import peer_ffcv
from alexnet_jax.bench import peer_tf
from alexnet_jax.bench.examples import decoders
from alexnet_jax.bench.examples import Photographs
from alexnet_jax.bench.examples import shuffled_batches
from alexnet_jax.bench.layouts import CROP


def torch() -> dict:
  """The DataLoader with worker processes, once with each decoder."""
  import torch.utils.data

  del torch
  suffixes = {'simplejpeg': '', 'cv2': ' with cv2'}
  return {
    f'torch DataLoader{suffix}': functools.partial(_torch, name)
    for name, suffix in suffixes.items()
    if name in decoders()
  }


def _torch(name, task, count):
  import torch.utils.data

  if task.layout.kind == 'raw' and name != 'simplejpeg':
    raise NotImplementedError('there is nothing to decode')
  decode = decoders()[name]

  class Batches(torch.utils.data.Dataset):
    """Makes a whole batch in a worker, right where the consumer reads it."""

    def __init__(self):
      self.photographs = Photographs(task)
      self.rng = None

    def __len__(self):
      return len(self.photographs)

    def __getitems__(self, indices):
      if self.rng is None:
        self.rng = np.random.default_rng(torch.initial_seed())
      size = len(indices) * CROP * CROP * 3
      # Shared memory from the start, as torch's own default_collate has it.
      storage = torch.UntypedStorage._new_shared(size)
      image = torch.empty(0, dtype=torch.uint8).set_(storage)
      image = image.view(len(indices), CROP, CROP, 3)
      self.photographs.fill(image.numpy(), indices, self.rng, decode)
      return image, torch.from_numpy(self.photographs.labels[indices])

  dataset = Batches()
  order = list(shuffled_batches(len(dataset), task, count))
  loader = torch.utils.data.DataLoader(
    dataset,
    batch_sampler=[indices.tolist() for indices in order],
    num_workers=task.threads,
    collate_fn=lambda batch: batch,
    # What is open and defined here is so in the workers, too.
    multiprocessing_context='fork',
  )
  for image, label in loader:
    yield image.numpy(), label.numpy()


def grain() -> dict:
  """A source, shuffled, repeated, mapped in threads and batched."""
  import grain

  del grain
  return {
    'Grain, per example': functools.partial(_grain, decoders()['simplejpeg'])
  }


def _grain(decode, task, count):
  import grain

  photographs = Photographs(task)

  class Source:
    def __len__(self):
      return len(photographs)

    def __getitem__(self, index):
      return index

  def augment(index, rng):
    image = photographs.example(index, rng.random(3), decode)
    return {'image': image, 'label': photographs.labels[index]}

  data = grain.MapDataset.source(Source()).shuffle(seed=0).repeat()
  data = data.random_map(augment, seed=1)[: count * task.batch_size]
  # Grain's own 16 threads are slower than one per core.
  options = grain.ReadOptions(num_threads=task.threads)
  for batch in data.to_iter_dataset(options).batch(task.batch_size):
    yield batch['image'], batch['label']


def spdl() -> dict:
  """Threads of a pipeline, each of which makes whole batches."""
  import spdl.pipeline

  del spdl
  return {'SPDL': functools.partial(_spdl, decoders()['simplejpeg'])}


def _spdl(decode, task, count):
  from spdl.pipeline import PipelineBuilder

  photographs = Photographs(task)

  def make_batch(numbered):
    number, indices = numbered
    rng = np.random.default_rng(number)
    out = np.empty((len(indices), CROP, CROP, 3), np.uint8)
    photographs.fill(out, indices, rng, decode)
    return out, photographs.labels[indices]

  order = enumerate(shuffled_batches(len(photographs), task, count))
  builder = PipelineBuilder().add_source(order)
  builder = builder.pipe(make_batch, concurrency=task.threads)
  pipeline = builder.add_sink(2).build(num_threads=task.threads)
  with pipeline.auto_stop():
    yield from pipeline


# By the name for --peers.
PEERS = {
  'tf.data': peer_tf.contenders,
  'torch': torch,
  'grain': grain,
  'spdl': spdl,
  'ffcv': peer_ffcv.contenders,
}
