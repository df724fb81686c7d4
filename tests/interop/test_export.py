"""An exported program, in a process without flax and without this package."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import warnings

import jax
import jax.export
import numpy as np
import PIL.Image
import pytest

from alexnet_jax.interop import export, program_loader
from alexnet_jax.training import build, checkpoint, preprocess
from tests.system import commands

try:
  with warnings.catch_warnings():  # they warn when they are imported
    warnings.simplefilter('ignore')
    import jax2onnx  # noqa: F401
    import onnxruntime
except ImportError:
  onnxruntime = None
IGNORED = [
  pytest.mark.filterwarnings(f'ignore::{name}Warning')
  for name in ('Deprecation', 'Future', 'User')
]

# Imports what is beside it; the rest of the product and flax are out of reach.
ALONE = """
import sys
for name in ('alexnet_jax', 'flax', 'orbax', 'optax', 'ml_collections'):
  sys.modules[name] = None
sys.path.insert(0, sys.argv[1])
import numpy as np
import load
program = load.load(sys.argv[1])
images = np.load(sys.argv[2])
parts = (images, images[:1], images[1:4])
np.savez(sys.argv[3], *map(program.probabilities, parts))
"""


@pytest.fixture(scope='module')
def folder(trained_run, tmp_path_factory):
  """A folder with the exported program of `trained_run`."""
  folder = tmp_path_factory.mktemp('folder') / 'program'
  assert export.main(['--workdir', str(trained_run), str(folder)]) == 0
  return folder


@pytest.fixture(scope='module')
def lrn_run(tmp_path_factory):
  """A run with LRN in its other conventions and deviations of colors."""
  folder = tmp_path_factory.mktemp('run')
  recipe = commands.write_recipe(
    folder,
    num_steps=4,
    eval_every_steps=4,
    log_every_steps=4,
    data__std=1.0,
    data__std_rgb=(50.0, 60.0, 70.0),
    model__norm_layers=(1, 2),
    model__groups=(1, 2),
    model__block_order=('norm-pool-relu', 'relu-norm-spatial-pool'),
    model__lrn_convention='caffe',
    model__lrn_groups=2,
    model__dropout_scaling='evaluation',
  )
  commands.train_here(recipe, folder / 'run')
  return folder / 'run'


@pytest.fixture
def images():
  patches = np.random.default_rng(0).integers(0, 256, (7, 3, 3, 3), np.uint8)
  return patches.repeat(8, 1).repeat(8, 2)


def expected(run, images):
  """The network's own probabilities, with the implementations of training."""
  opened = checkpoint.open_run(run)
  config, names, state = opened.config, opened.class_names, opened.state
  mean = build.stored_mean(config, run)
  std = config.data.std_rgb or config.data.std
  network = build.make_model(config, len(names))
  variables = {'params': state.eval_params, 'batch_stats': state.batch_stats}
  logits = network.apply(variables, preprocess.normalize(images, mean, std))
  return np.asarray(jax.nn.softmax(logits))


def run_alone(folder, images, tmp_path):
  """In a process without the package."""
  np.save(tmp_path / 'images.npy', images)
  (tmp_path / 'alone.py').write_text(ALONE)
  process = subprocess.run(
    [sys.executable, '-P', 'alone.py', folder, 'images.npy', 'out.npz'],
    cwd=tmp_path,
    capture_output=True,
    text=True,
    check=False,
  )
  assert process.returncode == 0, process.stderr
  with np.load(tmp_path / 'out.npz') as found:
    return [found[name] for name in sorted(found.files)]


def run_here(folder, images, _):
  program = program_loader.load(folder)
  return map(program.probabilities, (images, images[:1], images[1:4]))


def run_onnx(folder, images, _):
  session = onnxruntime.InferenceSession(
    folder / 'network.onnx', providers=['CPUExecutionProvider']
  )
  return [
    session.run(['probabilities'], {'images': part})[0]
    for part in (images, images[:1], images[1:4])
  ]


ONNX = {'marks': [pytest.mark.interop, *IGNORED]}


