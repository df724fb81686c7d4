"""Times each layer of our network by itself, for `bench step --layers`.

The layers are those that the network calls when it is traced: every flax module
in it and every function of the models' package, with the arguments it gave it.
"""

from collections.abc import Callable
from collections.abc import Iterator
import contextlib
import dataclasses
import inspect
import math
import time

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from alexnet_jax import config as config_lib
from alexnet_jax.models import alexnet as alexnet_lib
from alexnet_jax.training import build
from alexnet_jax.training import step as step_lib

_MOST_STEPS = 1000


@dataclasses.dataclass(frozen=True)
class Layer:
  """A call of a layer.

  Attributes:
    name: of the module, or of the function and what number it is.
    kind: of the module or function.
    function: (params, x, others) -> output; pure.
    params: ShapeDtypeStructs of its parameters; {} if it has none.
    x: ShapeDtypeStruct of its input.
    others: ShapeDtypeStructs of its further arrays.
    output: ShapeDtypeStruct.
    macs: multiply-adds of its kernel with the whole batch.
  """

  name: str
  kind: str
  function: Callable
  params: dict
  x: jax.ShapeDtypeStruct
  others: tuple
  output: jax.ShapeDtypeStruct
  macs: int


def trace(config, num_classes: int) -> list[Layer]:
  """The layers of the config's network in training, in order of execution."""
  model = build.make_model(config, num_classes).clone(axis_name=None)
  count = config.global_batch_size
  shape = (count, *build.image_shape(config))
  found = []

  def run(key, images):
    variables = model.init(key, images[:1])
    keys = jax.random.split(key, count)
    with _recorded(found):
      model.apply(
        variables, images, train=True, dropout_keys=keys, mutable=True
      )

  # The type of key that training has decides what dropout costs.
  key = jax.random.key(0, impl=step_lib.KEY_IMPL)
  jax.eval_shape(run, key, jax.ShapeDtypeStruct(shape, jnp.float32))
  return found


@contextlib.contextmanager
def _recorded(found: list[Layer]) -> Iterator[None]:
  """Layers that are called within the block are added to the list."""
  depth, active = 0, True

  def call(function, record):
    """Calls it; what it calls in turn is a part of it."""
    nonlocal depth
    depth += 1
    try:
      output = function()
    finally:
      depth -= 1
    if active and not depth and isinstance(output, jax.Array):
      found.append(record(output))
    return output

  def module_call(next_function, args, kwargs, context):
    module = context.module
    if module.scope.parent is None or context.method_name != '__call__':
      return next_function(*args, **kwargs)
    return call(
      lambda: next_function(*args, **kwargs),
      lambda output: _of_module(module, args, kwargs, output),
    )

  def wrapped(name, function):
    def function_call(*args, **kwargs):
      if not (args and isinstance(args[0], jax.Array)):
        return function(*args, **kwargs)
      number = 1 + sum(layer.kind == name for layer in found)
      return call(
        lambda: function(*args, **kwargs),
        lambda output: _of_function(
          name, f'{name} {number}', function, args, kwargs, output
        ),
      )

    return function_call

  with contextlib.ExitStack() as stack:
    stack.enter_context(nn.intercept_methods(module_call))
    for place, name in _functions():
      function = getattr(place, name)
      stack.callback(setattr, place, name, function)
      setattr(place, name, wrapped(name, function))
    yield
  active = False  # modules may have kept functions


def _functions():
  """(module, name) of what networks call."""
  package = _package(alexnet_lib.__name__)
  modules = [
    value
    for value in vars(alexnet_lib).values()
    if inspect.ismodule(value) and _package(value.__name__) == package
  ]
  named = [
    (module, name)
    for module in (alexnet_lib, *modules)
    for name, value in vars(module).items()
    if callable(value)
    and not inspect.isclass(value)
    and not name.startswith('_')
    and _package(value.__module__) == package
  ]
  return [*named, (nn, 'relu')]


def _package(name):
  return (name or '').rpartition('.')[0]


def _struct(value):
  return jax.ShapeDtypeStruct(value.shape, value.dtype)


