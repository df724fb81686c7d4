"""A saved run measured on its validation split, and its numbers."""

from collections.abc import Callable
import dataclasses

import numpy as np

from alexnet_jax.data import images
from alexnet_jax.data import loader as loader_lib
from alexnet_jax.data import order
from alexnet_jax.evaluation import summary
from alexnet_jax.training import build
from alexnet_jax.training import measure
from alexnet_jax.training import metrics
from alexnet_jax.training import preprocess
from alexnet_jax.training import state as state_lib

MOST_CONFUSED = 25  # pairs
MISTAKES = 20


@dataclasses.dataclass(frozen=True)
class MeasuredRun:
  """A network with its data, measured on the validation split."""

  run: measure.Network
  training: loader_lib.Loader
  validation: loader_lib.Loader
  measured: measure.Measured

  def name(self, label: int) -> str:
    return self.run.class_names[label]

  def crops(self, indices: np.ndarray) -> list[np.ndarray]:
    """Reads validation images as the network sees them, uint8 crops.

    Args:
      indices: of examples that can be decoded.
    """
    size, out = self.run.config.data.crop_size, [None] * len(indices)

    def read(start, _):
      square, _ = self.validation.square(int(indices[start]))
      out[start] = images.center_crop(square, size)

    self.validation.for_each(read, len(indices))
    return out


def load(
  workdir: str, which: str, data_path: str, tick: Callable[[], None]
) -> MeasuredRun:
  """Loads a checkpoint of a run, and measures it.

  Args:
    workdir: the run's folder.
    which: see `measure.load_network`.
    data_path: where the data lies now; '': where it lay in training.
    tick: called after each batch.

  Raises:
    UserError: if checkpoint or data are not there, or do not fit.
  """
  run = measure.load_network(workdir, which, data_path, top=1)
  training, validation = (
    measure.make_eval_loader(run, split) for split in ('train', 'validation')
  )
  measured = measure.evaluate(
    run.steps.evaluate,
    run.state,
    build.make_eval_iter(run.config, validation, run.mesh),
    run.to_devices,
    lambda batches: tick(),
    num_examples=validation.source.num_examples,
  )
  return MeasuredRun(run, training, validation, measured)


def numbers(subject: MeasuredRun) -> dict:
  """Returns all numbers of a report, as a JSON object."""
  run, source = subject.run, subject.training.source
  step = int(run.state.step)
  layers = _layers(run)
  return {
    'step': step,
    'epochs': step * run.config.global_batch_size / source.num_examples,
    'training_examples': source.num_examples,
    'examples': int(subject.measured.predictions.counts.sum()),
    'unreadable': len(subject.validation.unreadable),
    'parameters': state_lib.num_parameters(run.state),
    'forward_flops_per_image': sum(row['forward_flops'] for row in layers),
    'layers': layers,
    'metrics': subject.measured.values,
    'classes': class_rows(subject.measured.confusion, run.class_names),
    'most_confused': [
      {
        'true': subject.name(true),
        'predicted': subject.name(predicted),
        'examples': examples,
      }
      for true, predicted, examples in metrics.most_confused(
        subject.measured.confusion, MOST_CONFUSED
      )
    ],
    'mistakes': [_mistake(subject, i) for i in worst_mistakes(subject)],
  }


def class_rows(confusion: np.ndarray, class_names: list[str]) -> list[dict]:
  """Returns the measures of each class; its name is `class`; JSON."""
  measures = dataclasses.asdict(metrics.class_measures(confusion))
  first = (*metrics.MEASURES, 'support')
  order = (*first, *(name for name in measures if name not in first))
  return [
    {'class': name} | {key: measures[key][i].item() for key in order}
    for i, name in enumerate(class_names)
  ]


def evenly_chosen(subject: MeasuredRun, count: int) -> np.ndarray:
  """Chooses at most `count` examples evenly from those that count."""
  there = np.flatnonzero(subject.measured.predictions.counts)
  positions = np.linspace(0, len(there) - 1, min(count, len(there)))
  return there[positions.round().astype(int)]


def worst_mistakes(subject: MeasuredRun) -> np.ndarray:
  """Finds the wrong examples of the highest loss, the worst first."""
  seen = subject.measured.predictions
  wrong = np.flatnonzero(seen.counts & (seen.classes[:, 0] != seen.labels))
  return wrong[np.argsort(-seen.loss[wrong], kind='stable')][:MISTAKES]


def augmented(subject: MeasuredRun, count: int) -> list[tuple]:
  """Returns training images of step 0 before and after augmentation.

  Returns:
    (before: uint8 [size, size, 3], after: uint8 [crop, crop, 3], class name,
    what was changed apart from the crop) of each, at most `count`. Images that
    cannot be decoded are left out.
  """
  config, loader = (
    subject.run.config.copy_and_resolve_references(),
    subject.training,
  )
  # The first draws of a batch do not depend on how many follow.
  config.global_batch_size = min(count, config.global_batch_size)
  color = build.stored_lighting(config, subject.run.workdir)
  batch = next(
    build.make_train_iter(config, loader, 1, subject.run.mesh, color)
  )
  positions = order.batch_positions(0, config.global_batch_size)
  indices = order.examples_at(
    positions, loader.source.num_examples, config.seed
  )
  after = np.uint8(np.clip(np.round(preprocess.augment(batch)), 0, 255))
  rows = []
  for i, index in enumerate(indices):
    if (square := loader.square(int(index))) is not None:
      name = subject.name(square[1])
      rows.append((square[0], after[i], name, _change(batch, i)))
  return rows


def _change(batch, i):
  """Describes what was done to an image apart from the crop."""
  words = ['mirrored'] if 'flip' in batch and batch['flip'][i] else []
  if 'brightness' in batch:
    words.append(f'{batch["brightness"][i]:+.0f}')
  if 'color' in batch:
    words.append(' '.join(f'{level:+.0f}' for level in batch['color'][i]))
  return ' '.join(words)


def _mistake(subject, index):
  seen = subject.measured.predictions
  return {
    'file': subject.validation.source.describe(int(index)),
    'true': subject.name(seen.labels[index]),
    'predicted': subject.name(seen.classes[index, 0]),
    'probability': float(seen.probabilities[index, 0]),
    'loss': float(seen.loss[index]),
  }


def _layers(run):
  """Returns a JSON object for each layer, in order of execution."""
  model = build.make_model(run.config, len(run.class_names))
  params, rows = summary.layer_table(model, build.image_shape(run.config))
  return [
    {
      'layer': name,
      'output': summary.times(output),
      'parameters': summary.count(params.get(name)),
      'forward_flops': 2 * macs,
    }
    for name, output, macs in rows
  ]