@pytest.mark.parametrize(
  ('name', 'run_program'),
  [
    ('trained_run', run_alone),
    ('lrn_run', run_here),
    pytest.param('trained_run', run_onnx, **ONNX),
    pytest.param('lrn_run', run_onnx, **ONNX),
  ],
)
def test_the_same_probabilities(
  name, run_program, request, images, tmp_path, ask
):
  run, folder = request.getfixturevalue(name), tmp_path / 'program'
  onnx = '--onnx ' if run_program is run_onnx else ''
  if onnx and onnxruntime is None:
    pytest.skip('needs the extra onnx')
  # jax2onnx adds biases to more dimensions than they have.
  with jax.numpy_rank_promotion('allow' if onnx else 'raise'):
    code, result, err = ask(export, f'--workdir {run} {onnx}{folder}')
  assert code == 0, err
  about = json.loads((folder / 'about.json').read_text())
  assert result['step'] == about['step'] == 4
  assert result['sha256'] == about['sha256']
  assert about['class_names'] == [f'band_{n}' for n in range(4)]
  if onnx:
    assert 'network.onnx' in result['sha256']
    assert result['onnx_difference'] == about['onnx_difference']
    assert 0 <= about['onnx_difference'] <= export.TOLERANCE
  wanted = expected(run, images)
  assert wanted.std(0).max() > 0.01  # the images differ
  parts = run_program(folder, images, tmp_path)
  for part, rows in zip(parts, (wanted, wanted[:1], wanted[1:4]), strict=True):
    np.testing.assert_allclose(part, rows, rtol=1e-4)


@pytest.mark.interop
@pytest.mark.skipif(onnxruntime is None, reason='needs the extra onnx')
def test_another_network_is_refused(trained_run, tmp_path, ask, monkeypatch):
  import jax2onnx

  convert = jax2onnx.to_onnx

  def unfaithful(function, *arguments, **options):
    return convert(lambda x: function(x) * 0.999, *arguments, **options)

  def failing(*arguments, **options):
    raise NotImplementedError('no plugin for the primitive')

  out = tmp_path / 'out'
  for converter, message in (
    (unfaithful, 'its probabilities differ by up to'),
    (failing, 'NotImplementedError: no plugin for the primitive'),
  ):
    monkeypatch.setattr(jax2onnx, 'to_onnx', converter)
    with jax.numpy_rank_promotion('allow'):
      answer = ask(export, f'--workdir {trained_run} --onnx {out}')
    commands.refused(answer, message)
    assert not out.exists()


def test_photographs_on_the_command_line(
  folder, images, tmp_path, monkeypatch, capsys
):
  monkeypatch.setattr(program_loader, '__file__', str(folder / 'load.py'))
  good, cut = tmp_path / 'good.png', tmp_path / 'cut.png'
  PIL.Image.fromarray(images[0]).save(good)
  cut.write_bytes(good.read_bytes()[:-60])
  text = tmp_path / 'a.txt'
  text.write_text('no image')
  script = tmp_path / 'script.jpg'  # which Ghostscript would run
  PIL.Image.fromarray(images[0]).save(script, 'EPS')
  os.mkfifo(pipe := tmp_path / 'pipe.jpg')
  bad = [tmp_path / 'none.png', tmp_path, cut, text, script, pipe]
  assert program_loader.main([str(path) for path in (good, *bad, good)]) == 2
  out, err = capsys.readouterr()
  program = program_loader.load(folder)
  (row,) = program.probabilities(program.prepare(good)[None])
  best = sorted(zip(-row, program.class_names, strict=True))[:5]
  answers = ', '.join(f'{name} {-share:.4f}' for share, name in best)
  assert out.splitlines() == [f'{good}: {answers}'] * 2
  for path, line in zip(bad, err.splitlines(), strict=True):
    assert line.startswith(f'error: {path}: ')
  assert err.count('no such file, or no plain one') == 3
  monkeypatch.setitem(sys.modules, 'PIL', None)
  assert program_loader.main([str(good)]) == 2
  assert 'needs Pillow: pip install pillow' in capsys.readouterr().err


