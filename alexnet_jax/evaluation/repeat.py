"""Several runs of one recipe in one folder: what crossval and seeds share."""

import argparse
from collections.abc import Callable, Mapping
import dataclasses
import pathlib
from typing import Any

from alexnet_jax import cli, config as config_lib, files
from alexnet_jax.errors import UserError

_MEASURES_FILE = 'measures.json'  # in the folder of a run


def run_command(
  parser: argparse.ArgumentParser,
  work: Callable[[argparse.Namespace, Any, pathlib.Path, Any], dict],
  argv,
) -> int:
  """Runs a command that trains several times; returns its exit code.

  Args:
    parser: of the command, with its own arguments.
    work: returns the command's result; called with the arguments, the config,
      the folder and the signal that ends it.
  """
  name = parser.prog.rpartition('.')[2]
  text = f"the folder (default: runs/{name}_ and the recipe's name)"
  cli.add_recipe(parser)
  parser.add_argument('--workdir', type=cli.path, metavar='DIR', help=text)
  cli.add_json(parser)
  arguments, overrides = parser.parse_known_args(argv)
  # From here on a signal is remembered; jax is imported after that.
  from alexnet_jax.training import guards

  stop = guards.StopSignal()
  stop.install()

  def load_and_work():
    from alexnet_jax import validation

    recipe = arguments.config
    config = validation.load_config([f'--config={recipe}', *overrides])
    from alexnet_jax.training import checkpoint

    default = f'runs/{name}_{config_lib.recipe_name(recipe)}'
    workdir = pathlib.Path(arguments.workdir or default)
    if workdir.is_dir():
      files.refuse_links_in(workdir)
    if checkpoint.has_checkpoint(workdir):
      raise UserError(
        f'{workdir} is the folder of a run, not of several; name another'
      )
    return work(arguments, config, workdir, stop)

  return cli.run(load_and_work, json_output=arguments.json)


def train_each(
  runs: Mapping[pathlib.Path, tuple],
  splits: tuple[str, ...],
  measure: Callable[[Any, pathlib.Path, Any, dict], dict],
  stop,
) -> list[dict]:
  """Trains and measures the runs that are not done, one after the other.

  Args:
    runs: {folder: (config, `build.data_record`)}.
    splits: that are measured.
    measure: called with config, folder, data record and the result of the
      training; returns {step, parameters, state_digest, and of each split
      {measure: number}}, which is kept in the folder.
    stop: ends it.

  Returns:
    For each run its `workdir`, and what `measure` returned.

  Raises:
    UserError: if a run was trained with another config or on other data.
    Interrupted: after the state was saved, if a signal came.
  """
  import jax

  from alexnet_jax.training import loop

  console, results = cli.Console(), []
  # Before anything is trained, and also of the runs that are done.
  done = {folder: _stored(folder, *run, splits) for folder, run in runs.items()}
  for number, (folder, (config, record)) in enumerate(runs.items(), 1):
    stop.check()
    measured = done[folder]
    text = ' is done' if measured else ''
    console.line(f'{folder.name} ({number} of {len(runs)}){text}: {folder}')
    if not measured:
      config.report = False
      trained = loop.train_and_evaluate(config, str(folder), stop, console)
      measured = measure(config, folder, record, trained)
      files.write_json(
        folder / _MEASURES_FILE,
        {
          **measured,
          'config': config.to_dict(),
          'data': dataclasses.asdict(record),
        },
      )
      jax.clear_caches()  # or the programs of all runs would pile up
    results.append({'workdir': str(folder), **measured})
  return results


def _stored(folder, config, record, splits):
  """Reads what was measured of a run before; None if that is to be done."""
  from alexnet_jax.training import progress, resume

  kind = progress.DataRecord
  measures = {split: {str: int | float} for split in splits}
  try:
    shape = {'config': dict, 'data': progress.json_shape(kind), **measures}
    stored = files.read_json(folder / _MEASURES_FILE, shape)
    trained = config_lib.from_dict(stored.pop('config'))
    before = progress.from_fields(kind, stored.pop('data'))
  except (FileNotFoundError, ValueError, UserError):
    return None
  resume.check_config(config, folder, trained)
  resume.check_data_record(folder, before, record)
  # A run may be made longer. All else that may change leaves it as it is.
  lengths = ('num_epochs', 'num_steps')
  longer = any(trained[key] != config[key] for key in lengths)
  return None if longer else stored
