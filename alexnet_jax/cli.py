"""Parts of all commands: exit codes, JSON line, arguments, console."""

import argparse
from collections.abc import Callable, Iterable, Sequence
import contextlib
import errno
import io
import json
import logging
import os
import re
import stat
import sys
import time

from alexnet_jax import errors, files, runtime

_LOG_FORMAT = '%(levelname)s %(message)s'
# Names of classes and files are of strangers: of what steers a terminal they
# get the colors, and the bars, that rich makes.
_CONTROL = re.compile(
  '[\x00-\x08\x0b\x0c\x0e-\x1a\x1c-\x1f\x7f-\x9f]'
  '|\x1b(?!\\[(?:[0-9;]*m|\\?25[lh]|[0-9]*[AK]))'
)
_prefix = ''


class _LastingStream:
  """A standard stream that outlives whoever reads it: a pipe, a terminal."""

  def __init__(self, stream, must_arrive: bool):
    """`must_arrive`: whether a full disk is an error, and no loss."""
    self._stream = stream
    self._must_arrive = must_arrive

  def __getattr__(self, name):
    return getattr(self._stream, name)

  def write(self, text: str) -> int:
    shown = text if self._must_arrive else _CONTROL.sub('\ufffd', text)
    self._try(lambda: self._stream.write(shown))
    return len(text)

  def flush(self) -> None:
    self._try(self._stream.flush)

  def _try(self, function):
    try:
      function()
    except OSError as error:
      # A terminal that was closed gives EIO, and so does a broken disk.
      handle = self._stream.fileno()
      is_file = stat.S_ISREG(os.fstat(handle).st_mode)
      is_lost = error.errno in (errno.EPIPE, errno.EIO) and not is_file
      if is_lost or self._must_arrive:
        with open(os.devnull, 'w') as null:  # also for what libraries write
          os.dup2(null.fileno(), handle)
      if self._must_arrive and not is_lost:
        raise


@contextlib.contextmanager
def _lasting_streams():
  """Lets nothing that a command prints end it; its result must be written."""
  # A file that a run opens must not become a standard stream that is closed.
  while (null := os.open(os.devnull, os.O_RDWR)) < 3:
    pass
  os.close(null)
  before = sys.stdout, sys.stderr
  out, err = (stream or open(os.devnull, 'w') for stream in before)  # noqa: SIM115
  sys.stdout, sys.stderr = _LastingStream(out, True), _LastingStream(err, False)
  try:
    yield
  finally:
    sys.stderr.flush()
    sys.stdout, sys.stderr = before


@_lasting_streams()
def run(
  function: Callable[[], dict | None],
  *,
  json_output: bool,
  uses_jax: bool = True,
  exit_code: Callable[[dict], int] | None = None,
) -> int:
  """Calls a command's work; returns its exit code.

  Args:
    function: returns the command's result, a JSON object; None: another process
      of the same run has it.
    json_output: whether the result is printed, as the last line of standard
      output; everything for people goes to standard error.
    uses_jax: whether the command computes with it; see `runtime.configure`.
    exit_code: of the result, where a command that is done may have bad news.
  """
  logging.basicConfig(
    stream=sys.stderr, level=logging.WARNING, format=_LOG_FORMAT
  )
  # Orbax warns of the meaning of our options, and shows where in it a save
  # failed; `checkpoint` tells why.
  for name in ('absl', 'asyncio'):
    logging.getLogger(name).setLevel(logging.CRITICAL)
  if sys.unraisablehook is sys.__unraisablehook__:
    sys.unraisablehook = _unraisable
  if uses_jax:
    runtime.configure()
  try:
    result = function()
    if json_output and result is not None:
      print(json.dumps(result, sort_keys=True))
    sys.stdout.flush()
  except BaseException as error:
    if (known := exit_code_and_message(error)) is None:
      raise
    code, message = known
    print(f'{_prefix}{message}', file=sys.stderr)
    return code
  return exit_code(result) if exit_code else errors.EXIT_DONE


def _unraisable(unraisable):
  """Leaves out what threads of TensorStore say after a save that failed."""
  if str(unraisable.exc_value) != 'Event loop is closed':
    sys.__unraisablehook__(unraisable)


