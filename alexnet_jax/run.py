"""The commands as functions: train, open a run, predict, measure, features."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import os
import sys
from typing import Any

import ml_collections
import numpy as np

from alexnet_jax import cli, files, predict as predict_lib, runtime, validation
from alexnet_jax.errors import UserError


def load_config(
  recipe: str = 'quickstart', overrides: Mapping[str, object] | None = None
) -> ml_collections.ConfigDict:
  """Reads a recipe and changes some of its keys.

  Args:
    recipe: a file, or the name of one of the package's own; `:ARGUMENT` may
      follow.
    overrides: {'data.path': 'photos', ...}.

  Raises UserError if the recipe is missing, a key unknown or a value refused.
  """
  changed = (overrides or {}).items()
  keys = [f'--config.{key}={value}' for key, value in changed]
  return validation.load_config([f'--config={recipe}', *keys])


def train(
  config: ml_collections.ConfigDict,
  workdir: str | os.PathLike[str],
  on_step: Callable[[int, dict[str, float]], None] | None = None,
  on_evaluation: Callable[[int, dict[str, float]], None] | None = None,
) -> dict[str, Any]:
  """Trains a run, or goes on with it, in this process, and draws its report.

  Unlike the command it leaves signals to the caller: what comes after the last
  checkpoint is lost if the process is ended.

  Args:
    config: see `load_config`.
    workdir: the run's folder.
    on_step: called with the number and the metrics of each step, in order:
      {train/loss, train/top1, ...}, floats, of its batch before the update;
      while the next step is under way, or before an evaluation or save. What it
      raises ends the run. Steps made again are told again.
    on_evaluation: called with step and metrics of each evaluation; what it
      raises ends the run.

  Returns:
    The last evaluation's metrics, step, parameters, state_digest,
    images_per_second and seconds: of all processes of the run, by kind.

  Raises UserError if config, data or checkpoints do not fit, and
  NonFiniteLossError if the loss is NaN or infinite.
  """
  runtime.configure()
  from alexnet_jax.training import guards, loop

  config = config.copy_and_resolve_references()
  validation.validate(config)
  validation.make_paths_absolute(config)
  path, stop = files.local_path(os.fspath(workdir)), guards.StopSignal()
  hooks = loop.Hooks(on_step, on_evaluation)
  result = loop.train_and_evaluate(config, path, stop, cli.Console(), hooks)
  draw_report(config, path, stop.check)
  return result


def draw_report(config, workdir: str, check: Callable[[], None]) -> None:
  """Draws the report of a run that is done, if its config wants one.

  `check` is called now and then, and may raise.
  """
  if not config.report:
    return
  from alexnet_jax.evaluation import report

  try:
    report.show(report.write(workdir, 'final', config.data.path, check))
  except (UserError, OSError) as error:
    # It could not be drawn, but the run is complete.
    print(f'no report: {error}', file=sys.stderr)


@dataclasses.dataclass(frozen=True)
class Run:
  """A checkpoint of a run; `open_run` makes it."""

  workdir: str
  # Of the training.
  config: ml_collections.ConfigDict = dataclasses.field(repr=False)
  class_names: Sequence[str]  # in the order of the labels
  step: int  # number of updates that made the weights
  metrics: Mapping[str, float]  # of the last evaluation until then, if any
  _network: object = dataclasses.field(repr=False)

  def history(self) -> list[dict[str, object]]:
    """Returns the rows of metrics.jsonl.

    Each has a step and numbers by name; `train/step_losses` is a list, and the
    row of the steps after the last log point has `last`: True.
    """
    from alexnet_jax.training import writers

    return writers.read_rows(self.workdir)

  def predict(
    self, images: Sequence[object] | np.ndarray
  ) -> list[list[tuple[str, float]]]:
    """Returns (class, probability) of the best classes of each image.

    The images are paths of files, their bytes, PIL images, or arrays: uint8
    [height, width, 3] in RGB or [height, width]; also one array of images, [n,
    height, width, 3 or 1]. A network of gray images sees them in gray. Raises
    UserError if one cannot be read.
    """
    _check_images(images)
    return predict_lib.predict(self._network, images)[0]

  def features(
    self, images: Sequence[object] | np.ndarray, layer: str = 'dense2'
  ) -> np.ndarray:
    """Returns the outputs of a layer for images, float32 [n, ...].

    Images are those of `predict`, layers those that `main --summary` shows. The
    ReLU directly after a layer belongs to its output. Raises UserError if there
    is no such layer, or an image cannot be read.
    """
    from alexnet_jax.evaluation import features

    _check_images(images)
    return features.of_images(self._network, images, layer)

  def evaluate(
    self,
    data_path: str = '',
    split: str = 'validation',
    **options: int | str | bool,
  ) -> dict[str, float | str]:
    """Returns the measures of a split, as `evaluation.evaluate` does.

    Args:
      data_path: where the data lies; '': where it lay in training.
      split: `validation`, `train`, or a split of TFDS.
      **options: crops, 1 or 10; data_source, subset, per_example: see
        `evaluation.evaluate.Options`.
    """
    from alexnet_jax.evaluation import evaluate

    options |= {'data_path': files.local_path(data_path), 'split': split}
    return evaluate.evaluate(self.workdir, str(self.step), **options)


def _check_images(images):
  is_list = isinstance(images, list | tuple) or np.ndim(images) == 4
  if not is_list or not len(images):
    raise UserError(
      f'images is {type(images).__name__}; give a list of images, not empty'
    )


def open_run(
  workdir: str | os.PathLike[str], checkpoint: str | int = 'final', top: int = 5
) -> Run:
  """Opens a checkpoint of a run; the run may be training at the same time.

  Args:
    workdir: the run's folder.
    checkpoint: `final`, `newest`, `best` or the number of a step.
    top: number of the best classes that `Run.predict` tells.

  Raises UserError if there is no run or checkpoint, or it is damaged.
  """
  runtime.configure()
  from alexnet_jax.evaluation import loading

  path = files.local_path(os.fspath(workdir))
  network = loading.load_network(path, str(checkpoint), top=top)
  step, metrics = (
    int(network.state.step),
    network.saved.progress.last_evaluation,
  )
  names = network.class_names
  return Run(path, network.config, names, step, metrics, network)
