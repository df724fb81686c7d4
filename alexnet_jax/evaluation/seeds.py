"""Trains a recipe with several seeds, and compares the runs.

python -m alexnet_jax.evaluation.seeds --config FILE --count 10
"""

import sys

from alexnet_jax import cli
from alexnet_jax.errors import UserError
from alexnet_jax.evaluation import repeat

_EPILOG = """\
The runs differ in config.seed alone, which decides order, crops, initialization
and dropout: from that of the recipe on each takes the next one. They are in
DIR/seed_0, DIR/seed_1 and so on; any command takes them as it takes other runs.
Killed at any moment and started again, the same command goes on; runs that are
done are not touched, and a larger --count continues. Any key of the config can
be changed: --config.checkpoint.keep_at=log. Reports are left out."""


def main(argv=None) -> int:
  """Runs the command; returns its exit code."""
  text = 'Trains a recipe with several seeds, and compares the runs.'
  parser = cli.make_parser('evaluation.seeds', text, _EPILOG, False)
  text = 'number of seeds (default: %(default)s)'
  parser.add_argument('--count', type=int, default=10, metavar='N', help=text)
  return repeat.run_command(parser, _work, argv)


def _work(arguments, config, workdir, stop):
  """Makes what is missing.

  Returns:
    {seeds: [{seed, workdir, step, parameters, state_digest, validation: {loss,
    top1, ...}}], groups and page: of `compare.compare`}.
  """
  from alexnet_jax import validation
  from alexnet_jax.evaluation import compare
  from alexnet_jax.training import build

  if arguments.count < 2:
    raise UserError(f'--count is {arguments.count}; it must be at least 2')
  # All runs have the same data: it is looked through once.
  sources = [build.make_source(config, s) for s in ('train', 'validation')]
  runs = {}
  for seed in range(config.seed, config.seed + arguments.count):
    own = config.copy_and_resolve_references()
    own.seed = seed
    validation.validate(own)
    runs[workdir / f'seed_{seed}'] = own, build.data_record(own, *sources)
  results = repeat.train_each(runs, ('validation',), _measures, stop)
  found = compare.compare([*map(str, runs)], workdir / 'compare')
  print(f'runs: {workdir}', file=sys.stderr)
  rows = [
    {'seed': own.seed, **result}
    for (own, _), result in zip(runs.values(), results, strict=True)
  ]
  return {'seeds': rows, 'groups': found['groups'], 'page': found['page']}


def _measures(config, folder, record, trained):
  """Returns what the last evaluation of a training gave."""
  kept = ('step', 'parameters', 'state_digest')
  values = {k: v for k, v in trained.items() if k.startswith('eval/')}
  return {
    **{key: trained[key] for key in kept},
    'validation': {k.removeprefix('eval/'): v for k, v in values.items()},
  }


if __name__ == '__main__':
  sys.exit(main())
