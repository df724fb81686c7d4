"""A process that runs one contender of `bench step`.

Started by `step_process`, with the contender's name. It reads requests from
standard input and answers on standard output, a JSON object a line each;
between them it does nothing, so that only one contender computes at a time:

- {do: check, task, folder}: see `step_agreement`
- {do: build, task}: makes the network; compiles nothing
- {do: run, what: train or evaluate, steps}: {seconds, loss: of the last step},
  after a step that is not timed; the first time also {first_seconds}: of the
  first step, which compiles
- {do: time, seconds}: see `step_layers`
- {do: compiled, what}: FLOPs and memory of the compiled program; ours only
- {do: peak}: {flops_per_second} of matrix products; ours only
- {do: memory}: {resident_peak, device_peak}, in bytes; None where not known
"""

import json
import os
import sys
import time
import traceback

from alexnet_jax.bench import peer_network
from alexnet_jax.bench import step_memory
from alexnet_jax.errors import UserError

_WARM_UP = 1  # steps


def _module(contender):
  library = contender.partition(' ')[0]
  if library == 'torch':
    from alexnet_jax.bench import step_torch as module
  elif library == 'keras':
    from alexnet_jax.bench import step_keras as module
  elif contender == 'ours layers':
    from alexnet_jax.bench import step_layers as module
  else:
    from alexnet_jax.bench import step_ours as module
  return module


class Contender:
  """Answers the requests; see the module."""

  def __init__(self, name: str):
    self._name = name
    self._module = _module(name)
    self.runner = None
    self._compiled_parts = set()

  def answer(self, request: dict) -> dict:
    arguments = dict(request)
    return getattr(self, f'_{arguments.pop("do")}')(**arguments)

  def _check(self, task, folder):
    return self._module.check(self._name, task, folder)

  def _build(self, task):
    self.runner = self._module.Runner(self._name, task)
    return self.runner.describe()

  def _run(self, what, steps):
    answer = {}
    if what not in self._compiled_parts:
      self._compiled_parts.add(what)
      answer['first_seconds'], _ = self._timed(what, 1)
    # Caches and cores are the last contender's still.
    self._timed(what, _WARM_UP)
    answer['seconds'], answer['loss'] = self._timed(what, steps)
    return answer

  def _timed(self, what, count):
    start = time.perf_counter()
    for _ in range(count):
      result = self.runner.step(what)
    loss = self.runner.loss(result)
    return time.perf_counter() - start, loss

  def _time(self, seconds):
    return self.runner.time(seconds)

  def _compiled(self, what):
    return self.runner.compiled(what)

  def _peak(self):
    return {'flops_per_second': self.runner.peak()}

  def _memory(self):
    return {
      'resident_peak': step_memory.resident_bytes('VmHWM'),
      'device_peak': self.runner.device_peak(),
    }


def main() -> None:
  """Answers requests until standard input ends."""
  answers = os.fdopen(os.dup(1), 'w')
  os.dup2(2, 1)  # what libraries print must not get between the answers

  def send(answer):
    print(json.dumps(answer), file=answers, flush=True)

  contender = None
  for line in sys.stdin:
    try:
      contender = contender or Contender(sys.argv[1])
      answer = contender.answer(json.loads(line))
    except UserError as error:
      answer = {'user_error': str(error)}
    except peer_network.NotWritten as error:
      answer = {'error': str(error)}
    except Exception as error:
      last = f'{type(error).__name__}: {error}'.strip()
      answer = {'error': last, 'traceback': traceback.format_exc()}
    send(answer)
  answers.close()
  os._exit(0)  # threads of libraries may never end


if __name__ == '__main__':
  main()