def _of_module(module, args, kwargs, output):
  variables = jax.tree.map(_struct, dict(module.variables))
  params = variables.pop('params', {})
  detached = module.clone(parent=None)
  state = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), variables)

  def function(params, x, others):
    result, _ = detached.apply(
      {'params': params, **state}, x, *others, mutable=list(state), **kwargs
    )
    return result

  x, *others = args
  macs = 0
  if 'kernel' in params:
    positions = output.size // output.shape[-1]
    macs = positions * math.prod(params['kernel'].shape)
  kind = type(module).__name__
  return Layer(
    *(module.name, kind, function, params, _struct(x)),
    *(tuple(map(_struct, others)), _struct(output), macs),
  )


def _of_function(kind, name, function, args, kwargs, output):
  is_array = [isinstance(a, jax.Array) for a in args]
  fixed = [None if a else v for a, v in zip(is_array, args, strict=True)]

  def pure(params, x, others):
    del params
    arrays = iter((x, *others))
    values = [
      next(arrays) if a else v for a, v in zip(is_array, fixed, strict=True)
    ]
    return function(*values, **kwargs)

  x, *others = [_struct(v) for v, a in zip(args, is_array, strict=True) if a]
  return Layer(name, kind, pure, {}, x, tuple(others), _struct(output), 0)


class Runner:
  """Compiled forward and backward passes of all layers."""

  def __init__(self, name: str, task: dict):
    """See `step.make_task`."""
    del name
    config = config_lib.from_dict(task['config'])
    self._layers = trace(config, task['num_classes'])
    self._programs = [
      program
      for number, layer in enumerate(self._layers)
      for program in _programs(layer, needs_gradient=number > 0)
    ]

  def describe(self) -> dict:
    """{layers: [{name, kind, output, forward_flops, backward_flops}]}."""
    rows = []
    for number, layer in enumerate(self._layers):
      rows.append(
        {
          'name': layer.name,
          'kind': layer.kind,
          'output': layer.output.shape,
          'forward_flops': 2 * layer.macs,
          # There is no gradient for the image.
          'backward_flops': (4 if number else 2) * layer.macs,
        }
      )
    return {'layers': rows}

  def time(self, seconds: float) -> dict:
    """Seconds of a call of each layer, one after the other.

    Args:
      seconds: for each program at least; one call in any case.

    Returns:
      {forward, backward: a list of seconds}.
    """
    found = [_seconds(program, seconds) for program in self._programs]
    return {'forward': found[::2], 'backward': found[1::2]}


def _programs(layer, needs_gradient):
  """Forward and backward pass, ready to be called, compiled."""
  rng = np.random.default_rng(0)
  params, x, others, gradient = jax.tree.map(
    lambda s: _noise(rng, s),
    (layer.params, layer.x, layer.others, layer.output),
  )

  def backward(params, x, others, gradient):
    if needs_gradient:
      _, pull = jax.vjp(lambda p, x: layer.function(p, x, others), params, x)
    else:
      _, pull = jax.vjp(lambda p: layer.function(p, x, others), params)
    return pull(gradient)

  calls = (
    (jax.jit(layer.function), (params, x, others)),
    (jax.jit(backward), (params, x, others, gradient)),
  )
  programs = []
  for function, arguments in calls:
    program = function.lower(*arguments).compile()
    jax.block_until_ready(program(*arguments))
    programs.append((program, arguments))
  return programs


def _noise(rng, struct):
  if jnp.issubdtype(struct.dtype, jax.dtypes.prng_key):
    key = jax.random.key(0, impl=step_lib.KEY_IMPL)
    return jax.random.split(key, struct.shape)
  values = rng.standard_normal(struct.shape, np.float32)
  return jnp.asarray(values, struct.dtype)


def _seconds(program, least):
  function, arguments = program
  calls, start = 0, time.perf_counter()
  while True:
    jax.block_until_ready(function(*arguments))
    calls += 1
    seconds = time.perf_counter() - start
    if seconds >= least or calls == _MOST_STEPS:
      return seconds / calls
