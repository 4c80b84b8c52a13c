"""The look of all pictures: colours and frames; and how a picture is written."""

import io

# The palette of Okabe and Ito (2008), which colour-blind people can distinguish.
COLOURS = AMBER, SKY, GREEN, YELLOW, BLUE, ORANGE, PINK = (
  "#E69F00",
  "#56B4E9",
  "#009E73",
  "#F0E442",
  "#0072B2",
  "#D55E00",
  "#CC79A7",
)
GREY = "#555555"  # of reference lines


def figure(width: float, height: float):
  """An empty matplotlib Figure, in inches. It belongs to no pyplot window, so it need
  not be closed, and a notebook keeps its backend."""
  # Imported in the function: it takes half a second, and most commands draw nothing.
  from matplotlib.figure import Figure

  return Figure(figsize=(width, height), layout="constrained")


def frame(*axes, grid: str | None = "both") -> None:
  """Removes the upper and right side of the frames and draws a grid."""
  for axis in axes:
    axis.spines[["top", "right"]].set_visible(False)
    if grid:
      axis.grid(alpha=0.2, axis=grid)


def save(figure, path) -> None:
  """Writes a PNG in one piece, since an object store takes whole objects."""
  image = io.BytesIO()
  figure.savefig(image, dpi=120, format="png")
  path.write_bytes(image.getvalue())
