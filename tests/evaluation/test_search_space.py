import optuna
import pytest

from alexnet_jax.config import make_config
from alexnet_jax.errors import UserError
from alexnet_jax.evaluation import search_space


def parse(*texts):
  return search_space.parse(texts, make_config())


def draw(space, count=60):
  """Values of the parameters in some trials."""
  study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
  found = []
  for _ in range(count):
    trial = study.ask()
    search_space.suggest(space, trial)
    found.append(search_space.values(space, trial.params))
    study.tell(trial, 0.0)
  return found


def test_a_range_of_floats():
  space = parse('config.optimizer.learning_rate=1e-4..1e-1:log')
  found = [values['optimizer.learning_rate'] for values in draw(space)]
  assert all(1e-4 <= value <= 1e-1 for value in found)
  # By the logarithm about a third lies in each decade.
  assert sum(value < 1e-3 for value in found) > 10
  assert str(space['optimizer.learning_rate']) == '0.0001..0.1:log'


def test_a_range_is_whole_where_the_key_is():
  space = parse('global_batch_size=16..18', 'model.dropout=0..1')
  found = draw(space)
  assert {values['global_batch_size'] for values in found} == {16, 17, 18}
  assert all(isinstance(values['model.dropout'], float) for values in found)
  assert len({values['model.dropout'] for values in found}) == 60


def test_choices_have_the_type_of_their_key():
  space = parse(
    'optimizer.name=sgd|adam',
    'model.hidden=(256,)|(256,128)|()',
    'optimizer.nesterov=True|False',
    'model.dropout=0|0.5',
  )
  found = draw(space)
  assert {values['optimizer.name'] for values in found} == {'sgd', 'adam'}
  assert {v['model.hidden'] for v in found} == {(256,), (256, 128), ()}
  assert {values['optimizer.nesterov'] for values in found} == {True, False}
  dropout = {values['model.dropout'] for values in found}
  assert dropout == {0.0, 0.5}
  assert all(isinstance(value, float) for value in dropout)
  config = make_config()
  for values in found:
    config.update_from_flattened_dict(values)


def test_tuples_of_varying_length():
  space = parse('model.hidden=1..3*64..1024:log')
  found = [values['model.hidden'] for values in draw(space)]
  assert {len(value) for value in found} == {1, 2, 3}
  for value in found:
    assert all(isinstance(n, int) and 64 <= n <= 1024 for n in value)
  assert len(set(found)) > 50


def test_the_order_of_the_arguments_does_not_count():
  texts = ['model.dropout=0.2..0.7', 'global_batch_size=16..64']
  assert list(parse(*texts)) == list(parse(*reversed(texts)))


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('optimizer.learning_rate', 'it takes KEY=SPEC'),
    (
      'optimizer.learn_rate=1..2',
      r'no key config\.optimizer\.learn_rate; did you mean'
      r' config\.optimizer\.learning_rate',
    ),
    ('optimizer=1..2', 'no key config.optimizer'),
    ('optimizer.learning_rate=0.1', 'is none of LOW..HIGH'),
    ('optimizer.learning_rate=1e-1..1e-4', r'ends below its start: 0\.1 >'),
    ('optimizer.learning_rate=0..1:log', 'has no logarithm'),
    ('optimizer.learning_rate=1..2:lin', r'neither LOW\.\.HIGH nor'),
    ('optimizer.learning_rate=1..inf', 'an end that is no number'),
    ('optimizer.learning_rate=a..b', 'an end that is no number'),
    ('optimizer.learning_rate=0.1|fast', "has 'fast', but the key is 0.01"),
    ('optimizer.learning_rate=1..2*1..3', 'is for tuples'),
    ('global_batch_size=0.5..2', 'has fractions'),
    ('global_batch_size=16|32.5', r"has '32\.5', but the key is 128, a int"),
    ('global_batch_size=16|True', "has 'True'"),
    ('optimizer.nesterov=0..1', r'give A\|B\|C'),
    ('optimizer.nesterov=True|1', "has '1', but the key is False"),
    ('optimizer.name=sgd|adagrad', "'adagrad' is not one of"),
    ('optimizer.name=sgd|sgd', "has 'sgd' twice"),
    ('model.hidden=64..1024', r'or FEWEST\.\.MOST\*LOW\.\.HIGH'),
    ('model.hidden=0.5..2*64..128', 'needs whole numbers'),
    ('model.hidden=1..1000*64..128', 'more than 100 entries'),
    ('model.hidden=256|512', "has '256', but the key is"),
  ],
)
def test_what_cannot_be_understood_is_refused(text, message):
  with pytest.raises(UserError, match=message):
    parse(text)


def test_a_key_that_is_given_twice_is_refused():
  with pytest.raises(UserError, match='is given twice'):
    parse('model.dropout=0.2..0.7', 'config.model.dropout=0.1|0.2')


def test_no_key_at_all_is_refused():
  with pytest.raises(UserError, match='needs --param'):
    parse()
