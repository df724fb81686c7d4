"""bench step: the train step by itself, PyTorch and Keras beside it."""

from collections.abc import Sequence
import importlib.util
import itertools
import sys

from alexnet_jax import cli
from alexnet_jax.bench import machine
from alexnet_jax.bench import report
from alexnet_jax.bench import step_peers
from alexnet_jax.bench import step_rounds
from alexnet_jax.bench.step_rounds import OURS
from alexnet_jax.errors import EXIT_DONE
from alexnet_jax.errors import EXIT_FAILURE
from alexnet_jax.errors import how_to_install
from alexnet_jax.errors import UserError

_DESCRIPTION = """\
Times the train step that training runs, on a batch that stays on the devices:
images per second, milliseconds, memory, the network's FLOPs and, on a GPU,
their share of what the device can do at most. Every network is measured with
every dtype and batch size.

--against runs the same network, batch and precision in PyTorch and in Keras on
TensorFlow, each in a process of its own, all on the same cores, in turn in
every round. Before, each one shows that from equal weights and images it has
the same loss and makes the same updates. One that fails or does not is named
and left out; if none is left, the exit code is 1."""

PEERS = {
  'torch': ('torch eager', 'torch channels_last', 'torch compile'),
  'keras': ('keras plain', 'keras jit_compile'),
}
_NEEDED = {'torch': ('torch',), 'keras': ('keras', 'tensorflow')}
_DTYPES = ('float32', 'bfloat16')
_NUM_CLASSES = 1000  # where neither config nor data say otherwise
# Fields of a network that say how it begins rather than what it is: here the
# recipe counts.
_OF_THE_RECIPE = ('kernel_init', 'bias_init', 'width_multiplier')
_TITLES = {'train': 'train step', 'evaluate': 'evaluation step'}
_NOTES = (
  'Milliseconds: the median of the rounds, with least and most. ours / it: our'
  ' images per second by its, in the same round; the median.',
  'Share of the peak: FLOP of convolutions and dense layers as the network has'
  ' them (two for a multiply-add) x images per second / peak.',
  "Memory: the process' largest resident memory, libraries included (VmHWM).",
  'Ours mirrors uint8 images, subtracts the mean and counts top-1 and top-5 in'
  ' the step; the others get float32 images that are ready.',
)


def add_arguments(commands) -> None:
  """Adds the subcommand to argparse's `commands`."""
  text = 'the train step alone, and PyTorch and Keras beside it'
  parser = report.add_command(commands, 'step', text, _DESCRIPTION)
  add = parser.add_argument
  cli.add_recipe(parser)
  for flag, text in (
    ('networks', "names of models/variants.py (default: the recipe's network)"),
    ('dtypes', f"{', '.join(_DTYPES)} (default: the recipe's)"),
    ('batch_sizes', "images of a step, on all devices (default: the recipe's)"),
    ('against', f'torch, keras, {", ".join(sum(PEERS.values(), ()))}'),
  ):
    add(f'--{flag}', type=report.names, default=(), metavar='A,B', help=text)
  text = 'measures our step with each value of a key: parallel=pmap,shard_map'
  add('--vary', action='append', default=[], metavar='KEY=A,B', help=text)
  add('--evaluation', action='store_true', help='also the evaluation step')
  text = 'cores that everybody runs on (default: all)'
  add('--threads', type=report.positive, default=0, help=text)
  add('--rounds', type=report.positive, default=5, help='default: 5')
  text = 'that a measurement of more than 2 steps takes at least (default: 3)'
  add('--seconds', type=float, default=3.0, help=text)
  add('--skip_check', action='store_true', help='does not compare the losses')
  parser.set_defaults(
    work=_work, exit_code=exit_code, config='configs/imagenet.py'
  )


def _work(arguments, overrides):
  report.check_names('--dtypes', arguments.dtypes, _DTYPES)
  peers = _peers(arguments.against)
  if not 0 < arguments.seconds < float('inf'):
    raise UserError(f'--seconds is {arguments.seconds:g}; give more than 0')
  cores = machine.first_cores(arguments.threads)
  groups = make_groups(arguments, overrides)
  if peers:
    task = next(iter(groups[0][1].values()))
    step_peers.check_updates(task['config'])
  options = step_rounds.Options(
    cores=cores,
    peers=peers,
    rounds=arguments.rounds,
    seconds=arguments.seconds,
    parts=tuple(_TITLES)[: 1 + arguments.evaluation],
    check=bool(peers) and not arguments.skip_check,
  )
  result = {
    **report.header(),
    'recipe': arguments.config,
    'threads': len(cores),
    'rounds': arguments.rounds,
    'groups': [],
  }
  for network, tasks in groups:
    result['groups'].append(step_rounds.measure(network, tasks, options))
    _show_group(result['groups'][-1])
  report.show(
    f'\n{report.header_lines(result)}\n{result["threads"]} cores for everybody;'
    f' rounds: {result["rounds"]}',
    *_NOTES,
  )
  return result


def exit_code(result: dict) -> int:
  """Returns failure if a group was to be compared, and every peer failed."""
  for group in result['groups']:
    candidates = [row['candidate'] for row in group['rows']]
    if group['failed'] and all(name.startswith(OURS) for name in candidates):
      return EXIT_FAILURE
  return EXIT_DONE


