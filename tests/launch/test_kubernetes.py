"""The manifest is valid, and its parts fit each other and the command."""

import kubernetes_validate
import pytest
import yaml

from alexnet_jax import errors, main, validation
from alexnet_jax.training import distributed
from tests.system import commands

MANIFEST = commands.ROOT / 'launch' / 'kubernetes.yaml'
PARTS = list(yaml.safe_load_all(MANIFEST.read_text()))


def part(kind, name='alexnet'):
  (found,) = [
    p for p in PARTS if (p['kind'], p['metadata']['name']) == (kind, name)
  ]
  return found


JOB = part('Job')['spec']
POD = JOB['template']['spec']
(CONTAINER,) = POD['containers']
# Kubernetes takes strings only, and the schema says so.
ENVIRON = {variable['name']: variable['value'] for variable in CONTAINER['env']}


@pytest.fixture
def arguments():
  assert CONTAINER['command'][:3] == ['python', '-m', 'alexnet_jax.main']
  return main._parse(CONTAINER['command'][3:])


def test_is_valid():
  assert len(PARTS) == 4
  for manifest in PARTS:
    kubernetes_validate.validate(manifest, '1.37', strict=True)


def test_the_first_pod_is_the_coordinator():
  # Pods of an Indexed Job are called after the Job; the subdomain, and so the
  # name in DNS, needs a headless Service of that name.
  host, port = ENVIRON['JAX_COORDINATOR_ADDRESS'].split(':')
  assert host == f'{part("Job")["metadata"]["name"]}-0.{POD["subdomain"]}'
  service = part('Service', POD['subdomain'])['spec']
  assert service['clusterIP'] == 'None'  # not null: headless
  assert service['publishNotReadyAddresses'] is True
  assert int(port) in [entry['port'] for entry in service['ports']]


def test_the_command_understands_its_environment():
  assert JOB['completionMode'] == 'Indexed'
  assert JOB['completions'] == JOB['parallelism']
  for index in range(JOB['completions']):
    found = distributed.detect(ENVIRON | {'JOB_COMPLETION_INDEX': str(index)})
    assert (found.index, found.count) == (index, JOB['completions'])
    address = found.options['coordinator_address']
    assert address == ENVIRON['JAX_COORDINATOR_ADDRESS']


def test_the_command_understands_its_arguments(arguments):
  options, overrides = arguments
  config = validation.load_config(
    [f'--config={commands.ROOT / options.config}', *overrides]
  )
  gpus = CONTAINER['resources']['limits']['nvidia.com/gpu'] * JOB['completions']
  assert config.global_batch_size == 128 * gpus
  assert config.optimizer.learning_rate == pytest.approx(0.01 * gpus)
  # Nodes and images may take longer than processes on machines that are there.
  assert options.start_timeout > 600


def action_after(exit_code, conditions=()):
  """Returns what the Job does with a failed pod: the first rule that fits."""
  for rule in JOB['podFailurePolicy']['rules']:
    if 'onExitCodes' in rule:
      assert rule['onExitCodes']['operator'] == 'In'
      assert rule['onExitCodes']['containerName'] == CONTAINER['name']
      fits = exit_code in rule['onExitCodes']['values']
    else:
      types = {
        pattern['type']
        for pattern in rule['onPodConditions']
        if pattern['status'] == 'True'
      }
      fits = bool(types & set(conditions))
    if fits:
      return rule['action']
  return 'Ignore'  # so that a code that no rule names makes a test fail


def test_what_goes_on_and_what_ends_the_job():
  for code in (errors.EXIT_INTERRUPTED, 134, 137):
    assert action_after(code) == 'Count'
  for code in (errors.EXIT_USER, errors.EXIT_FAILURE):
    assert action_after(code) == 'FailJob'
  assert action_after(1, ['DisruptionTarget']) == 'Ignore'
  assert JOB['backoffLimit'] >= 100  # interruptions count
  # Both are what the policy requires.
  assert POD['restartPolicy'] == 'Never'
  assert JOB['podReplacementPolicy'] == 'Failed'
  # Process 0 has written everything when it is done.
  assert JOB['successPolicy'] == {'rules': [{'succeededIndexes': '0'}]}
