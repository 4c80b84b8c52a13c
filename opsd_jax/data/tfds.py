"""tensorflow-datasets as random-access sources, without TensorFlow.

Beside the package's own datasets there is `opsd_jsonl`: the examples of a data file,
converted to array_record once.
"""

import hashlib
import re

import tensorflow_datasets as tfds

from opsd_jax.data.rows import Bad, Loaded
from opsd_jax.structs import Example

NAME = "opsd_jsonl"
FIELDS = ("id", "question", "solution", "answer")


class OpsdJsonl(tfds.core.GeneratorBasedBuilder):
  """Examples in the order of their file; `loaded` holds those to convert."""

  VERSION = tfds.core.Version("1.2.0")  # increases when rows.py reads differently

  def __init__(self, *, loaded: Loaded = Loaded((), {}), **kw):  # noqa: B008
    self.loaded = loaded
    super().__init__(**kw)

  def _info(self):
    return tfds.core.DatasetInfo(
      builder=self,
      disable_shuffling=True,
      features=tfds.features.FeaturesDict(
        {name: tfds.features.Text() for name in FIELDS}
      ),
      metadata=tfds.core.MetadataDict(
        dropped=self.loaded.dropped, not_read=self.loaded.not_read
      ),
    )

  def _split_generators(self, dl_manager):
    return {"train": self._generate_examples()}

  def _generate_examples(self):
    for i, e in enumerate(self.loaded.examples):
      yield i, {name: getattr(e, name) or "" for name in FIELDS}


def open_jsonl(path, read, settings, options: dict) -> Loaded:
  """The examples of a data file, out of its dataset.

  Args:
    path: the file.
    read: () -> Loaded; called where the dataset does not exist yet.
    settings: arguments of `read`; with the file's content they name the dataset.
    options: of the source.
  """
  with path.open("rb") as f:
    digest = hashlib.file_digest(f, "sha256")
  digest.update(repr(settings).encode())
  stem = re.sub(r"\W", "_", path.stem)[:80]
  config = tfds.core.BuilderConfig(name=f"{stem}_{digest.hexdigest()[:16]}")

  def make(**kw):
    return OpsdJsonl(
      config=config, data_dir=options.get("data_dir"), file_format="array_record", **kw
    )

  builder = make()
  if not builder.is_prepared():
    prepare(make(loaded=read()))
    builder = make()
  source = data_source(f"tfds:{NAME},path={path}", builder, options)
  fields = ([row[n] or None for n in FIELDS] for row in map(plain, source))
  counts = (dict(builder.info.metadata[name]) for name in ("dropped", "not_read"))
  return Loaded(tuple(Example(*values) for values in fields), *counts)


def find(name: str, options: dict):
  """The dataset's builder; ValueError where there is none of the name."""
  try:
    return tfds.builder(name, data_dir=options.get("data_dir"))
  except Exception as e:  # unknown, damaged, needs a package: many types
    raise ValueError(
      f"tfds:{name}: {type(e).__name__}: {str(e).splitlines()[0]}"
    ) from e


def prepare(builder) -> None:
  tfds.disable_progress_bar()
  try:
    builder.download_and_prepare(file_format="array_record")
  except OSError:
    # Another process may have prepared it in the meantime.
    if not builder.is_prepared():
      raise


def rows(source: str, name: str, options: dict):
  """Yields ("source:row", object or Bad) of a dataset; prepares it first."""
  builder = find(name, options)
  if not builder.is_prepared():
    try:
      prepare(builder)
    except Exception as e:  # offline, manual download, TensorFlow: many types
      raise ValueError(
        f"{source} is not prepared, and preparing it failed: {type(e).__name__}:"
        f" {str(e).splitlines()[0]}"
      ) from e
  for number, row in enumerate(data_source(source, builder, options), 1):
    try:
      yield f"{source}:{number}", plain(row)
    except UnicodeDecodeError as e:
      yield f"{source}:{number}", Bad("bad UTF-8", str(e))


def data_source(source: str, builder, options: dict):
  split = options.get("split", "train")
  try:
    return builder.as_data_source(split)
  except Exception as e:  # no such split, another file format
    raise ValueError(
      f"{source}, split {split}: {str(e).splitlines()[0]}"
      " (array_record is needed: prepare with file_format='array_record')"
    ) from e


def plain(row: dict) -> dict:
  """A row as Python values: tfds gives text as bytes, numbers as numpy scalars."""

  def to_python(x):
    if isinstance(x, bytes):
      return x.decode()
    return x.item() if getattr(x, "ndim", 1) == 0 else x

  return {name: to_python(x) for name, x in row.items()}