def exit_code_and_message(error: BaseException) -> tuple[int, str] | None:
  """Returns an exception's exit code and message; None if it is a bug."""
  match error:
    case errors.UserError():
      return errors.EXIT_USER, f'error: {error}'
    case errors.NonFiniteLossError():
      return errors.EXIT_FAILURE, f'error: {error}'
    case errors.Interrupted():
      return errors.EXIT_INTERRUPTED, (
        f'interrupted by {error}; the same command goes on from here'
      )
    case errors.ProcessLost():
      return errors.EXIT_INTERRUPTED, (
        f'another process of the run is lost ({error}); the same command goes'
        ' on from the newest checkpoint'
      )
    case KeyboardInterrupt():
      return errors.EXIT_FAILURE, 'error: interrupted'
    case Exception() if reason := files.no_room(error):
      return errors.EXIT_USER, (
        f'error: {getattr(error, "filename", None) or "while writing"}:'
        f' {reason}; complete checkpoints stay valid: make room and start the'
        ' same command again'
      )
    case OSError() if error.filename:
      return errors.EXIT_USER, f'error: {error.filename}: {error.strerror}'
    case Exception():
      if problem := runtime.platform_problem():
        return errors.EXIT_USER, f'error: {problem}'
  return None


def make_parser(
  name: str, description: str, epilog: str = '', abbreviations: bool = True
) -> argparse.ArgumentParser:
  """Returns the parser of a command, of the module `name`.

  `abbreviations` of flags do not go with --config.KEY=VALUE.
  """
  return argparse.ArgumentParser(
    prog=f'python -m alexnet_jax.{name}',
    description=description,
    epilog=epilog,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=abbreviations,
  )


def run_parsed(
  parser: argparse.ArgumentParser,
  argv: list[str] | None,
  work: Callable[[argparse.Namespace], dict],
  exit_code: Callable[..., int] = lambda arguments, result: errors.EXIT_DONE,
) -> int:
  """Adds --json, and calls a command's `work` with its arguments; see `run`.

  `exit_code` is that of (arguments, result).
  """
  add_json(parser)
  arguments = parser.parse_args(argv)
  json_output = arguments.json
  del arguments.json
  return run(
    lambda: work(arguments),
    json_output=json_output,
    exit_code=lambda result: exit_code(arguments, result),
  )


def set_prefix(prefix: str) -> None:
  """Sets the text that all messages of this process begin with."""
  global _prefix
  _prefix = prefix
  for handler in logging.getLogger().handlers:
    handler.setFormatter(logging.Formatter(prefix + _LOG_FORMAT))


def add_recipe(parser: argparse.ArgumentParser) -> None:
  """Adds --config to the arguments of a command that trains."""
  text = 'a file, or the name of one in configs/ (default: %(default)s)'
  options = {'default': 'quickstart', 'metavar': 'RECIPE', 'help': text}
  parser.add_argument('--config', **options)


def path(text: str) -> str:
  """Type of arguments that name files or folders; see `files.local_path`."""
  try:
    return files.local_path(text)
  except errors.UserError as error:
    raise argparse.ArgumentTypeError(error) from error


def positive(text: str) -> int:
  """Reads a number above 0, as argparse's `type`."""
  if (number := int(text)) < 1:
    raise argparse.ArgumentTypeError(f'{text} is not positive')
  return number


def add_workdirs(parser, metavar: str, text: str) -> None:
  """Adds the folders of several runs."""
  options = {'nargs': '*', 'type': path, 'metavar': metavar, 'help': text}
  parser.add_argument('workdirs', **options)


def add_run(parser: argparse.ArgumentParser) -> None:
  """Adds --workdir and --checkpoint, of a run that was trained."""
  text = 'folder of the run'
  parser.add_argument(
    '--workdir', required=True, type=path, metavar='DIR', help=text
  )
  text = 'final (what the run ended with, default), newest, best or a step'
  parser.add_argument('--checkpoint', default='final', help=text)


def add_data_path(parser: argparse.ArgumentParser) -> None:
  """Adds --data_path, of a run whose data is read again."""
  text = 'where the data lies now (default: where it lay in training)'
  parser.add_argument(
    '--data_path', default='', type=path, metavar='DIR', help=text
  )


