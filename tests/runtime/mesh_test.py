"""A mesh that cannot be made, or cannot split the model or the rows, is refused."""

import os

import jax
import numpy as np
import pytest
from jax.experimental import topologies

from opsd_jax.runtime.mesh import check_heads, check_rows, make_mesh


@pytest.mark.parametrize(
  "sizes,words",
  [
    ((3, 1, 1), r"needs 3 devices, there are 8.*\[1, 2, 4, 8\]"),
    ((3, -1, 1), "3 does not divide 8"),
    ((-1, -1, 1), "at most one is -1"),
    ((0, 1, 1), "positive"),
  ],
)
def test_a_senseless_mesh_is_refused(sizes, words):
  with pytest.raises(ValueError, match=words):
    make_mesh(*sizes, devices=jax.devices()[:8])


def test_the_data_axis_crosses_the_slices_of_a_pod():
  """Two slices of eight TPUs that are not there."""
  pytest.importorskip("libtpu")
  os.environ |= {"TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
  pod = topologies.get_topology_desc(
    platform="tpu", topology_name="v5e:2x4", num_slices=2
  )

  def slices(mesh):
    return np.vectorize(lambda d: d.slice_index)(mesh.devices)

  mesh = make_mesh(4, 2, 2, devices=pod.devices)
  assert slices(mesh).tolist() == [[[i] * 2] * 2 for i in (0, 0, 1, 1)]
  with pytest.raises(ValueError, match="on 2 slices of 8.* a multiple of 2"):
    make_mesh(1, -1, 1, devices=pod.devices)


def test_heads_and_rows_that_do_not_split_are_refused():
  mesh = make_mesh(1, 1, 8, devices=jax.devices()[:8])
  with pytest.raises(ValueError, match=r"9 heads, 3 key.*valid are \[1, 3\]"):
    check_heads(mesh, 9, 3, 1536)
  mesh = make_mesh(2, 4, 1, devices=jax.devices()[:8])
  with pytest.raises(ValueError, match=r"12 rows .* 8 row shards.*\[1, 2, 3"):
    check_rows(mesh, 12, 1)
  check_rows(mesh, 16, 2)
