"""`bench plot`: one picture of measured lines."""

from experiments.benchmarks.scaling import slope
from opsd_jax.reporting import style
from opsd_jax.runtime import paths

OURS, PEER, OTHER = style.BLUE, style.ORANGE, style.GREEN
COLOURS = {"ours": OURS, "chunked": OURS, "tunix": OTHER}  # all others: PEER


def read(path) -> list[dict]:
  """The lines of a file, each with the shape that its first line, the machine's,
  names."""
  rows = paths.read_rows(path)
  about = rows[0] if rows else {}
  return [{"shape": about.get("shape"), "file": path.stem} | r for r in rows]


def groups(rows: list[dict]) -> dict[str, dict[str, dict[str, float]]]:
  """The heights of all bars: {panel: {group: {side: height}}}."""
  panels = {name: {} for name in TITLES}

  def add(panel, group, side, height):
    panels[panel].setdefault(group, {})[side] = height

  for r in rows:
    if r["what"] == "summary" and "steps_per_second" in r:
      tokens = r["steps_per_second"] * r["mean_response_tokens"]
      add("steps", r["shape"] or "default", r["side"], tokens)
    elif r["what"] == "summary":
      add("sampling", r["shape"], r["side"], r["tokens_per_second"])
    elif r["what"] == "decode":
      add("decoding", f"{r['rows']} rows", r["side"], r["tokens_per_second"])
    elif r["what"] == "divergence":
      add("divergence", r["name"], r["side"], r["seconds"]["median"])
      for tokens, size in r["temporary_bytes_of"].items():
        add("memory", f"{r['name']}\n{tokens} tokens", r["side"], size / 1e9)
  return {name: found for name, found in panels.items() if found}


TITLES = {
  "steps": ("Whole steps", "response tokens a second"),
  "sampling": ("Rollouts of uneven lengths", "tokens a second"),
  "decoding": ("Decoding, all rows of one length", "tokens a second"),
  "divergence": ("Loss and gradient, V = 151,936", "seconds"),
  "memory": ("Memory of loss and gradient", "GB of temporaries"),
}


def bars(axis, found: dict[str, dict[str, float]]) -> None:
  """Draws the bars of each group side by side, each with its height above it."""
  sides = list(dict.fromkeys(s for group in found.values() for s in group))
  width = 0.8 / len(sides)
  for i, side in enumerate(sides):
    places = [g for g, group in enumerate(found.values()) if side in group]
    heights = [group[side] for group in found.values() if side in group]
    drawn = axis.bar(
      [g + (i - (len(sides) - 1) / 2) * width for g in places],
      heights,
      width,
      label=side,
      color=COLOURS.get(side, PEER),
    )
    axis.bar_label(drawn, fmt="%.3g", fontsize=7)
  axis.set_xticks(range(len(found)), found, fontsize=8)
  axis.set_ylim(top=1.2 * axis.get_ylim()[1])  # space for the legend
  axis.legend(frameon=False, fontsize=8)


def growth(axis, rows: list[dict]) -> None:
  """Draws seconds over size, relative to the smallest size, and the slopes."""
  colours = {
    "rows": OURS,
    "length": PEER,
    "vocabulary": OTHER,
    "new tokens": style.GREY,
  }
  for name, colour in colours.items():
    points = [r for r in rows if r["what"] == "scaling" and r["axis"] == name]
    if not points:
      continue
    sizes = [r["size"] / points[0]["size"] for r in points]
    seconds = [r["seconds"]["median"] for r in points]
    axis.plot(
      sizes,
      seconds,
      "o-",
      color=colour,
      label=f"{name} from {points[0]['size']:,}: slope {slope(sizes, seconds):.2f}",
    )
  axis.set(
    title="A train step, or rollout, as one size grows",
    xscale="log",
    xlabel="multiples of the smallest size",
    yscale="log",
    ylabel="seconds",
  )
  axis.set_xticks([1, 2, 4, 8, 16], [1, 2, 4, 8, 16])
  axis.minorticks_off()
  axis.set_ylim(top=20 * axis.get_ylim()[1])  # space for the legend
  axis.legend(frameon=False, fontsize=8)


def plot(paths, out):
  """Draws the lines of the files as a PNG; returns the figure."""
  rows = [row for path in paths for row in read(path)]
  panels = groups(rows)
  grows = any(r["what"] == "scaling" for r in rows)
  count = len(panels) + grows
  if not count:
    raise ValueError(
      f"nothing to draw in {', '.join(map(str, paths))}; expected lines of"
      " step, sample, divergence or scaling"
    )
  wide, high = min(3, count), -(-count // 3)
  figure = style.figure(4.4 * wide, 3.6 * high)
  axes = [figure.add_subplot(high, wide, i + 1) for i in range(count)]
  for axis, (name, found) in zip(axes, panels.items(), strict=False):
    bars(axis, found)
    title, unit = TITLES[name]
    axis.set(title=title, ylabel=unit)
  if grows:
    growth(axes[-1], rows)
  style.frame(*axes, grid="y")
  style.save(figure, out)
  return figure
