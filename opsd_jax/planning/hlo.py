"""Traffic of a compiled program, to memory and between chips, read off its HLO.

XLA's own cost analysis counts the body of a loop once; this file counts it once an
iteration. Only text is read: nothing is run.
"""

import collections
import functools
import math
import re
from typing import NamedTuple

WIDTHS = {
  "pred": 1,
  "s4": 0.5,
  "u4": 0.5,
  "s8": 1,
  "u8": 1,
  "s16": 2,
  "u16": 2,
  "bf16": 2,
  "f16": 2,
  "s32": 4,
  "u32": 4,
  "f32": 4,
  "s64": 8,
  "u64": 8,
  "f64": 8,
  "c64": 8,
  "c128": 16,
}
COLLECTIVES = (
  "all-gather",
  "all-reduce",
  "reduce-scatter",
  "all-to-all",
  "collective-permute",
)
FREE = {  # instructions without traffic
  "parameter",
  "constant",
  "tuple",
  "get-tuple-element",
  "bitcast",
  "while",
  "conditional",
  "call",
  "after-all",
  "partition-id",
  "replica-id",
  "iota",
  "optimization-barrier",
  "async-start",
  "async-update",
}


class Instruction(NamedTuple):
  """A line of HLO."""

  name: str
  shape: str
  opcode: str
  operands: tuple[str, ...]
  attributes: str
  is_root: bool


def parse(text: str) -> dict[str, list[Instruction]]:
  """{computation: its instructions}; the entry computation is named "ENTRY"."""
  computations, current = {}, None
  for line in text.splitlines():
    if line.endswith("{") and not line.startswith((" ", "HloModule")):
      name = line.split()[1 if line.startswith("ENTRY") else 0].split("(")[0]
      name = "ENTRY" if line.startswith("ENTRY") else name
      current = computations.setdefault(name.lstrip("%"), [])
    elif line == "}":
      current = None
    elif current is not None and re.match(r"  (ROOT )?%[\w.-]+ = ", line):
      current.append(instruction(line))
  return computations


def instruction(line: str) -> Instruction:
  """Parses one line, `%name = shape opcode(operands), attributes`."""
  left, _, right = line.strip().partition(" = ")
  end = closing(right, 0) if right.startswith("(") else right.index(" ")
  shape, rest = right[:end], right[end:].strip()
  opcode, _, _ = rest.partition("(")
  end = closing(rest, len(opcode))
  operands = re.findall(r"%([\w.-]+)", rest[len(opcode) : end])
  if opcode in ("parameter", "constant"):  # the parameter's number, the value
    operands = [rest[len(opcode) + 1 : end - 1]]
  return Instruction(
    left.removeprefix("ROOT ").lstrip("%"),
    shape,
    opcode,
    tuple(operands),
    rest[end:],
    left.startswith("ROOT "),
  )


def closing(text: str, start: int) -> int:
  """Index after the bracket that closes the one at `start`."""
  depth = 0
  for i in range(start, len(text)):
    depth += (text[i] == "(") - (text[i] == ")")
    if depth == 0:
      return i + 1
  raise ValueError(f"HLO has unbalanced brackets: {text[:80]}")


def width(dtype: str) -> float:
  """Bytes of a value of that type."""
  if dtype.startswith("f8"):
    return 1
  if dtype not in WIDTHS:
    raise ValueError(f"HLO has values of an unknown type {dtype!r}")
  return WIDTHS[dtype]


def arrays(shape: str):
  """(dtype, dimensions, whether in HBM) of each array of a shape; the memory space
  S(1) is on chip."""
  for dtype, dims, layout in re.findall(r"(\w+)\[([\d,]*)\](\{[^}]*\})?", shape):
    if dtype not in ("token", "opaque"):
      dims = tuple(int(d) for d in dims.split(",") if d)
      yield dtype, dims, not re.search(r"S\([1-9]\d*\)", layout)


def size(shape: str, hbm_only: bool = True) -> float:
  """Bytes of a shape."""
  return sum(
    width(dtype) * math.prod(dims)
    for dtype, dims, hbm in arrays(shape)
    if hbm or not hbm_only
  )


class Traffic(NamedTuple):
  """Traffic of one chip."""

  memory: float  # bytes to and from HBM
  collectives: dict[str, float]  # {kind: bytes that the chip sends}
  counts: dict[str, float]  # {kind: how often it runs}


def traffic(text: str) -> Traffic:
  """Traffic of one run of the program, every loop iteration counted."""
  program = parse(text)
  found = re.search(r"num_partitions=(\d+)", text)
  devices = int(found[1]) if found else 1

  @functools.cache
  def computation_traffic(name: str) -> Traffic:
    memory, volumes = 0.0, collections.Counter()
    counts = collections.Counter()
    table = {i.name: i for i in program[name]}
    for i in program[name]:
      kind = i.opcode.removesuffix("-start")
      if kind in COLLECTIVES:
        volumes[kind] += volume(kind, i, table, devices)
        counts[kind] += 1
      if i.opcode not in FREE and not i.opcode.endswith("-done"):
        memory += moved(i, table, program)
      iterations = trip_count(i, program) if i.opcode == "while" else 1
      inside = [computation_traffic(n) for n in called(i) if n in program]
      if i.opcode == "conditional":  # one branch runs: count the most expensive
        inside = [max(inside, key=lambda t: t.memory)]
      for below in inside:
        # A fusion moves its operands and results, which are counted above.
        if i.opcode in ("while", "conditional", "call", "async-start"):
          memory += iterations * below.memory
        for k, v in below.collectives.items():
          # A fused all-reduce whose result is sliced is a reduce-scatter.
          is_half = (
            i.opcode == "fusion"
            and k == "all-reduce"
            and any(x.opcode == "dynamic-slice" for x in program[called(i)[0]])
          )
          to = "reduce-scatter" if is_half else k
          volumes[to] += iterations * v / (2 if is_half else 1)
          counts[to] += iterations * below.counts[k]
    return Traffic(memory, volumes, counts)

  return computation_traffic("ENTRY")


