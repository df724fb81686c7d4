"""The commands as functions: train, open a run, predict, evaluate."""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import os

import ml_collections

from alexnet_jax import cli
from alexnet_jax import predict as predict_lib
from alexnet_jax import runtime
from alexnet_jax import validation
from alexnet_jax.errors import UserError


def load_config(
  recipe: str = 'quickstart', overrides: Mapping[str, object] | None = None
) -> ml_collections.ConfigDict:
  """Reads a recipe and changes some of its keys.

  Args:
    recipe: a file, or the name of one of the package's own; `:ARGUMENT` may
      follow.
    overrides: {'data.path': 'photos', ...}.

  Raises:
    UserError: if the recipe is missing, a key unknown or a value refused.
  """
  changed = (overrides or {}).items()
  keys = [f'--config.{key}={value}' for key, value in changed]
  return validation.load_config([f'--config={recipe}', *keys])


def train(
  config: ml_collections.ConfigDict,
  workdir: str | os.PathLike,
  on_evaluation: Callable[[int, dict[str, float]], None] | None = None,
) -> dict:
  """Trains a run, or goes on with it, in this process.

  Unlike the command it leaves signals to the caller: what comes after the last
  checkpoint is lost if the process is ended.

  Args:
    config: see `load_config`.
    workdir: the run's folder.
    on_evaluation: called with step and metrics of each evaluation; what it
      raises ends the run.

  Returns:
    The last evaluation's metrics, step, parameters, state_digest and
    images_per_second.

  Raises:
    UserError: if config, data or checkpoints do not fit.
    NonFiniteLossError: if the loss is NaN or infinite.
  """
  runtime.configure()
  from alexnet_jax.training import guards
  from alexnet_jax.training import loop

  return loop.train_and_evaluate(
    config,
    os.fspath(workdir),
    guards.StopSignal(),
    cli.Console(),
    on_evaluation or (lambda step, values: None),
  )


@dataclasses.dataclass(frozen=True)
class Run:
  """A checkpoint of a run; `open_run` makes it.

  Attributes:
    workdir: the run's folder.
    step: number of updates that made the weights.
    config: of the training.
    class_names: in the order of the labels.
    metrics: of the run's last evaluation up to this step; may be empty.
    params, batch_stats: the weights, as flax' AlexNet takes them.
  """

  workdir: str
  step: int
  config: ml_collections.ConfigDict
  class_names: Sequence[str]
  metrics: Mapping[str, float]
  params: Mapping
  batch_stats: Mapping

  def history(self) -> list[dict[str, float]]:
    """Returns the rows of metrics.jsonl."""
    from alexnet_jax.training import writers

    return writers.read_rows(self.workdir)

  def predict(
    self, images: Sequence, top: int = 5
  ) -> list[list[tuple[str, float]]]:
    """Returns (class, probability) of the best classes of each image.

    Args:
      images: paths of files, their bytes, PIL images, or arrays: uint8
        [height, width, 3] in RGB or [height, width].
      top: number of classes.

    Raises:
      UserError: if an image cannot be read.
    """
    from alexnet_jax.training import measure

    if isinstance(images, str | os.PathLike | bytes) or not len(images):
      raise UserError(f'images is {images!r:.80}; give a list of images')
    network = measure.load_network(self.workdir, str(self.step), top=top)
    answers, reasons, _ = predict_lib.predict(network, images)
    for name, reason in reasons.items():
      raise UserError(f'{name} cannot be read: {reason}')
    return answers

  def evaluate(
    self, data_path: str = '', split: str = 'validation', crops: int = 1
  ) -> dict:
    """Returns the measures of a split, as `evaluation.evaluate` does.

    Args:
      data_path: where the data lies; '': where it lay in training.
      split: `validation`, `train`, or a split of TFDS.
      crops: 1 or 10.
    """
    from alexnet_jax.evaluation import evaluate

    return evaluate.evaluate(
      self.workdir, str(self.step), data_path, split, crops
    )


def open_run(workdir: str | os.PathLike, checkpoint: str = 'final') -> Run:
  """Opens a checkpoint of a run; the run may be training at the same time.

  Args:
    workdir: the run's folder.
    checkpoint: `final`, `newest`, `best` or the number of a step.

  Raises:
    UserError: if there is no run or checkpoint, or it is damaged.
  """
  runtime.configure()
  from alexnet_jax.training import checkpoint as checkpoint_lib

  run = checkpoint_lib.open_run(workdir, str(checkpoint))
  return Run(
    os.fspath(workdir),
    int(run.state.step),
    run.config,
    run.class_names,
    run.saved.progress.last_evaluation,
    run.state.params,
    run.state.batch_stats,
  )
