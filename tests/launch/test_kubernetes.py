"""The manifest is valid, and its parts fit each other and the command."""

import copy
import pathlib

import kubernetes_validate
import pytest
import yaml

from alexnet_jax import errors
from alexnet_jax import main
from alexnet_jax import validation
from alexnet_jax.training import cluster

ROOT = pathlib.Path(__file__).parents[2]
MANIFEST = ROOT / 'launch' / 'kubernetes.yaml'


def parts():
  return list(yaml.safe_load_all(MANIFEST.read_text()))


def part(kind, name='alexnet'):
  (found,) = [
    p for p in parts() if (p['kind'], p['metadata']['name']) == (kind, name)
  ]
  return found


@pytest.fixture
def job():
  return part('Job')['spec']


@pytest.fixture
def pod(job):
  return job['template']['spec']


@pytest.fixture
def container(pod):
  (only,) = pod['containers']
  return only


@pytest.fixture
def environ(container):
  # Kubernetes takes strings only, and the schema says so.
  return {variable['name']: variable['value'] for variable in container['env']}


@pytest.fixture
def arguments(container):
  command = container['command']
  assert command[:3] == ['python', '-m', 'alexnet_jax.main']
  return main._parse(command[3:])


def valid(manifest, version):
  kubernetes_validate.validate(manifest, version, strict=True)


@pytest.mark.parametrize('version', ['1.31', '1.34', '1.37'])
def test_is_valid(version):
  assert len(parts()) == 4
  for manifest in parts():
    valid(manifest, version)


@pytest.mark.parametrize(
  'break_it',
  [
    lambda job: job.pop('template'),
    lambda job: job.update(completions='two'),
    lambda job: job.update(podFailurPolicy=job['podFailurePolicy']),
    lambda job: job['podFailurePolicy']['rules'][0].pop('action'),
    lambda job: job['template']['spec']['containers'][0]['env'].append(
      {'name': 'COUNT', 'value': 2}
    ),
  ],
)
def test_a_broken_one_is_not(job, break_it):
  broken = copy.deepcopy(job)
  break_it(broken)
  manifest = part('Job') | {'spec': broken}
  with pytest.raises(kubernetes_validate.ValidationError):
    valid(manifest, '1.34')


def test_the_service_has_the_pods(job):
  service = part('Service')['spec']
  assert service['clusterIP'] == 'None'  # not null: headless
  assert service['publishNotReadyAddresses'] is True
  assert service['selector']
  assert (
    service['selector'].items() <= job['template']['metadata']['labels'].items()
  )


def test_the_first_pod_is_the_coordinator(pod, container, environ):
  host, port = environ[cluster.COORDINATOR].split(':')
  # Pods of an Indexed Job are called after the Job; the subdomain, and so the
  # name in DNS, needs a headless Service of that name.
  name = part('Job')['metadata']['name']
  assert host == f'{name}-0.{pod["subdomain"]}'
  service = part('Service', pod['subdomain'])['spec']
  assert int(port) in [entry['port'] for entry in service['ports']]
  assert int(port) in [p['containerPort'] for p in container['ports']]


def test_all_processes_are_expected(job, environ):
  assert job['completionMode'] == 'Indexed'
  assert job['completions'] == job['parallelism']
  assert job['completions'] == int(environ[cluster.COUNT])


def test_the_command_understands_its_environment(job, environ):
  for index in range(job['completions']):
    indexed = environ | {cluster.KUBERNETES_INDEX: str(index)}
    place = cluster.detect(indexed)
    assert place.index == index
    assert place.count == job['completions']
    options = place.options
    assert options['coordinator_address'] == environ[cluster.COORDINATOR]


def test_the_command_understands_its_arguments(job, container, arguments):
  options, overrides = arguments
  config = validation.load_config(
    [f'--config={ROOT / options.config}', *overrides]
  )
  gpus = container['resources']['limits']['nvidia.com/gpu'] * job['completions']
  per_gpu, rate, warmup = 128, 0.01, 5.0  # of the recipe
  assert config.global_batch_size == per_gpu * gpus
  assert config.optimizer.learning_rate == pytest.approx(rate * gpus)
  assert config.schedule.warmup_epochs == warmup
  # Nodes and images may take longer than processes on machines that are there.
  assert options.start_timeout > 600
  assert container['workingDir'].startswith('/')  # the recipe's path is not


def test_what_the_command_uses_is_mounted(pod, container, arguments):
  options, overrides = arguments
  mounts = {mount['mountPath']: mount for mount in container['volumeMounts']}
  volumes = {volume['name']: volume for volume in pod['volumes']}
  assert mounts['/data']['readOnly'] is True
  assert '--config.data.path=/data' in overrides
  assert not mounts['/runs'].get('readOnly')
  assert options.workdir.startswith('/runs/')
  assert {mount['name'] for mount in mounts.values()} == set(volumes)
  for path in ('/data', '/runs'):
    claim = volumes[mounts[path]['name']]['persistentVolumeClaim']['claimName']
    modes = part('PersistentVolumeClaim', claim)['spec']['accessModes']
    assert modes == ['ReadWriteMany']
  memory = volumes[mounts['/dev/shm']['name']]['emptyDir']
  assert memory['medium'] == 'Memory'


def action_after(job, exit_code, conditions=()):
  """What the Job does with a pod that failed: the first rule that fits."""
  for rule in job['podFailurePolicy']['rules']:
    if 'onExitCodes' in rule:
      assert rule['onExitCodes']['operator'] == 'In'
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
  return 'Count'


def test_what_goes_on_and_what_ends_the_job(job, pod, container):
  assert action_after(job, errors.EXIT_INTERRUPTED) == 'Count'
  assert action_after(job, errors.EXIT_USER) == 'FailJob'
  assert action_after(job, errors.EXIT_FAILURE) == 'FailJob'
  assert action_after(job, 137) == 'Count'
  for code in (1, 2, 75, 137):
    assert action_after(job, code, ['DisruptionTarget']) == 'Ignore'
  names = [
    rule['onExitCodes']['containerName']
    for rule in job['podFailurePolicy']['rules']
    if 'onExitCodes' in rule
  ]
  assert set(names) == {container['name']}
  assert job['backoffLimit'] >= 100  # interruptions count
  # Both are what the policy requires.
  assert pod['restartPolicy'] == 'Never'
  assert job['podReplacementPolicy'] == 'Failed'


def test_it_is_done_when_the_first_process_is(job):
  assert job['successPolicy'] == {'rules': [{'succeededIndexes': '0'}]}


def test_there_is_time_to_save(job, pod, container):
  assert pod['terminationGracePeriodSeconds'] == 120
  # A shell would not pass SIGTERM on.
  assert container['command'][0] == 'python'
  assert 'args' not in container
  # The logs of a Job that ended stay.
  assert 'ttlSecondsAfterFinished' not in job
