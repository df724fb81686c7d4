"""Runs that are trained only to be timed."""

from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
import contextlib
import pathlib
import shlex
import shutil
import tempfile

from alexnet_jax.errors import UserError


def keys(num_steps: int, save_every: int = 0) -> dict:
  """{config key: value} that leave a run nothing but steps and saves.

  Nothing is compiled, evaluated or drawn after the first step and before the
  last one.

  Args:
    num_steps: of the run.
    save_every: steps between checkpoints; 0: only one, at the end.
  """
  return {
    'num_epochs': 0.0,
    'num_steps': num_steps,
    'eval_every_epochs': 0.0,
    'eval_every_steps': num_steps,
    'save_every_epochs': 0.0,
    'save_every_steps': save_every,
    'histogram_every_evals': 0,
    'report': False,
    'early_stopping.enabled': False,
    'init.unfreeze_epochs': 0.0,
    'init.unfreeze_steps': 0,
  }


def refuse_own(
  overrides: Sequence[str], own: Iterable[str], options: str
) -> None:
  """Refuses overrides of config keys that the command sets itself.

  Args:
    overrides: arguments as `--config.KEY=VALUE`.
    own: those keys.
    options: of the command, that set some of them; for the message.

  Raises:
    UserError: if there is one among them.
  """
  own = {f'--config.{key}' for key in own}
  if taken := [text for text in overrides if text.partition('=')[0] in own]:
    raise UserError(f'{shlex.join(taken)}: set by this command ({options})')


@contextlib.contextmanager
def workdir(folder: pathlib.Path) -> Iterator[pathlib.Path]:
  """A fresh folder for one run, removed with all that the run wrote.

  Args:
    folder: keeps the mean of the pixels from the first run for the next ones:
      another pass over all images may take long.
  """
  from alexnet_jax.data.pixel_statistics import MEAN_FILE

  kept = folder / MEAN_FILE
  with tempfile.TemporaryDirectory(dir=folder) as name:
    place = pathlib.Path(name)
    if kept.exists():
      shutil.copy(kept, place)
    yield place
    if (place / MEAN_FILE).exists():
      shutil.copy(place / MEAN_FILE, kept)
