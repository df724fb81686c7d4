"""One pass through everything that a run does, in a temporary folder."""

import contextlib
import pathlib
import tempfile
import time

from alexnet_jax import cli
from alexnet_jax.training import build
from alexnet_jax.training import context
from alexnet_jax.training import distributed
from alexnet_jax.training import guards
from alexnet_jax.training import parallel
from alexnet_jax.training import state as state_lib
from alexnet_jax.training.checkpoint import Checkpoints
from alexnet_jax.training.checkpoint import SavedRun
from alexnet_jax.training.measure import evaluate

_MEAN_EXAMPLES = 256


def dry_run(
  config, stop: guards.StopSignal, console: cli.Console
) -> dict | None:
  """Does a start-up, a train step, an evaluation batch, a save and a restore.

  The pixel mean is that of a few hundred examples; everything else is what
  training does. Nothing is left behind.

  Returns:
    {step, parameters, state_digest, seconds of each part}; None in all
    processes but the first.

  Raises:
    UserError: as training does.
    RuntimeError: if the restored state differs from the saved one.
  """
  seconds, processes = {}, distributed.current()
  mesh = parallel.make_mesh()
  parallel.check_batch_size(config.global_batch_size, mesh.size)
  with tempfile.TemporaryDirectory() as folder:
    with _timed(seconds, 'start-up', console, stop):
      run = context.prepare(
        config, pathlib.Path(folder), stop, console, mean_limit=_MEAN_EXAMPLES
      )
      state, progress = context.initial_state(run)
    with _timed(seconds, 'train step', console, stop):
      iterator = build.make_train_iter(
        config, run.train_loader, 1, mesh, run.lighting
      )
      batch = run.to_devices(next(iterator))
      key = build.dropout_key(config)
      state, sums = run.steps_at(0).train(state, batch, key)
      float(sums['loss'])
    with _timed(seconds, 'evaluation batch', console, stop):
      first = next(build.make_eval_iter(config, run.eval_loader, mesh))
      evaluate(run.steps.evaluate, state, [first], run.to_devices)
    with _timed(seconds, 'save and restore', console, stop):
      saved = SavedRun(config, run.data_record, progress, iterator.get_state())
      _save_and_restore(run, state, saved)
  console.line('the dry run went through; nothing was kept')
  if not processes.is_first:
    return None
  return {**state_lib.summarize(state), 'seconds': seconds}


def _save_and_restore(run, state, saved):
  tree = state_lib.saved_tree(state)
  with Checkpoints(
    run.workdir, keep=1, processes=run.processes, check=run.stop.check
  ) as checkpoints:
    checkpoints.save(tree, saved)
    checkpoints.wait()
    restored, _ = checkpoints.restore(1, tree)
  if state_lib.state_digest(restored) != state_lib.state_digest(tree):
    raise RuntimeError('the restored state differs from the saved one')


@contextlib.contextmanager
def _timed(seconds, name, console, stop):
  """Measures and shows the seconds of one part."""
  stop.check()
  start = time.perf_counter()
  yield
  seconds[name] = time.perf_counter() - start
  console.line(f'{name}: {seconds[name]:.1f} s')
