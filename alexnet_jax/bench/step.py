"""bench step: the train step by itself, PyTorch and Keras beside it.

All must compute the same: from equal weights and on equal images each makes a
few updates without dropout, and the losses before each of them must agree. The
weights are those of an initialization under which the losses of different
networks differ: with the paper's, every network says ln(classes).
"""

from collections.abc import Mapping, Sequence
import contextlib
import importlib.util
import itertools

import numpy as np

from alexnet_jax import cli, config as config_lib, validation
from alexnet_jax.bench import harness, step_peers
from alexnet_jax.errors import (
  EXIT_DONE,
  EXIT_FAILURE,
  how_to_install,
  UserError,
)
from alexnet_jax.models import variants
from alexnet_jax.models.costs import gpu_peak
from alexnet_jax.training import build

DESCRIPTION = """\
Times the train step that training runs, on a batch that stays on the devices,
every network with every batch size. --against runs the same in PyTorch and in
Keras on TensorFlow, in turn in every round, after they have shown that from
equal weights and images they make the same updates. One that fails is named and
left out; if none is left, the exit code is 1."""

PEERS = {
  'torch': ('torch eager', 'torch channels_last', 'torch compile'),
  'keras': ('keras plain', 'keras jit_compile'),
}
_NEEDED = {'torch': ('torch',), 'keras': ('keras', 'tensorflow')}
_NUM_CLASSES = 1000  # where neither config nor data say otherwise
# Of these the recipe counts: they say how a network begins.
_OF_THE_RECIPE = {'kernel_init', 'bias_init', 'width_multiplier'}
_ENVIRONMENT = {
  'KERAS_BACKEND': 'tensorflow',
  'TF_CPP_MIN_LOG_LEVEL': '3',
  # Several processes share a GPU, one of which computes at a time.
  'XLA_PYTHON_CLIENT_PREALLOCATE': 'false',
  'TF_FORCE_GPU_ALLOW_GROWTH': 'true',
}
# Relative: for other orders of sums, or roundings at other places.
_TOLERANCES = {'float32': 1e-3, 'bfloat16': 3e-2}
# In tolerances: a smaller change of the losses would hide wrong updates.
_LEAST_CHANGE = 2


def add_arguments(parser) -> None:
  """Adds the arguments of the subcommand to its parser."""
  add = parser.add_argument
  cli.add_recipe(parser)
  for flag, text in (
    ('networks', "names of models/variants.py (default: the recipe's network)"),
    ('batch_sizes', "images of a step, on all devices (default: the recipe's)"),
    ('against', f'torch, keras, {", ".join(sum(PEERS.values(), ()))}'),
  ):
    add(f'--{flag}', type=harness.names, default=(), metavar='A,B', help=text)
  text = 'measures our step with each value of a key: parallel=pmap,shard_map'
  add('--vary', action='append', default=[], metavar='KEY=A,B', help=text)
  add('--evaluation', action='store_true', help='also the evaluation step')
  add('--rounds', type=cli.positive, default=5, help='default: 5')
  text = 'that a measurement of more than 2 steps takes at least (default: 3)'
  add('--seconds', type=float, default=3.0, help=text)
  add('--skip_check', action='store_true', help='does not compare the losses')
  parser.set_defaults(exit_code=exit_code, config='imagenet')


def run(arguments, overrides: list[str]) -> dict:
  """Measures; returns the result of the command."""
  peers = _peers(arguments.against)
  if not 0 < arguments.seconds < float('inf'):
    raise UserError(f'--seconds is {arguments.seconds:g}; give more than 0')
  groups = make_groups(arguments, overrides)
  for _, configs in groups if peers else ():
    for config in configs.values():
      step_peers.check_config(config)
  result = {
    **harness.header(),
    'recipe': arguments.config,
    'rounds': arguments.rounds,
    'groups': [],
  }
  for network, configs in groups:
    result['groups'].append(measure(network, configs, peers, arguments))
    _show(result['groups'][-1])
  return result


def exit_code(result: dict) -> int:
  """Returns failure if a group was to be compared, and every peer failed."""
  for group in result['groups']:
    names = [row['candidate'] for row in group['rows']]
    if group['failed'] and all(name.startswith(harness.OURS) for name in names):
      return EXIT_FAILURE
  return EXIT_DONE


def _peers(against):
  """Returns the candidates that are asked for; refuses what cannot run."""
  harness.check_names('--against', against, (*PEERS, *sum(PEERS.values(), ())))
  needed = [p for name in against for p in _NEEDED[name.partition(' ')[0]]]
  find = importlib.util.find_spec
  if missing := [p for p in dict.fromkeys(needed) if find(p) is None]:
    raise UserError(
      f'{" and ".join(missing)} cannot be imported, which --against compares'
      f' with: {how_to_install("bench")}, or leave --against out'
    )
  return [way for name in against for way in PEERS.get(name, (name,))]


