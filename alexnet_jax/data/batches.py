"""Batches for any trainer: uint8 images as Grain datasets, without JAX."""

import dataclasses

import grain

from alexnet_jax.data import augment, pipeline, splits
from alexnet_jax.data.loader import Loader
from alexnet_jax.errors import UserError

_CROPS = ('random', 'center', 'random_resized')
_WITHOUT_END = 2**31  # batches
_WHOLE = {  # options, and their least values
  **dict.fromkeys(('batch_size', 'crop_size', 'process_count'), 1),
  **dict.fromkeys(('resize_size', 'seed', 'num_threads', 'prefetch'), 0),
  'process_index': 0,
}


@dataclasses.dataclass(frozen=True)
class BatchOptions:
  """Sizes, crops and order of batches; a process makes its part of each."""

  batch_size: int  # examples, of all processes together
  crop_size: int = 224  # pixels
  channels: int = 3  # 1: gray, as Pillow's convert('L') of the crop in color
  # Width of the squares that crops are taken from, in pixels; 0: those of a raw
  # set, or else 256. Crops of kind `random_resized` are of the whole image.
  resize_size: int = 0
  crop: str = 'random'  # in training: random, center or random_resized
  crop_area: tuple[float, float] = (0.08, 1.0)  # of random_resized: shares
  crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)  # and width / height
  flip: bool = True  # mirrors half of the images in training
  seed: int = 0  # of the order, the crops and the flips
  unreadable: str = 'stop'  # or skip: another example stands in for it
  num_threads: int = 0  # 0: one per core
  prefetch: int = 2  # batches made ahead
  process_index: int = 0
  process_count: int = 1


def train_batches(
  source: splits.Source,
  options: BatchOptions,
  num_batches: int = _WITHOUT_END,
) -> grain.IterDataset[pipeline.Batch]:
  """Returns training batches, epoch after epoch.

  Batch t is a function of (seed, t), whatever the number of processes and
  threads. `iter(...)` gives a Grain iterator; with its `get_state` and
  `set_state` another one goes on exactly where it was. An epoch has
  source.num_examples / batch_size batches.

  Returns:
    Dicts with `image`, uint8 [b, crop_size, crop_size, channels], and `label`,
    int32 [b]; with `unreadable='skip'` also `unreadable`, bool [b].

  Raises UserError if an option makes no sense; while iterating, if an image
  cannot be decoded.
  """
  loader = _make_loader(source, options)
  if num_batches < 1:
    raise UserError(f'num_batches is {num_batches}; it must be at least 1')
  if options.batch_size > source.num_examples:
    raise UserError(
      f'batch_size is {options.batch_size}, but {source.name} has'
      f' {source.num_examples} examples'
    )
  crop = augment.Crop(
    options.crop_size, options.crop, options.crop_area, options.crop_ratio
  )
  return pipeline.train_dataset(
    loader,
    augment.Augmentation(crop, options.flip, mirrors_on_host=options.flip),
    _batching(options),
    num_steps=num_batches,
    seed=options.seed,
  )


def eval_batches(
  source: splits.Source, options: BatchOptions
) -> grain.IterDataset[pipeline.Batch]:
  """Returns the center crop of every example once, in order.

  Those that fill up the last batch have False in `mask`, bool [b]; so have
  images that are skipped. Otherwise as `train_batches`; the random options
  mean nothing here.
  """
  loader = _make_loader(source, options)
  return pipeline.eval_dataset(loader, options.crop_size, _batching(options))


def _batching(options):
  return pipeline.Batching(
    options.batch_size,
    options.prefetch,
    options.process_index,
    options.process_count,
  )


def _make_loader(source, options):
  for name, least in _WHOLE.items():
    value = getattr(options, name)
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
      raise UserError(f'{name} is {value!r}; it must be an int from {least}')
  square = getattr(source, 'square_size', 0)
  size = options.resize_size or square or 256
  batch_size, count = options.batch_size, options.process_count
  (smallest, largest), (narrow, wide) = options.crop_area, options.crop_ratio
  for name, fits, what in (
    ('process_count', not batch_size % count, f'a divisor of {batch_size=}'),
    ('process_index', options.process_index < count, f'below {count}'),
    ('resize_size', square in (0, size), f'{square}, that of the raw set'),
    ('crop_size', options.crop_size <= size, f'1 to resize_size, {size}'),
    ('channels', options.channels in (1, 3), '3, or 1 for gray'),
    ('crop', options.crop in _CROPS, f'one of {_CROPS}'),
    ('crop_area', 0 < smallest <= largest <= 1, 'shares, the smaller first'),
    ('crop_ratio', 0 < narrow <= wide, 'above 0, the smaller first'),
    ('unreadable', options.unreadable in ('stop', 'skip'), 'stop or skip'),
  ):
    if not fits:
      value = getattr(options, name)
      raise UserError(f'{name} is {value!r}; it must be {what}')
  return Loader(
    source,
    size,
    channels=options.channels,
    unreadable=options.unreadable,
    num_threads=options.num_threads,
  )
