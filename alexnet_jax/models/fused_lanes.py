"""What the kernels of `fused` share: who computes what, reading, arithmetic.

A program has some rows of one image, and of each row a tile: as many lanes as
it has threads. A lane is a few neighboring channels of one column, read as
words of 32 bits, each with two values where those are bfloat16; so threads side
by side read words side by side. What a lane needs of its neighbors it reads
itself, out of the first-level cache.
"""

import dataclasses

import jax
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
import jax.numpy as jnp

_THREADS = 128  # of a program, one for each lane
_LANE_WORDS = 2
_ROWS = 8  # of a program, at most


@dataclasses.dataclass(frozen=True)
class Lanes:
  """The division of one row of pixels, and of all rows of the images.

  Attributes:
    rows: of one image.
    columns: of one row.
    words: of one pixel.
    pack: values of one word.
    dtype: of the values.
  """

  rows: int
  columns: int
  words: int
  pack: int
  dtype: jnp.dtype

  @property
  def channels(self) -> int:
    """Of one lane."""
    return _LANE_WORDS * self.pack

  @property
  def place_dtype(self):
    """Of a word with a byte for each value."""
    return jnp.int16 if self.pack == 2 else jnp.uint8

  @property
  def chunks(self) -> int:
    """Programs that share a column."""
    return -(-self.rows // _ROWS)

  @property
  def steps(self) -> int:
    """Rows of a program; the last one may have less to do."""
    return -(-self.rows // self.chunks)

  @property
  def _per_pixel(self):
    return -(-self.words // _LANE_WORDS)

  @property
  def _tiles(self):
    return -(-self.columns * self._per_pixel // _THREADS)

  def span(self, neighbors: int) -> tuple[int, int]:
    """First and last + 1 of the words, relative to a lane's first word, that
    hold its channels and so many neighbors on each side.
    """
    more = -(-neighbors // self.pack)
    return -more, _LANE_WORDS + more

  def place(self):
    """Where a program is: (image, chunk, column [lanes], word [lanes])."""
    program = pl.program_id(0)
    chunk = lax.div(program, self._tiles)
    lane = lax.rem(program, self._tiles) * _THREADS + jnp.arange(_THREADS)
    return (
      lax.div(chunk, self.chunks),
      lax.rem(chunk, self.chunks),
      lax.div(lane, self._per_pixel),
      lax.rem(lane, self._per_pixel) * _LANE_WORDS,
    )

  def launch(self, kernel, outputs, batch, name, interpret, *arguments):
    """Runs `kernel` on references to the arguments and outputs."""
    return pl.pallas_call(
      kernel,
      out_shape=outputs,
      grid=(batch * self.chunks * self._tiles,),
      compiler_params=triton.CompilerParams(num_warps=_THREADS // 32),
      interpret=interpret,
      name=name,
    )(*arguments)


def make_lanes(x: jax.ShapeDtypeStruct, rows: int, columns: int) -> Lanes:
  """The division of `rows` rows of `columns` pixels each, with the channels and
  the dtype of `x`.
  """
  dtype, channels = jnp.dtype(x.dtype), x.shape[-1]
  pack = 2 if dtype == jnp.bfloat16 and channels % 2 == 0 else 1
  return Lanes(rows, columns, channels // pack, pack, dtype)


def packed(x: jax.Array, lanes: Lanes) -> jax.Array:
  """[batch, height, width, channels] as words [batch * height, ...].

  It is the same memory: XLA copies nothing.
  """
  shape = (-1, x.shape[-2] * lanes.words)
  if lanes.pack == 1:
    return x.reshape(shape)
  word = lanes.place_dtype if x.dtype == jnp.uint8 else jnp.int32
  return lax.bitcast_convert_type(x.reshape(*shape, lanes.pack), word)


def unpacked(words: jax.Array, shape, dtype) -> jax.Array:
  """What `packed` makes words of."""
  if words.dtype != dtype:
    words = lax.bitcast_convert_type(words, dtype)
  return words.reshape(shape)


def packed_shape(rows: int, columns: int, lanes: Lanes, *, places=False):
  """Shape and dtype of the words of values, or of their places."""
  word = jnp.int32 if lanes.pack == 2 else lanes.dtype
  return jax.ShapeDtypeStruct(
    (rows, columns * lanes.words), lanes.place_dtype if places else word
  )


def load(ref, row, column, word, neighbors: int, mask, lanes: Lanes) -> list:
  """A lane's channels of a pixel and as many more as its words hold.

  Args:
    ref: [rows, words].
    row: of the reference.
    column: [lanes], of the pixel.
    word: [lanes], the first one of the lane, of those of a pixel.
    neighbors: wanted on each side.
    mask: [lanes], which pixels there are.
    lanes: the division.

  Returns:
    A list over the channels of `lanes.span(neighbors)` of [lanes], 0 where a
    channel or the pixel does not exist: float32 of values, int32 of places.
  """
  values = []
  for offset in range(*lanes.span(neighbors)):
    own = word + offset
    loaded = triton.load(
      ref.at[row, column * lanes.words + own],
      mask=mask & (own >= 0) & (own < lanes.words),
      other=0,
    )
    values += _split(loaded, lanes)
  return values


def store(ref, row, column, word, values: list, mask, lanes: Lanes) -> None:
  """Writes a lane's channels of a pixel, as `load` without neighbors reads."""
  for offset in range(_LANE_WORDS):
    own = word + offset
    part = values[offset * lanes.pack : (offset + 1) * lanes.pack]
    triton.store(
      ref.at[row, column * lanes.words + own],
      _joined(part, ref.dtype, lanes),
      mask=mask & (own < lanes.words),
    )


def middle(values: list, neighbors: int, lanes: Lanes) -> list:
  """A lane's channels and exactly so many neighbors of what `load` gives."""
  extra = (len(values) - lanes.channels) // 2 - neighbors
  return values[extra : len(values) - extra]


def _split(word, lanes):
  if lanes.pack == 1:
    floating = jnp.issubdtype(word.dtype, jnp.floating)
    return [word.astype(jnp.float32 if floating else jnp.int32)]
  if word.dtype == lanes.place_dtype:
    word = word.astype(jnp.int32)
    return [word & 0xFF, (word >> 8) & 0xFF]
  # A bfloat16 is the upper half of a float32.
  halves = word << 16, word & jnp.int32(-0x10000)
  return [lax.bitcast_convert_type(half, jnp.float32) for half in halves]


def _joined(values, dtype, lanes):
  if lanes.pack == 1:
    return values[0].astype(dtype)
  if dtype == lanes.place_dtype:
    return (values[0] | (values[1] << 8)).astype(dtype)
  low, high = (
    lax.bitcast_convert_type(value.astype(lanes.dtype), jnp.int16)
    for value in values
  )
  return (low.astype(jnp.int32) & 0xFFFF) | (high.astype(jnp.int32) << 16)


def bias_words(bias: jax.Array | None, lanes: Lanes) -> tuple:
  """The argument of a kernel that `load_bias` reads; () if there is no bias.

  Args:
    bias: [channels], any float dtype; rounded to that of the activations.
    lanes: the division.
  """
  if bias is None:
    return ()
  return (packed(bias.astype(lanes.dtype)[None], lanes),)


def load_bias(refs, word, neighbors: int, lanes: Lanes) -> list:
  """A list over channels as of `load`; [] if `refs` is empty: no bias."""
  if not refs:
    return []
  column = jnp.zeros(word.shape, jnp.int32)
  everywhere = jnp.ones(word.shape, bool)
  return load(refs[0], 0, column, word, neighbors, everywhere, lanes)


def activations(values: list, bias: list, spec, lanes: Lanes) -> list:
  """What is normalized or pooled, of what the convolution gave: lists over
  channels of float32 [lanes].
  """
  if bias:
    values = [
      rounded(value + more, lanes)
      for value, more in zip(values, bias, strict=True)
    ]
  if spec.relu == 'before':
    values = [rectified(value) for value in values]
  return values


def rectified(x: jax.Array) -> jax.Array:
  """max(x, 0); what is not a number stays so."""
  return jnp.where(x <= 0, 0.0, x)


def rounded(x: jax.Array, lanes: Lanes) -> jax.Array:
  """float32 as close to `x` as the dtype of the activations allows."""
  return x.astype(lanes.dtype).astype(jnp.float32)


def brackets(values: list, spec) -> list:
  """k + scale * sum of squares around all but the outer `spec.half` values at
  each end of a list over channels.
  """
  squares = [value * value for value in values]
  return [
    spec.k + spec.scale * sum(squares[i : i + spec.size])
    for i in range(len(values) - 2 * spec.half)
  ]


def powers(bracket: jax.Array, beta: float) -> tuple[jax.Array, jax.Array]:
  """bracket ** -beta and bracket ** (-beta - 1), of a positive bracket."""
  if beta == 0.75:
    root = lax.rsqrt(bracket)
    power = root * jnp.sqrt(root)
    return power, power * root * root
  power = jnp.exp(-beta * jnp.log(bracket))
  return power, power / bracket