def make_groups(arguments, overrides: Sequence[str]) -> list[tuple]:
  """Returns (network, {name: config dict}) of every network and batch size.

  The names are those of our candidates, one for each combination of --vary.
  """
  recipe = f'--config={arguments.config}'
  config = validation.load_config([recipe, *overrides])
  try:
    classes = build.find_num_classes(config)
  except UserError as error:  # the data need not be there
    classes = _NUM_CLASSES
    harness.show(
      f'{classes:,} classes are assumed (--config.model.num_classes=N): {error}'
    )
  harness.check_names('--networks', arguments.networks, variants.VARIANTS)
  groups = []
  sizes = [f'global_batch_size={n}' for n in arguments.batch_sizes]
  for network, size in itertools.product(
    arguments.networks or ('',), sizes or ('',)
  ):
    fields = variants.fields(network) if network else {}
    configs = {}
    for varied in itertools.product(*map(_values, arguments.vary)):
      changes = [f'--config.{text}' for text in (size, *varied) if text]
      config = validation.load_config([recipe, *overrides, *changes])
      given = {text.partition('=')[0] for text in (*overrides, *changes)}
      for field in fields.keys() - _OF_THE_RECIPE:
        if f'--config.model.{field}' not in given:
          config.model[field] = fields[field]
      config.model.num_classes = classes
      validation.validate(config)
      configs[' '.join([harness.OURS, *varied])] = config.to_dict()
    name = network or config_lib.recipe_name(arguments.config)
    groups.append((name, configs))
  return groups


def _values(text):
  """Returns [KEY=A, KEY=B] of KEY=A,B."""
  key, _, values = text.partition('=')
  if not values:
    raise UserError(f'--vary is {text!r}; give KEY=A,B, a key of the config')
  return [f'{key}={value}' for value in values.split(',')]


def measure(network: str, configs: dict, peers: Sequence[str], options) -> dict:
  """Measures one network with one batch size.

  `configs` are those of `make_groups`, `peers` among PEERS, `options` the
  arguments. Returns {network, dtype, batch_size, facts of our steps, peak:
  FLOP/s of all devices or None, peak_source, rows: of `harness.measure` with
  milliseconds: a step's median, and share_of_peak, failed: of `harness.noted`,
  agreement: {candidate: losses}}.
  """
  base = next(iter(configs.values()))
  dtype = base['model']['dtype']
  facts, failed, ours, agreement, entries = {}, [], {}, {}, []
  module = step_peers.__name__
  with contextlib.ExitStack() as stack:
    for name in [*configs, *peers]:
      harness.show(f'starting {name}')
      # TensorFlow's XLA ends the process at flags of another one.
      environ = _ENVIRONMENT | ({} if name in configs else {'XLA_FLAGS': ''})
      worker = harness.Worker(module, name, environ)
      stack.enter_context(worker)
      config, platform = configs.get(name, base), facts.get('platform')
      given = {'config': config, 'platform': platform}
      with harness.noted(name, '', failed):
        if peers and not (options.skip_check or (ours and name in configs)):
          found = worker.ask('check', start=ours.get('start'), **given)
          ours = ours or found
          agreement[name] = found['losses']
          if name in peers and (problem := difference(ours, found, dtype)):
            raise harness.WorkerError(f'it computes something else: {problem}')
        facts = worker.ask('build', **given) | facts  # those of our first
        for part in ('train', 'evaluate')[: 1 + options.evaluation]:
          asked = {'part': part, 'least_seconds': options.seconds}
          entries.append((name, part, worker, asked))
    rows = harness.measure(entries, options.rounds, failed)
  kind, count = facts['device_kind'], facts['device_count']
  peak, source = gpu_peak(kind, dtype) or (0, f'unknown of {kind}')
  peak = count * peak or None
  for row in rows:
    size = configs.get(row['candidate'], base)['global_batch_size']
    part = {'train': 'training', 'evaluate': 'forward'}[row['case']]
    flops = facts[f'{part}_flops_per_image'] * row['median']
    row['milliseconds'] = 1e3 * size / row['median']
    row['share_of_peak'] = peak and flops / peak
  return {
    'network': network,
    'dtype': dtype,
    'batch_size': base['global_batch_size'],
    **facts,
    'peak': peak,
    'peak_source': source,
    'rows': rows,
    'failed': failed,
    'agreement': agreement,
  }


def difference(ours: Mapping, other: Mapping, dtype: str) -> str:
  """Returns what is not the same, or cannot be seen; '' if all is well.

  `ours` and `other` are {losses, parameters, ...}.
  """
  count, losses = ours['parameters'], ours['losses']
  if other['parameters'] != count:
    return f'it has {other["parameters"]:,} parameters instead of {count:,}'
  tolerance = _TOLERANCES[dtype]
  first, last = losses[0], losses[-1]
  if not abs(last - first) > _LEAST_CHANGE * tolerance * abs(first):
    return (
      f'our own losses go from {first:.5f} to {last:.5f} only, which would hide'
      ' other updates; --skip_check leaves the comparison out'
    )
  if np.allclose(other['losses'], losses, rtol=tolerance, atol=0):
    return ''
  its, own = (np.round(each, 5).tolist() for each in (other['losses'], losses))
  return (
    f'from equal weights its losses are {its} instead of {own} (tolerance:'
    f' {tolerance:g} of them)'
  )


def _show(group):
  harness.show_table(
    f'{group["network"]}, {group["dtype"]}, {group["batch_size"]} images a step'
    f' on {group["device_count"]} x {group["device_kind"]}, images/s',
    group['rows'],
    'candidate case milliseconds median min max share_of_peak ours_by_it',
  )
  peak = f'{group["peak"] / 1e9:,.1f} GFLOP/s: ' if group['peak'] else ''
  harness.show(
    f'{group["parameters"]:,} parameters;'
    f' {group["training_flops_per_image"] / 1e9:.4f} GFLOP training and'
    f' {group["forward_flops_per_image"] / 1e9:.4f} forward per image; peak:'
    f' {peak}{group["peak_source"]}'
  )
