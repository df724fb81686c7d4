"""Classifies image files with a trained network.

python -m alexnet_jax.predict --workdir DIR photo.jpg folder/ ...
"""

from collections.abc import Sequence
import math
import pathlib
import sys

from alexnet_jax import cli, errors, files

_DESCRIPTION = """\
Gives the best classes of images, as the network of a run sees them. It needs
the folder of the run, not the data that it was trained on."""
_EPILOG = """\
Images are prepared as in evaluation: the center of the resized image. Exit
codes: 0 done, 2 something to mend in the arguments or the files. Images that
cannot be decoded are named, and the others predicted all the same; a path that
does not exist ends the command before it begins."""

MOST_IN_GRID = 196  # images


def main(argv=None) -> int:
  """Runs the command; returns its exit code."""
  parser = cli.make_parser('predict', _DESCRIPTION, _EPILOG)
  add = parser.add_argument
  text = 'an image, or a folder with images in it or below'
  add('paths', nargs='+', type=cli.path, metavar='PATH', help=text)
  cli.add_run(parser)
  add('--top', type=int, default=5, help='number of classes (default: 5)')
  text = 'writes a table: the file, then class and probability by rank'
  add('--csv', type=cli.path, default='', metavar='FILE', help=text)
  text = f'draws the first {MOST_IN_GRID} images, as the network sees them,'
  text += ' with their best class'
  add('--grid', type=cli.path, default='', metavar='FILE.png', help=text)
  return cli.run_parsed(
    parser,
    argv,
    _work,
    lambda _, result: errors.EXIT_USER if result['unreadable'] else 0,
  )


def _work(arguments):
  if arguments.top < 1:
    raise errors.UserError(f'--top is {arguments.top}; it must be at least 1')
  if arguments.grid and not arguments.grid.lower().endswith('.png'):
    raise errors.UserError(f'--grid is {arguments.grid!r}; it must end in .png')
  for flag, name in (('csv', arguments.csv), ('grid', arguments.grid)):
    if name:
      files.check_new_file(f'--{flag}', name)
  from alexnet_jax.data import folder

  paths = folder.find_images(arguments.paths)
  from alexnet_jax.evaluation import evaluate, loading

  run = loading.load_network(
    arguments.workdir, arguments.checkpoint, top=arguments.top
  )
  num_images = MOST_IN_GRID if arguments.grid else 0
  answers, reasons, images = predict(run, paths, num_images, 'skip')
  predictions, unreadable = [], []
  for path, answer in zip(paths, answers, strict=True):
    if answer:
      best = ', '.join(f'{name} {p:.4f}' for name, p in answer)
      print(f'{path}: {best}', file=sys.stderr)
      classes = [{'class': name, 'probability': p} for name, p in answer]
      predictions.append({'file': path, 'classes': classes})
    else:
      unreadable.append({'file': path, 'reason': reasons[path]})
  if unreadable:
    text = f'error: {len(unreadable)} of {len(paths)} files cannot be read;'
    print(f'{text} the warnings above name them', file=sys.stderr)
  if arguments.csv:
    ends = [(['file'], ()), *(([path], ()) for path in paths)]
    count = max(map(len, answers))
    evaluate.write_answers(arguments.csv, count, answers, ends)
  if images:
    _draw(arguments.grid, images, [answer[0] for answer in answers if answer])
  return {'predictions': predictions, 'unreadable': unreadable}


def predict(
  run, inputs: Sequence, num_images: int = 0, unreadable: str = 'stop'
) -> tuple[list[list[tuple[str, float]]], dict[str, str], list]:
  """Classifies the inputs of a `data.folder.ImageList` with a loaded network.

  Returns:
    (answers: (class, probability) of the best classes of each image, the best
    first, none if it is skipped; {name: reason} of those; the first
    `num_images` of the others, uint8 [crop_size, crop_size, channels], as the
    network sees them before it subtracts the mean).
  """
  from alexnet_jax.evaluation import evaluate, loading

  run, loader = loading.open_images(run, inputs, unreadable)
  images = []

  def keep(batch):  # copies the first images
    if len(images) < num_images:
      seen = batch['image'][batch['mask']]
      images.extend(seen[: num_images - len(images)])

  try:
    found = evaluate.measure_all(run, loader, on_batch=keep).predictions
  except errors.UserError:
    names = map(loader.source.describe, range(len(inputs)))
    if loader.unreadable.keys() >= set(names):
      return [[] for _ in inputs], loader.unreadable, []
    raise
  answers = list(evaluate.best_classes(run.class_names, found))
  return answers, loader.unreadable, images


def _draw(path, images, best):
  from alexnet_jax.evaluation import figures

  count = len(images)
  captions = [(name, f'{p:.1%}') for name, p in best[:count]]
  columns = math.ceil(math.sqrt(count))
  figure = figures.draw_grid(images, columns, 120, captions)
  figures.save(figure, pathlib.Path(path))
  if len(best) > count:
    text = f'{path} has the first {count} of {len(best)} images'
    print(text, file=sys.stderr)


if __name__ == '__main__':
  sys.exit(main())