@pytest.mark.parametrize('size', [(40, 60), (200, 90)])
def test_photographs_are_cut_out_of_the_center(folder, size, tmp_path):
  """A photograph that darkens evenly: its pixels tell where they were."""
  height, width = size
  rows, columns = np.mgrid[:height, :width]
  smooth = np.stack([rows * 255 / height, columns * 255 / width, 0 * rows], -1)
  PIL.Image.fromarray(np.uint8(smooth)).save(tmp_path / 'smooth.png')
  program = program_loader.load(folder)
  found = program.prepare(tmp_path / 'smooth.png').astype(float)
  crop, short = program.crop_size, program.about['resize_size']
  assert found.shape == (crop, crop, 3)
  scale = min(size) / short
  middle = (np.arange(crop) - (crop - 1) / 2) * scale
  for channel, side in enumerate(size):
    expected_ = (middle + side / 2) * 255 / side
    line = found[:, :, channel].mean(1 - channel)
    np.testing.assert_allclose(line, expected_, atol=2 * 255 / side * scale + 2)


def test_unfit_images_are_refused(folder, images):
  program = program_loader.load(folder)
  for array, words in (
    (images[0], r'expected \(batch, 24, 24, 3\)'),
    (images[:, 1:], r'expected \(batch, 24, 24, 3\)'),
    (images[:0], 'Expected value >= 1'),
    (images.astype(np.float32), 'expected uint8'),
  ):
    with pytest.raises(ValueError, match=words):
      program.probabilities(array)


@pytest.fixture
def copied(folder, tmp_path):
  return shutil.copytree(folder, tmp_path / 'copy')


@pytest.mark.parametrize('name', ['program.bin', 'params.npz', 'about.json'])
@pytest.mark.parametrize('damage', ['changed', 'missing'])
def test_damaged_programs_are_refused(name, damage, copied):
  content = bytearray((copied / name).read_bytes())
  content[len(content) // 2] ^= 0xFF
  (copied / name).write_bytes(content)
  if damage == 'missing':
    (copied / name).unlink()
  unread = damage == 'missing' or name == 'about.json'
  what = 'holds no exported network' if unread else f'.*{name} is damaged'
  with pytest.raises(ValueError, match=f'{copied}.*{what}'):
    program_loader.load(copied)


@pytest.mark.parametrize(
  ('key', 'value'),
  [('class_names', ['a']), ('crop_size', 32), ('resize_size', None)],
)
def test_the_description_must_be_of_the_program(key, value, copied):
  about = json.loads((copied / 'about.json').read_text())
  (copied / 'about.json').write_text(json.dumps(about | {key: value}))
  with pytest.raises(ValueError, match=f'{copied} holds no exported network'):
    program_loader.load(copied)


def test_another_platform_is_named(
  folder, images, tmp_path, monkeypatch, capsys
):
  about = program_loader.load(folder).about
  PIL.Image.fromarray(images[0]).save(tmp_path / 'photo.png')
  batch = jax.ShapeDtypeStruct((1, 24, 24, 3), np.uint8)
  function = jax.jit(lambda params, pixels: pixels)
  exported = jax.export.export(function, platforms=['tpu'])({}, batch)
  program = program_loader.Program(exported, {}, about)
  monkeypatch.setattr(program_loader, 'load', lambda folder: program)
  assert program_loader.main([str(tmp_path / 'photo.png')]) == 2
  err = capsys.readouterr().err
  assert err.startswith('error: ')
  assert "'tpu'" in err


def test_parameters_are_no_pickles(copied):
  params, about = copied / 'params.npz', copied / 'about.json'
  before = hashlib.sha256(params.read_bytes()).hexdigest()
  np.savez(params, a=np.array([{}]))
  after = hashlib.sha256(params.read_bytes()).hexdigest()
  about.write_text(about.read_text().replace(before, after))
  with pytest.raises(ValueError, match=r'no exported network: .*allow_pickle'):
    program_loader.load(copied)


def test_unfit_places_are_refused(trained_run, tmp_path, ask, monkeypatch):
  monkeypatch.setitem(sys.modules, 'jax2onnx', None)
  (tmp_path / 'there').write_text('mine')
  for options, message in (
    (tmp_path / 'there', 'is there already, and no empty folder'),
    (tmp_path / 'there' / 'out', 'there: Not a directory; name another'),
    (f'{tmp_path / "out"} --checkpoint 3', "checkpoint '3' is not in"),
    (f'{tmp_path / "out"} --onnx', "pip install -e '.[onnx]'"),
  ):
    answer = ask(export, f'--workdir {trained_run} {options}')
    commands.refused(answer, message)
  assert [path.name for path in tmp_path.iterdir()] == ['there']