def add_data_source(parser: argparse.ArgumentParser) -> None:
  """Adds --data_source, of data of another kind than that of the training."""
  text = 'kind of the data: folder, imagenet, tar, parquet, raw, tfds or'
  text += ' tfds:NAME (default: that of training)'
  parser.add_argument('--data_source', default='', metavar='KIND', help=text)


def add_split(parser: argparse.ArgumentParser) -> None:
  """Adds --split, of the data that is measured."""
  text = 'validation (default) or train; for TFDS also its own split names'
  parser.add_argument('--split', default='validation', help=text)


def add_crops(parser: argparse.ArgumentParser) -> None:
  """Adds --crops: 1 or 10."""
  text = '1: the center (default), 10: also the four corners, and all mirrored;'
  text += ' their probabilities are averaged'
  options = {'type': int, 'choices': (1, 10), 'default': 1}
  parser.add_argument('--crops', help=text, **options)


def add_json(parser: argparse.ArgumentParser) -> None:
  """Adds --json; see `run`."""
  text = 'end standard output with one JSON object'
  parser.add_argument('--json', action='store_true', help=text)


class NullStream(io.TextIOBase):
  """A stream that drops what is written, where process 0 speaks for all."""

  def write(self, text: str) -> int:
    return len(text)


class Console:
  """Tables, lines and one progress bar for people, on standard error.

  Without a terminal a bar is silent, or a line now and then.
  """

  def __init__(self, stream=None):
    import rich.console

    self._stream = stream or sys.stderr
    self._is_terminal = self._stream.isatty()
    self._rich = rich.console.Console(
      file=self._stream,
      width=None if self._is_terminal else 120,
      highlight=False,
      markup=False,  # paths, patterns and class names mean what they say
      emoji=False,
    )
    self._bar = None

  def table(
    self,
    title: str,
    rows: Iterable[Sequence[str]],
    columns: Sequence[tuple[str, str]] = (),
  ) -> None:
    """Prints a table; `columns` have a name and are `left` or `right`."""
    import rich.table

    style = {'show_header': bool(columns), 'title_justify': 'left'}
    table = rich.table.Table(title=title, **style)
    for name, justify in columns:
      table.add_column(name, justify=justify, overflow='fold')
    for row in rows:
      table.add_row(*row)
    self._rich.print(table)

  def line(self, text: str) -> None:
    """Prints a line, above the bar if there is one."""
    self._rich.print(text, soft_wrap=True)
    self._stream.flush()

  def start(
    self, total: int, done: int, unit: str, what: str, line_seconds: float = 0
  ) -> None:
    """Starts a progress bar over `total` units, such as `image`s.

    Without a terminal there is a line every `line_seconds`; 0: never.
    """
    self._total, self._first, self._unit, self._what = total, done, unit, what
    self._begun = self._shown = time.monotonic()
    self._line_seconds = line_seconds
    if self._is_terminal:
      from rich import progress

      self._bar = progress.Progress(
        progress.TextColumn('{task.description}', markup=False),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
        progress.TimeRemainingColumn(),
        progress.TextColumn('{task.fields[text]}', markup=False),
        console=self._rich,
        refresh_per_second=4,
      )
      options = {'total': total, 'completed': done, 'text': ''}
      self._task = self._bar.add_task(what, **options)
      self._bar.start()

  def advance(self, done: int) -> None:
    """Moves the bar to `done` units."""
    if self._bar is not None:
      self._bar.update(self._task, completed=done)
      return
    now = time.monotonic()
    if self._line_seconds and now - self._shown > self._line_seconds:
      self._shown = now
      speed = (done - self._first) / max(now - self._begun, 1e-6)
      left = (self._total - done) / max(speed, 1e-6)
      self.line(
        f'{self._what}: {done:,} of {self._total:,} {self._unit}s,'
        f' {speed:.0f} {self._unit}s/s, {left:.0f} s left'
      )

  def values(self, text: str, done: str, left: str) -> None:
    """Shows numbers behind the bar; without one a line, `done: text, left`."""
    if self._bar is not None:
      self._bar.update(self._task, text=text)
    elif not self._is_terminal:
      self.line(f'{done}: {text}{left}')

  def stop(self) -> None:
    """Ends the bar."""
    if self._bar is not None:
      self._bar.stop()
      self._bar = None