def _peers(against):
  """Returns the candidates that are asked for; refuses what cannot run."""
  known = (*PEERS, *itertools.chain(*PEERS.values()))
  report.check_names('--against', against, known)
  needed = [p for name in against for p in _NEEDED[name.partition(' ')[0]]]
  if missing := [
    p for p in dict.fromkeys(needed) if importlib.util.find_spec(p) is None
  ]:
    raise UserError(
      f'{" and ".join(missing)} cannot be imported, which --against compares'
      f' with: {how_to_install("bench")}, or leave --against out'
    )
  return [way for name in against for way in PEERS.get(name, (name,))]


def make_groups(arguments, overrides: Sequence[str]) -> list[tuple]:
  """Returns (network, {name: task}) of every network, dtype and batch size.

  The tasks are those of our candidates, one for each combination of --vary.

  Raises:
    UserError: if the recipe or one of the values makes no sense.
  """
  from alexnet_jax import config as config_lib
  from alexnet_jax import validation

  recipe = validation.load_config([f'--config={arguments.config}', *overrides])
  classes = _num_classes(recipe)
  return [
    (
      choice[0] or config_lib.recipe_name(arguments.config),
      _tasks(arguments, overrides, choice, classes),
    )
    for choice in itertools.product(
      arguments.networks or ('',),
      arguments.dtypes or ('',),
      arguments.batch_sizes or ('',),
    )
  ]


def _tasks(arguments, overrides, choice, classes):
  from alexnet_jax import validation

  network, dtype, batch_size = choice
  chosen = [f'--config.model.dtype={dtype}'] if dtype else []
  if batch_size:
    chosen.append(f'--config.global_batch_size={batch_size}')
  tasks = {}
  for varied in itertools.product(*map(_values, arguments.vary)):
    given = [*overrides, *chosen, *(f'--config.{text}' for text in varied)]
    config = validation.load_config([f'--config={arguments.config}', *given])
    named = {text.partition('=')[0] for text in given}
    for field, value in _network_fields(network).items():
      if f'--config.model.{field}' not in named:
        config.model[field] = value
    config.model.num_classes = classes
    validation.validate(config)
    tasks[' '.join([OURS, *varied])] = make_task(config)
  return tasks


def _values(text):
  """Returns [KEY=A, KEY=B] of KEY=A,B."""
  key, _, values = text.partition('=')
  if not values:
    raise UserError(f'--vary is {text!r}; give KEY=A,B, a key of the config')
  return [f'{key}={value}' for value in values.split(',')]


def _network_fields(network):
  from alexnet_jax.models import variants

  if not network:
    return {}
  try:
    fields = variants.fields(network)
  except ValueError as error:
    raise UserError(f'--networks: {error}') from error
  return {k: v for k, v in fields.items() if k not in _OF_THE_RECIPE}


def make_task(config) -> dict:
  """Returns what a candidate has to do.

  Returns:
    {config: of the run, as a dict, num_classes, platform: to be set to that of
    our devices}.
  """
  return {
    'config': config.to_dict(),
    'num_classes': config.model.num_classes or _NUM_CLASSES,
    'platform': '',
  }


def _num_classes(config):
  """Returns the number of classes; the data need not be there."""
  from alexnet_jax.bench import step_ours

  try:
    return step_ours.num_classes(config)
  except UserError as error:
    print(
      f'{_NUM_CLASSES:,} classes are assumed'
      f' (--config.model.num_classes=N): {error}',
      file=sys.stderr,
    )
    return _NUM_CLASSES


def _show_group(group):
  """Prints what `step_rounds.measure` returns, for people."""
  peak = f'{group["peak"] / 1e9:,.1f} GFLOP/s: ' if group['peak'] else ''
  report.show(
    f'\n{group["network"]}, {group["dtype"]}, {group["batch_size"]} images a'
    f' step on {group["device_count"]} x {group["device_kind"]}:'
    f' {group["parameters"]:,} parameters;'
    f' {group["training_flops_per_image"] / 1e9:.4f} GFLOP training and'
    f' {group["forward_flops_per_image"] / 1e9:.4f} forward per image',
    f'peak: {peak}{group["peak_source"]}',
  )
  columns = ('', 'images/s', 'ms a step', 'of the peak', 'compiling', 'memory')
  columns += ('ours / it',)
  for part, title in _TITLES.items():
    rows = [row for row in group['rows'] if row['part'] == part]
    if rows:
      report.show(report.table(title, columns, map(_cells, rows)))
  for failure in group['failed']:
    report.show(f'failed: {failure["candidate"]}: {failure["error"]}')
  for name, losses in group['agreement'].items():
    text = ', '.join(f'{loss:.5f}' for loss in losses)
    report.show(f'losses from equal weights, {name}: {text}')


def _cells(row):
  times, share = row['milliseconds'], row['share_of_peak']
  memory = row['resident_peak']
  return (
    row['candidate'],
    f'{row["images_per_second"]["median"]:,.1f}',
    f'{times["median"]:,.2f} ({times["min"]:,.2f} - {times["max"]:,.2f})',
    '-' if share is None else f'{share:.1%}',
    f'{row["compile_seconds"]:.1f} s',
    '-' if memory is None else f'{memory / 1e6:,.0f} MB',
    f'{row["ratio"]:.2f}',
  )
