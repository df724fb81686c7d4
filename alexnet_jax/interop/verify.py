"""Checks what saved weights say of themselves.

python -m alexnet_jax.interop.verify FILE.safetensors|FOLDER --data_path DIR
"""

import pathlib
import sys
import tempfile

from alexnet_jax import cli
from alexnet_jax.errors import UserError

_DESCRIPTION = """\
Checks a file or folder that `interop.save` wrote: each tensor against its hash,
all of them against the network, each layer against the distribution of its
initialization, config.json and model card against the weights and, with
--data_path, the figures against the data. Ends with 2 at the first that does
not hold. Whoever can write a file can write its hashes: only the data shows
that figures hold."""
# A kernel of few numbers may keep its distribution when it is trained, but then
# its bias moves.
_CHANCE = 1e-4  # that fresh numbers are taken for others
# Deviations from 0 of the correlation between the kernels of a layer and those
# that the seed begins with. Long training with weight decay leaves none.
_SEED_SHOWS = 6.0
_MOST = 200_000  # numbers of an array that are compared
# Other devices round otherwise: so much may differ, and two images more.
_TOLERANCE = 0.002  # of shares; the loss may differ by five times that share


def main(argv=None) -> int:
  """Runs the command; returns its exit code."""
  parser = cli.make_parser('interop.verify', _DESCRIPTION)
  parser.add_argument('file', type=cli.path, metavar='FILE.safetensors|FOLDER')
  cli.add_data_path(parser)
  return cli.run_parsed(
    parser, argv, lambda arguments: verify(arguments.file, arguments.data_path)
  )


def verify(path: str, data_path: str = '') -> dict:
  """Checks a file or folder of `interop.save`, and prints what it says.

  Args:
    data_path: of the data that its figures are of; '': they are not checked,
      unless the data came with the package.

  Returns:
    {file, step, seed, seed_shows: whether the weights show that they began
    with it, command, measured: {eval/top1: ..., ...} as it says, found: the
    same as measured here, or {}}.

  Raises UserError, which names what does not hold.
  """
  from alexnet_jax.interop import claims as claims_lib, networks, torch_files

  folder = pathlib.Path(path)
  file = folder / claims_lib.WEIGHTS if folder.is_dir() else folder
  network = torch_files.read(file, networks.Options())
  with networks.naming(file):
    claims = network.claims
    if not claims:
      raise UserError(
        'it says nothing of its training: it was not written by interop.save'
      )
    config = _config_of(claims, network)
    shows = _refuse_untrained(config, network) > _SEED_SHOWS
    if folder.is_dir():
      claims_lib.check_folder(folder, network)
    found, own = {}, config.data.source in ('digits', 'synthetic')
    if data_path and own:
      raise UserError(
        f'its figures are of the {config.data.source} of this package; leave'
        ' --data_path out'
      )
    if (claims['data'] or claims['measured']) and (data_path or own):
      config.data.path = data_path
      config.ema_decay = 0.0  # the weights are averaged already
      _check_data(claims['data'], config)
      if claims['measured']:
        found = _measure(config, network)
        _compare(claims, found)
  said = ', '.join(f'{k} {v:.4f}' for k, v in claims['measured'].items())
  held = 'measured again, they hold' if found else 'not measured again'
  print(
    f'{path}: step {claims["step"]}, seed {config.seed}'
    f' ({"which" if shows else "nothing of which"} the weights show);'
    f' {len(claims["tensors"])} tensors hold\n'
    f'version {claims["version"]}: {claims["command"] or "converted weights"}\n'
    f'{said or "no figures"}: {held}',
    file=sys.stderr,
  )
  keys = ('step', 'command', 'measured')
  result = {'file': path, 'seed': config.seed, 'seed_shows': shows}
  result['found'] = found
  return {**result, **{k: claims[k] for k in keys}}


def _config_of(claims, network):
  from alexnet_jax import __version__, config as config_lib, files, validation

  config = config_lib.from_dict(claims['config'])
  validation.validate(config)
  command = validation.command_of(config)
  # The recipes of another version may be others.
  is_ours = claims['version'] == __version__ and claims['command']
  if is_ours and claims['command'] != command:
    raise UserError(f'its config is not of its command, but of {command}')
  ours = config_lib.flatten(config.model)
  if changes := files.differences(ours, dict(network.model)):
    raise UserError(f'its config is of another network: {changes}')
  return config


def _refuse_untrained(config, network) -> float:
  """Raises UserError if a layer looks as one does before the training.

  Returns:
    The largest correlation of a layer with its first state, in deviations of
    that of independent ones.
  """
  import jax
  import numpy as np
  import scipy.stats

  from alexnet_jax.training import build

  def are_fresh(array, fresh):
    if not np.ptp(fresh):  # a constant
      return np.array_equal(array, fresh)
    step = -(-array.size // _MOST)
    pair = (np.ravel(each)[::step] for each in (array, fresh))
    return scipy.stats.ks_2samp(*pair).pvalue > _CHANCE

  model = build.make_model(config, network.num_classes)
  first = jax.device_get(build.make_state(config, model).params)
  largest = 0.0
  for layer, leaves in network.params.items():
    if 'kernel' in leaves and np.ptp(first[layer]['kernel']):
      pair = leaves['kernel'], first[layer]['kernel']
      now, before = (np.ravel(each) / np.linalg.norm(each) for each in pair)
      largest = max(largest, float(now @ before) * now.size**0.5)
    if all(are_fresh(leaves[k], first[layer][k]) for k in leaves):
      raise UserError(f'{layer} looks as it does before it is trained')
  return largest


def _check_data(wanted, config):
  """Raises UserError if the data here is not what the weights are said of."""
  from alexnet_jax.training import build

  found = {}
  for split, prefix in (('validation', 'eval_'), ('train', '')):
    try:
      source = build.make_source(config, split)
    except UserError as error:
      if not prefix:  # whoever measures need not have it
        print(f'note: no training data to compare: {error}', file=sys.stderr)
        continue
      raise
    found[f'{prefix}fingerprint'] = source.fingerprint
    found[f'{prefix}num_examples'] = source.num_examples
  for key, value in found.items():
    if value != wanted.get(key):
      raise UserError(
        f'its figures are of other data: {key} is {value} here, and it says'
        f' {wanted.get(key)}'
      )


def _measure(config, network):
  """Returns the measures on the data here."""
  from alexnet_jax.evaluation import evaluate, loading
  from alexnet_jax.interop import imported_run

  with tempfile.TemporaryDirectory() as name:
    workdir = pathlib.Path(name, 'run')
    imported_run.write(config, network, workdir, {'from': 'verify'})
    run = loading.load_network(str(workdir))
    loader = loading.make_eval_loader(run, 'validation')
    return evaluate.measure_all(run, loader).values


def _compare(claims, found):
  """Raises UserError if other figures were found."""
  count = claims['data']['eval_num_examples']
  for key, value in claims['measured'].items():
    allowed = _TOLERANCE + 2 / count
    allowed *= 5 * value if key == 'eval/loss' else 1
    if not abs(found[key] - value) <= allowed:
      raise UserError(
        f'it says {key} {value:.4f}; measured here it is {found[key]:.4f}'
      )


if __name__ == '__main__':
  sys.exit(main())
