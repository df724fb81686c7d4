"""Detection of the processes of a run: flags, variables, launchers."""

import pytest

from alexnet_jax.errors import UserError
from alexnet_jax.training import distributed

SLURM = {
  'SLURM_JOB_ID': '7',
  'SLURM_NTASKS': '4',
  'SLURM_PROCID': '2',
  'SLURM_LOCALID': '0',
  'SLURM_STEP_NODELIST': 'node[1-4]',
  'SLURM_STEP_TASKS_PER_NODE': '1(x4)',
}
OPEN_MPI = {
  'OMPI_COMM_WORLD_SIZE': '2',
  'OMPI_COMM_WORLD_RANK': '1',
  'OMPI_COMM_WORLD_LOCAL_SIZE': '2',
  'OMPI_MCA_orte_hnp_uri': '1531576320.0;tcp://10.96.0.1:34911',
}
KUBERNETES = {
  'JAX_COORDINATOR_ADDRESS': 'alexnet-0.alexnet:1234',
  'JAX_NUM_PROCESSES': '3',
  'JOB_COMPLETION_INDEX': '2',
}
ALONE = {
  'JAX_COORDINATOR_ADDRESS': 'a:1',
  'JAX_NUM_PROCESSES': '1',
  'JAX_PROCESS_ID': '0',
}


def assert_found(found, source, index, count, **options):
  assert (found.source, found.index, found.count) == (source, index, count)
  assert {**found.options, **options} == found.options


@pytest.mark.parametrize(
  ('environ', 'flags'),
  [
    ({'SLURM_JOB_ID': '7', 'SLURM_NTASKS': '1', 'SLURM_PROCID': '0'}, {}),
    ({'OMPI_COMM_WORLD_SIZE': '1'}, {}),
    (ALONE, {}),
    (SLURM, {'process_count': 1}),
  ],
)
def test_a_process_of_its_own(environ, flags):
  assert distributed.detect(environ, **flags) is None


@pytest.mark.parametrize('host', ['127.0.0.1', '10.0.0.1'])
def test_flags_come_first(host):
  address = f'{host}:1234'
  found = distributed.detect(
    SLURM, coordinator=address, process_index=0, process_count=2
  )
  assert_found(
    found,
    *('flags', 0, 2),
    coordinator_address=address,
    process_id=0,
    num_processes=2,
    local_device_ids=[],
    cluster_detection_method='deactivate',
  )
  # A run of one machine is not heard outside.
  bind = found.options.get('coordinator_bind_address')
  assert bind == (address if host == '127.0.0.1' else None)


def test_variables():
  found = distributed.detect({**SLURM, **KUBERNETES})
  address = KUBERNETES['JAX_COORDINATOR_ADDRESS']
  name = 'Kubernetes Indexed Job'
  assert_found(found, name, 2, 3, coordinator_address=address)
  found = distributed.detect({**KUBERNETES, 'JAX_PROCESS_ID': '0'})
  assert_found(found, 'environment', 0, 3)
  found = distributed.detect(OPEN_MPI)
  assert_found(found, 'Open MPI', 1, 2)
  assert found.options == {'cluster_detection_method': 'ompi'}


@pytest.mark.parametrize(
  ('tasks', 'gpus', 'has_all'),
  [
    ('1(x4)', {}, True),  # a task on each node has all its GPUs
    ('1,12', {}, False),  # JAX takes the LOCALID-th
    # Unless SLURM gave each task GPUs of its own.
    ('2', {'CUDA_VISIBLE_DEVICES': '3'}, True),
    ('4', {'SLURM_GPUS_PER_TASK': '2'}, True),
  ],
)
def test_slurm(tasks, gpus, has_all):
  environ = {**SLURM, 'SLURM_STEP_TASKS_PER_NODE': tasks, **gpus}
  found = distributed.detect(environ)
  assert_found(found, 'SLURM', 2, 4)
  ids = {'local_device_ids': []} if has_all else {}
  assert found.options == {'cluster_detection_method': 'slurm', **ids}


def without(environ, text):
  return {name: v for name, v in environ.items() if text not in name}


@pytest.mark.parametrize(
  ('environ', 'names'),
  [
    # In the batch script, without srun.
    (without(SLURM, 'STEP'), 'SLURM_NTASKS = 4;SLURM_STEP_NODELIST;srun'),
    # Open MPI 5 does not say where its launcher is.
    (without(OPEN_MPI, 'uri'), 'OMPI_COMM_WORLD_SIZE = 2;JAX_COORDINATOR_ADD'),
    ({'JOB_COMPLETION_INDEX': '1'}, 'COMPLETION_INDEX = 1;JAX_NUM_PROCESSES'),
  ],
)
def test_alone_where_several_were_expected(environ, names):
  with pytest.raises(UserError, match='is not set') as error:
    distributed.detect(environ)
  for name in (*names.split(';'), '--process_count 1'):
    assert name in str(error.value)


@pytest.mark.parametrize(
  ('flags', 'message'),
  [
    (('host:1', None, 2), '--process_index is not set'),
    (('host', 0, 2), "the coordinator is 'host', not HOST:PORT"),
    (('host:1', 2, 2), 'is 2; it must be from 0 to 1'),
    ((None, None, None), "JAX_NUM_PROCESSES is 'two'"),
  ],
)
def test_what_does_not_fit(flags, message):
  names = ('coordinator', 'process_index', 'process_count')
  flags = dict(zip(names, flags, strict=True))
  with pytest.raises(UserError, match=message):
    distributed.detect({'JAX_NUM_PROCESSES': 'two'}, **flags)