def called(i: Instruction) -> list[str]:
  """Names of the computations that an instruction runs, without scalar reducers."""
  reducers = ("reduce", "select-and-scatter", "sort", "scatter")
  if i.opcode.removesuffix("-start") in (*COLLECTIVES, *reducers):
    return []
  names = re.findall(
    r"(?:calls|body|to_apply|true_computation|false_computation)"
    r"=%?([\w.-]+)",
    i.attributes,
  )
  branches = re.search(r"branch_computations=\{([^}]*)\}", i.attributes)
  if branches:
    names += [n.strip().lstrip("%") for n in branches[1].split(",")]
  return names


def trip_count(i: Instruction, program) -> int:
  """Iterations of a loop: XLA's own count, else the bound in its condition."""
  known = re.search(r'known_trip_count[^}]*?"?n"?[:=]"?(\d+)', i.attributes)
  if known:
    return int(known[1])
  condition = re.search(r"condition=%?([\w.-]+)", i.attributes)[1]
  names, bounds = [condition], []
  while names:
    for inner in program.get(names.pop(), []):
      if inner.opcode == "constant" and re.match(r"[su]32\[\]", inner.shape):
        bounds.append(int(inner.operands[0]))
      names += called(inner)
  return max(bounds, default=1)


def volume(kind: str, i: Instruction, table, devices: int) -> float:
  """Bytes that a chip sends in a ring algorithm (Thakur et al. 2005)."""
  group = group_size(i.attributes) or devices
  ins = sum(size(table[o].shape, False) for o in i.operands if o in table)
  whole = {
    "all-gather": ins * group,
    "all-reduce": 2 * ins,
    "reduce-scatter": ins,
    "all-to-all": ins,
  }
  if kind == "collective-permute":
    return ins
  return whole[kind] * (group - 1) / group


def group_size(attributes: str) -> int:
  """Members of a replica group, in any notation of XLA; 0 where none is given,
  which means all devices."""
  groups = re.search(r"replica_groups=\{\{([\d,]+)\}", attributes)
  if groups:
    return len(groups[1].split(","))
  iota = re.search(r"replica_groups=\[\d+,(\d+)\]", attributes)
  if iota:
    return int(iota[1])
  mesh = re.search(r"replica_groups=mesh\[([^\]]*)\] *\{([^}]*)\}", attributes)
  if mesh:
    sizes = dict(re.findall(r"'([^']+)'=(\d+)", mesh[1]))
    return math.prod(int(sizes[a]) for a in re.findall(r"'([^']+)'", mesh[2]))
  return 0


def moved(i: Instruction, table, program) -> float:
  """Bytes that an instruction reads from and writes to HBM."""
  shapes = [table[o].shape for o in i.operands if o in table]
  if i.opcode.endswith("-start"):  # the result's shape includes the operands
    return size(i.shape)
  if i.opcode == "dynamic-slice":
    return 2 * size(i.shape)
  if i.opcode == "dynamic-update-slice":
    return 2 * size(shapes[1])
  if i.opcode == "fusion":
    inner = called(i)
    if inner and inner[0] in program:
      return moved_by_fusion(i, shapes, program[inner[0]], program)
  return size(i.shape) + sum(map(size, shapes))


def moved_by_fusion(i: Instruction, shapes, body, program) -> float:
  """Like `moved`, for a fusion: of an operand that it only slices, or updates in
  place, only the slice counts."""
  total, in_place = 0.0, 0.0
  for p in (x for x in body if x.opcode == "parameter"):
    whole = size(shapes[int(p.operands[0])])
    part, updates = touched(p, body, program)
    total += min(whole, part)
    in_place += whole if updates else 0
  return total + max(0.0, size(i.shape) - in_place)


def touched(p: Instruction, body, program) -> tuple[float, bool]:
  """(bytes that a fusion uses of its operand, whether it updates it in place)."""
  table, bytes_used, updates = {x.name: x for x in body}, 0.0, False
  for user in (x for x in body if p.name in x.operands):
    part, updated = math.inf, False
    if user.opcode == "dynamic-slice":
      part = size(user.shape, False)
    elif user.opcode == "dynamic-update-slice" and user.operands[0] == p.name:
      part, updated = size(table[user.operands[1]].shape, False), True
    elif user.opcode in ("bitcast", "copy"):
      part, updated = touched(user, body, program)
    elif user.opcode == "fusion":
      inner = program[called(user)[0]]
      number = str(user.operands.index(p.name))
      parameter = next(
        x for x in inner if x.opcode == "parameter" and x.operands == (number,)
      )
      part, updated = touched(parameter, inner, program)
    bytes_used, updates = bytes_used + part, updates or updated
  return bytes_used, updates


def most_tokens(text: str, vocabulary: int, widths) -> int:
  """The most tokens whose logits exist at once: rows of a buffer whose last axes are
  a vocabulary. A matrix with as many rows as one of `widths` is taken for a
  transposed unembedding."""
  most = 0
  for i in (i for body in parse(text).values() for i in body):
    for _, dims, _ in arrays(i.shape):
      for k in range(len(dims)):
        rows = math.prod(dims[:k])
        if math.prod(dims[k:]) == vocabulary and not (k == 1 and rows in widths):
          most = max(most, rows)
  return most
