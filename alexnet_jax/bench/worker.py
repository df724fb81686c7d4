"""A process that measures the contenders of one library, one at a time.

Started by `processes`, with the library's name. It reads requests from standard
input and answers on standard output, a JSON object a line each; between them it
does nothing.
"""

import functools
import json
import multiprocessing
import os
import sys
import traceback

from alexnet_jax.bench import limits
from alexnet_jax.bench import ours
from alexnet_jax.bench import timing
from alexnet_jax.bench.layouts import open_source
from alexnet_jax.bench.layouts import Task
from alexnet_jax.bench.peers import PEERS


def _contenders(library):
  """{name: (measure, check)}."""
  if library == 'limits':
    return {
      name: (measure, functools.partial(limits.check, name))
      for name, measure in limits.contenders().items()
    }
  loaders = {'ours': ours.contenders, **PEERS}[library]()
  return {
    name: (
      functools.partial(timing.images_per_second, batches),
      functools.partial(_check, batches),
    )
    for name, batches in loaders.items()
  }


def _check(batches, task):
  timing.check(batches, task, len(open_source(task).class_names))


def _answer(contenders, request):
  task = Task.from_json(request['task'])
  measure, check = contenders[request['contender']]
  try:
    if not request['batches']:
      check(task)
      return {}
    return {'images_per_second': measure(task, request['batches'])}
  except NotImplementedError as error:
    return {'skipped': str(error)}
  except Exception:
    return {'error': traceback.format_exc()}


def main() -> None:
  """Answers requests until standard input ends."""
  answers = os.fdopen(os.dup(1), 'w')
  os.dup2(2, 1)  # what libraries print must not get between the answers

  def send(answer):
    print(json.dumps(answer), file=answers, flush=True)

  try:
    contenders = _contenders(sys.argv[1])
  except ImportError as error:
    send({'missing': str(error)})
    return
  send({'contenders': list(contenders)})
  for line in sys.stdin:
    send(_answer(contenders, json.loads(line)))
  answers.close()
  for process in multiprocessing.active_children():
    process.terminate()
  os._exit(0)  # threads of libraries may never end


if __name__ == '__main__':
  main()
