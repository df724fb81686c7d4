"""One pass through everything that a run does, in a temporary folder."""

import contextlib
import pathlib
import tempfile
import time

from alexnet_jax.training import build
from alexnet_jax.training import guards
from alexnet_jax.training import parallel
from alexnet_jax.training import setup
from alexnet_jax.training import state as state_lib
from alexnet_jax.training.console import Console
from alexnet_jax.training.measure import evaluate
from alexnet_jax.training.processes import ALONE
from alexnet_jax.training.processes import Processes
from alexnet_jax.training.shared_checkpoints import SharedCheckpoints

_MEAN_EXAMPLES = 256


def run(
  config,
  stop: guards.StopSignal,
  console: Console,
  processes: Processes = ALONE,
) -> dict | None:
  """Start-up, one train step, one evaluation batch, one save and restore.

  The pixel mean is that of a few hundred examples; everything else is what
  training does. Nothing is left behind.

  Returns:
    {step, parameters, state_digest, seconds of each part}; None in all
    processes but the first.

  Raises:
    UserError: as training does.
    RuntimeError: if the restored state differs from the saved one.
  """
  seconds = {}
  mesh = parallel.make_mesh()
  parallel.check_batch_size(config.global_batch_size, mesh.size)
  with tempfile.TemporaryDirectory() as folder:
    with _timed(seconds, 'start-up', console, stop):
      path = pathlib.Path(folder)
      parts = setup.prepare(
        *(config, path, mesh, stop, console),
        mean_limit=_MEAN_EXAMPLES,
        processes=processes,
      )
      state, progress = setup.create(parts)
    with _timed(seconds, 'train step', console, stop):
      iterator = build.make_train_iter(
        config, parts.train_loader, 1, mesh, parts.color
      )
      batch = parts.to_devices(next(iterator))
      key = build.dropout_key(config)
      state, sums = parts.steps_at(0).train(state, batch, key)
      float(sums['loss'])
    with _timed(seconds, 'evaluation batch', console, stop):
      first = next(build.make_eval_iter(config, parts.eval_loader, mesh))
      evaluate(parts.steps.evaluate, state, [first], parts.to_devices)
    with _timed(seconds, 'save and restore', console, stop):
      digest = _save_and_restore(parts, state, progress, path)
  console.line('the dry run went through; nothing was kept')
  if not processes.is_first:
    return None
  return {
    'step': int(state.step),
    'parameters': state_lib.num_parameters(state),
    'state_digest': digest,
    'seconds': seconds,
  }


def _save_and_restore(parts, state, progress, path):
  checkpoints = SharedCheckpoints(
    path, keep=1, processes=parts.processes, check=parts.stop.check
  )
  tree = state_lib.saved_tree(state)
  run = {
    'progress': progress.to_json(),
    'data': parts.data_record,
    'config': parts.config.to_dict(),
  }
  try:
    checkpoints.save(tree, run)
    checkpoints.wait()
    restored, _ = checkpoints.restore(1, tree)
  finally:
    checkpoints.close()
  digest = state_lib.state_digest(tree)
  if state_lib.state_digest(restored) != digest:
    raise RuntimeError('the restored state differs from the saved one')
  return digest


@contextlib.contextmanager
def _timed(seconds, name, console, stop):
  """Notes and shows how long a part took."""
  stop.check()
  start = time.perf_counter()
  yield
  seconds[name] = time.perf_counter() - start
  console.line(f'{name}: {seconds[name]:.1f} s')
