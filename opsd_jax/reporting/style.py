"""How every picture looks: its colours, its frame, and how it is kept."""

import io

# Of Okabe and Ito (2008): colour-blind people tell them apart.
COLOURS = AMBER, SKY, GREEN, YELLOW, BLUE, ORANGE, PINK = (
  "#E69F00",
  "#56B4E9",
  "#009E73",
  "#F0E442",
  "#0072B2",
  "#D55E00",
  "#CC79A7",
)
GREY = "#555555"  # of what is only there to compare with


def figure(width: float, height: float):
  """An empty matplotlib Figure, in inches. It belongs to no window: nothing has to
  close it, and a notebook's backend stays as it is."""
  # Here, since matplotlib takes half a second and most commands draw nothing.
  from matplotlib.figure import Figure

  return Figure(figsize=(width, height), layout="constrained")


def frame(*axes, grid: str | None = "both") -> None:
  """Leaves two sides of the frame, and a grid behind."""
  for axis in axes:
    axis.spines[["top", "right"]].set_visible(False)
    if grid:
      axis.grid(alpha=0.2, axis=grid)


def save(figure, path) -> None:
  """Writes a PNG, in one piece: a store takes whole objects."""
  image = io.BytesIO()
  figure.savefig(image, dpi=120, format="png")
  path.write_bytes(image.getvalue())
