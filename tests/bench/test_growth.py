import json

import pytest

from alexnet_jax.bench.__main__ import main


@pytest.mark.slow
def test_every_case_is_measured_and_drawn(tmp_path, capsys):
  plot = tmp_path / 'growth.png'
  sizes = '--examples=300 --classes=3 --threads=1 --batch_size=64'
  arguments = f'growth --json --rounds=1 --plot={plot} {sizes}'
  assert main(arguments.split()) == 0
  rows = json.loads(capsys.readouterr().out)['rows']
  assert [(row['kind'], row['axis'], row['value']) for row in rows] == [
    ('folder', 'examples', 300),
    ('raw', 'examples', 300),
    ('evaluation', 'classes', 3),
    ('folder', 'threads', 1),
    ('raw', 'threads', 1),
    ('folder', 'batch_size', 64),
    ('raw', 'batch_size', 64),
  ]
  for row in rows:
    assert row['images_per_second'] == row['rounds'][0] > 0
    assert row['open_seconds'] > 0
  assert plot.read_bytes().startswith(b'\x89PNG')


def test_a_plot_without_a_folder_is_refused_before_anything_is_made(
  tmp_path, capsys
):
  plot = tmp_path / 'none' / 'growth.png'
  assert main(['growth', f'--plot={plot}']) == 2
  assert 'there is no folder' in capsys.readouterr().err


@pytest.mark.parametrize('text', ['0', 'ten'])
def test_sizes_are_positive_numbers(text):
  with pytest.raises(SystemExit):
    main(['growth', f'--examples={text}'])


def test_sizes_that_cannot_be_measured_are_refused(tmp_path, capsys):
  for given, message in (
    ('--examples=255', '--examples: 255; give 256 to 10,000,000'),
    ('--classes=10,1', '--classes: 1; give 2 to 1,000,000'),
    ('--batch_size=20000', '--batch_size: 20000; give 1 to 10,000'),
  ):
    assert main(['growth', f'--plot={tmp_path}/growth.png', given]) == 2
    assert message in capsys.readouterr().err
