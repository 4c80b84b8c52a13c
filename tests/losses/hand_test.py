"""Each method's loss on five tokens of four words, against its formula in numpy.

The method's config, the real loss in chunks of two tokens and, where it has one, the
scoring pass on one side; a few lines written from the paper on the other.
"""

import functools
import importlib

import jax.numpy as jnp
import numpy as np
import pytest

from opsd_jax.losses import chunked, objective, schedules, scoring
from opsd_jax.losses.objective import of_logits
from opsd_jax.rollouts import collate

LENGTHS = (3, 2)  # of two responses to one prompt
N, V = sum(LENGTHS), 4
RESPONSE = np.repeat([0, 1], LENGTHS)
INDEX = np.concatenate([np.arange(n) for n in LENGTHS])
LENGTH = np.repeat(LENGTHS, LENGTHS)
Y = np.array([2, 0, 3, 1, 2])
A = np.array([0.8, -0.4])  # of the responses
ROUTED = np.array([1.0, 0.5])
log, exp = np.log, np.exp


def softmax(z):
  e = exp(z - z.max(-1, keepdims=True))
  return e / e.sum(-1, keepdims=True)


@functools.cache
def logits(view: int, weights: str) -> np.ndarray:
  """N x V, of whoever reads this view."""
  seed = 10 * view + ("live", "teacher", "reference", "external").index(weights)
  return np.random.default_rng(seed).normal(size=(N, V), scale=1.5)


def prob(view: int, weights: str) -> np.ndarray:
  return softmax(logits(view, weights))


S, T = prob(0, "live"), prob(1, "teacher")


def at_y(p):
  return p[np.arange(N), Y]


def placed(x, tokens):
  """Values of the tokens in their order, where the batch has them."""
  x = np.asarray(x)
  out = np.zeros((*tokens.mask_BxT.shape, *x.shape[1:]), np.float32)
  out[np.asarray(tokens.mask_BxT) > 0] = x
  return jnp.asarray(out)


def batch_of(routed: dict, has=None):
  rows = [
    collate.Row(
      ((1,),),
      tuple(Y[RESPONSE == i]),
      advantage=A[i],
      weights={term: w[i] for term, w in routed.items()},
      group=0,
      exists={view: bool(x[i]) for view, x in (has or {}).items()},
    )
    for i in range(2)
  ]
  return collate.collate(rows, pad_id=0, bucket=8, response_bucket=8)


def loss_of(config, step=0, routed=None, has=None) -> float:
  """What the step would sum up, of logits that are the hidden states themselves."""
  for node in config.loss.values():
    if hasattr(node, "divergence"):
      node.divergence.k = min(node.divergence.k, 2)
    if hasattr(node, "ranking"):
      node.ranking.k = min(node.ranking.k, 2)
  config.loss.chunk = 2
  values = schedules.values_at(config.schedule, step)
  o = objective.from_config(config, values)
  batch = batch_of(routed or {}, has)
  one, eye = functools.partial(placed, tokens=batch.tokens), jnp.eye(V)
  h = one(logits(0, "live"))

  def teachers(learning):
    return {pair: (one(logits(*pair)), eye) for pair in o.teachers(learning)}

  if o.is_scored:

    def statistics(*args):
      return of_logits(o, {}, *args)[1]

    stats = chunked.statistics(
      statistics, h, eye, teachers(False), batch.tokens, chunk=2
    )
    batch, _ = scoring.weigh(o, stats, batch, None)
  divide = scoring.denominators(o, batch)
  total, _ = chunked.loss(
    functools.partial(of_logits, o, divide),
    h,
    eye,
    teachers(True),
    batch.tokens,
    chunk=2,
  )
  return float(total)


# ------------------------------------------------------------------- formulas


def fkl(t=T, s=S):
  return (t * log(t / s)).sum(-1)


def rkl(t=T, s=S):
  return fkl(s, t)


def jsd(beta, t=T, s=S):
  m = beta * t + (1 - beta) * s
  return beta * fkl(t, m) + (1 - beta) * fkl(s, m)


def entropy(p):
  return -(p * log(p)).sum(-1)


def gap(t=T):
  """log q(y) - log p(y)."""
  return log(at_y(t)) - log(at_y(S))


def renormalised(*distributions, of):
  """On the two likeliest entries of one."""
  ids = np.argsort(-of, -1)[:, :2]
  parts = (np.take_along_axis(p, ids, -1) for p in distributions)
  return [p / p.sum(-1, keepdims=True) for p in parts]


def with_tail(*distributions, of):
  ids = np.argsort(-of, -1)[:, :2]
  parts = (np.take_along_axis(p, ids, -1) for p in distributions)
  return [np.concatenate([p, 1 - p.sum(-1, keepdims=True)], -1) for p in parts]


def clipped(t=T, s=S, tau=0.05):
  return np.minimum(t * log(t / s), tau).sum(-1)


def best(score, share):
  """1 on the max(1, floor(share x length)) highest of each response."""
  kept = np.zeros(N)
  for i, n in enumerate(LENGTHS):
    mine = np.where(RESPONSE == i)[0]
    kept[mine[np.argsort(-score[mine])][: max(1, int(share * n + 1e-4))]] = 1
  return kept


def weighted_mean(values, weights):
  """Over the tokens whose weight is not 0."""
  return (values * weights).sum() / (weights != 0).sum()


def before(x):
  """The sum over the earlier tokens of a response."""
  return np.array(
    [x[(RESPONSE == RESPONSE[n]) & (INDEX < INDEX[n])].sum() for n in range(N)]
  )


def over(x):
  """The sum over a token's response."""
  return np.array([x[RESPONSE == RESPONSE[n]].sum() for n in range(N)])


def after(x, g=1.0):
  """sum over i >= t of g^(i - t) x_i."""
  out = np.zeros(N)
  for n in range(N):
    mine = (RESPONSE == RESPONSE[n]) & (INDEX >= INDEX[n])
    out[n] = (g ** (INDEX[mine] - INDEX[n]) * x[mine]).sum()
  return out


def surrogate(advantage):
  """The value of -ratio A at the first update, where the ratio is 1."""
  return -advantage


def plackett_luce(order, s):
  """[log-sum of the rest - s] of each place."""
  return [
    log(sum(exp(s[j]) for j in order[i:])) - s[order[i]] for i in range(len(order))
  ]


def list_mle():
  losses = []
  for n in range(N):
    two = np.argsort(-S[n])[:2]
    order = list(two[np.argsort(-T[n][two])])
    losses.append(sum(plackett_luce(order, log(S[n]))))
  return np.array(losses)


def pld():
  losses = []
  for n in range(N):
    first = [Y[n], *[v for v in np.argsort(-T[n]) if v != Y[n]][:2]]
    (rest,) = set(range(V)) - set(first)
    order = [*first, rest]
    places = plackett_luce(order, log(S[n]))
    losses.append(sum(T[n][v] * x for v, x in zip(order, places, strict=True)))
  return np.array(losses)


def nkd():
  losses = []
  for n in range(N):
    rest = [v for v in range(V) if v != Y[n]]
    t, s = (p[n][rest] / p[n][rest].sum() for p in (T, S))
    losses.append(-T[n][Y[n]] * log(S[n][Y[n]]) - 1.5 * (t * log(s)).sum())
  return np.array(losses)


def softened(p):
  """CurioSFT's temperature, by a search of its own."""
  out = []
  for row in p:
    H = entropy(row)
    wanted = H + 0.5 / (1 + exp(-2 * (H - 1.2)))
    grid = np.linspace(1.1, 1.5, 40_001)
    flat = softmax(log(row)[None] / grid[:, None])
    out.append(flat[np.abs(entropy(flat) - wanted).argmin()])
  return np.array(out)


def per_token_temperature(z, zt):
  t_y = at_y(softmax(zt))
  tau = (1 + (1 - t_y))[:, None]
  return fkl(softmax(zt / tau), softmax(z / tau))


def z_scores(z):
  z = (z - z.mean(-1, keepdims=True)) / z.std(-1, ddof=1, keepdims=True)
  return softmax(z / 2)


def normalised(q):
  return q / q.sum(-1, keepdims=True)


def residual():
  d = log(T) - log(prob(2, "teacher"))
  d = d - d.mean(-1, keepdims=True)
  return softmax(logits(0, "teacher") + 10 * np.tanh(d / 10))


def demo_gated(t=T, alone=None, most=0.15):
  alone = prob(0, "teacher") if alone is None else alone
  a = 2 * most * (1 / (1 + exp(-50 * jsd(0.5, t, alone))) - 0.5)
  return normalised(t ** (1 - a[:, None]) * alone ** a[:, None])


def consensus():
  views = np.stack([log(prob(v, "teacher")) for v in (1, 2)])
  log_g = views.mean(0)
  J = np.maximum(log(exp(views).mean(0)) - log_g, 0)
  gaps = views - log(S)
  m, size = abs(gaps.mean(0)), abs(gaps).mean(0)
  return softmax(log_g + m / size * m / (m + J) * J)


def sampled(t=T):
  """-A log p(y), A = log q(y) - log p(y)."""
  return -gap(t) * log(at_y(S))


A_TOKEN = A[RESPONSE]
ROUTED_TOKEN = ROUTED[RESPONSE]


def evidence(strength):
  w = np.clip(exp(np.sign(A_TOKEN) * gap()), 0.8, 1.2)
  return A_TOKEN * (1 - strength + strength * w)


def group_softmax(sign, p):
  mean = np.array([log(at_y(p))[RESPONSE == i].mean() for i in range(2)])
  return softmax(sign * mean)[RESPONSE]


def rlcsd():
  e = gap() - gap(np.mean([prob(v, "teacher") for v in range(2, 6)], 0))
  r = 0.5 * np.tanh(50 * e)
  chosen = abs(r) > 0.02
  moved = np.sign(A_TOKEN) * np.maximum(np.sign(A_TOKEN) * (A_TOKEN + r), 0)
  rest = (-A_TOKEN * ~chosen).sum() / max((~chosen).sum(), 1)
  return rest + (-moved * chosen).sum() / max(chosen.sum(), 1)


def contrasted():
  t, w = T, prob(2, "teacher")
  q = normalised(t**1.5 / w**0.5)
  k = fkl(t, w)
  return (clipped(q) * k / (k + 1)).mean()


def unsure_is_worse():
  kept, A = best(-log(at_y(S)), 0.2), np.zeros(N)
  A[kept > 0] = -0.5  # one token of a response: its entropy is lowest and highest
  return surrogate(A)[kept > 0].mean()


def minillm():
  r = gap()
  return (surrogate(after(r, 0.5) / after(np.ones(N), 0.5)) + rkl()).mean()


def top_d():
  r = log(0.5 * at_y(T) / at_y(S) + 0.5)
  later = after(r) - r
  count = np.maximum(LENGTH - INDEX - 1, 1)
  return surrogate(r + later / count).mean()


def tsd_kd():
  gate = 1 / (1 + exp(-(entropy(S) - entropy(T))))
  H = entropy(S)
  opener = before(H) < 0.1 * over(H)
  unsure = best(H, 0.9)
  return (
    (gate * jsd(0.9)).mean()
    + 0.1 * (list_mle() * opener).mean()
    + weighted_mean(H, unsure)
  )


def uskd():
  p2 = at_y(S) ** 2
  return (-(p2 + 1 - p2.mean()) * log(at_y(S))).mean()


EXPECTED = {
  "sdft": lambda: (fkl() * (INDEX >= 3)).sum() / N,
  "sd_zero": lambda: rkl(*with_tail(T, S, of=S)).mean(),
  "sd_zero:phase=1": lambda: weighted_mean(-log(at_y(S)), ROUTED_TOKEN),
  "paced": lambda: (rkl() * ROUTED_TOKEN).sum() / ROUTED_TOKEN.sum(),
  "paced:stages=2": lambda: (
    (fkl() * ROUTED_TOKEN).sum() / ROUTED_TOKEN.sum()  # step 0
  ),
  "caopd": lambda: (rkl() * (INDEX >= 3)).sum() / N,
  "rlsd": lambda: np.mean(
    [surrogate(evidence(0.5))[RESPONSE == i].mean() for i in range(2)]
  ),
  "hdpo": lambda: (
    np.mean([-A[i] * ROUTED[i] for i in range(2)])
    + weighted_mean(jsd(0.5, *with_tail(T, S, of=T)), ROUTED_TOKEN)
  ),
  "eopd": lambda: (
    surrogate(gap()) + (entropy(T) > 0.8) * fkl(*renormalised(T, S, of=T))
  ).mean(),
  "opd": lambda: surrogate(gap(prob(0, "external"))).mean(),
  "g_opd": lambda: sampled(
    normalised(prob(0, "external") ** 1.25 / prob(0, "reference") ** 0.25)
  ).mean(),
  "beta_opsd": lambda: rkl(normalised(np.sqrt(T * S))).mean(),
  "u_opsd": lambda: weighted_mean(clipped(), ROUTED_TOKEN),
  "purified_opsd": lambda: jsd(0.5, residual()).mean(),
  "opsa": unsure_is_worse,
  "opsa_safety": lambda: (fkl() * np.maximum(1 - 0.9 * INDEX / 32, 0.1)).mean(),
  "opsdc": lambda: rkl().mean(),
  "op2sd": lambda: fkl().mean(),
  "iw_opd": lambda: (
    sampled() * (1 + 0.5 * (1 - before(abs(gap())) / over(abs(gap()))))
  ).mean(),
  "gkd": lambda: jsd(0.5).mean(),
  "minillm": minillm,
  "curio_sft": lambda: (
    -log(at_y(S)) + (log(at_y(S)) - log(at_y(softened(prob(0, "teacher"))))) ** 2 / 2
  ).mean(),
  "tsd_kd": tsd_kd,
  "redi": lambda: np.mean(
    [(1 - 0.8) * ROUTED[i] * -log(at_y(S))[RESPONSE == i].mean() for i in range(2)]
  ),
  "dasd": lambda: -log(at_y(S)).mean(),
  "ded": lambda: -log(at_y(S)).mean(),
  "ps_kd": lambda: (
    (
      -0.9 * log(at_y(S)) - 0.1 * (prob(0, "teacher") * log(S)).sum(-1)  # step 5 of 40
    ).mean()
  ),
  "label_mix": lambda: (
    -0.5 * log(at_y(S)) - 0.5 * (prob(0, "teacher") * log(S)).sum(-1)
  ).mean(),
  "recursive_kd": lambda: fkl((prob(1, "reference") + T) / 2).mean(),
  "recursive_kd:mean=geometric": lambda: fkl(
    normalised(np.sqrt(prob(1, "reference") * T))
  ).mean(),
  "multi_prompt": lambda: fkl(
    np.mean([prob(v, "teacher") for v in (1, 2, 3)], 0)
  ).mean(),
  "multi_prompt:of=snapshots": lambda: fkl((T + prob(1, "reference")) / 2).mean(),
  "mdcs": lambda: weighted_mean(fkl(), ROUTED_TOKEN),
  "data_pruning": lambda: (0.75 * fkl() - 0.25 * log(at_y(S))).mean(),
  "quantised": lambda: fkl().mean(),
  "random_teacher": lambda: fkl().mean(),
  "nkd": lambda: nkd().mean(),
  "logit_standardisation": lambda: (
    36 * fkl(z_scores(logits(1, "teacher")), z_scores(logits(0, "live")))
    - 0.1 * log(at_y(S))
  ).mean(),
  "swing": lambda: per_token_temperature(
    logits(0, "live"), logits(1, "teacher")
  ).mean(),
  "sparse_kd": lambda: fkl(
    *renormalised(softmax(logits(1, "teacher") / 2), S, of=T)
  ).mean(),
  "pld": lambda: pld().mean(),
  "uskd": uskd,
  "sdpg": lambda: (
    -A_TOKEN * log(at_y(S))
    + 2e-4 * ROUTED_TOKEN * rkl()  # step 1 of 5 to the full scale
    + 1e-3 * (exp(gap(prob(0, "reference"))) - 1 - gap(prob(0, "reference")))
  ).mean(),
  "demo_psd": lambda: weighted_mean(
    rkl(*with_tail(demo_gated(), S, of=S)), ROUTED_TOKEN
  ),
  "rlcsd": rlcsd,
  "rlcsd:target=clip": contrasted,
  "pw_opsd": lambda: np.mean(
    [
      (clipped() * (0.25 + 0.75 / (1 + exp(-((INDEX + 0.5) / LENGTH - 0.3) / 0.1))))[
        RESPONSE == i
      ].mean()
      for i in range(2)
    ]
  ),
  "reopold": lambda: surrogate(gap())[gap() >= log(0.1) / 0.9].mean(),
  "avsd": lambda: sampled(consensus()).mean(),
  "scope": lambda: (
    weighted_mean(-log(at_y(S)), ROUTED_TOKEN * group_softmax(-1, S))
    + weighted_mean(rkl(), ROUTED_TOKEN * group_softmax(1, T))
  ),
  "sc_sdpo": lambda: (
    (jsd(0.5, *with_tail(T, S, of=S)) * ROUTED_TOKEN).sum() / ROUTED_TOKEN.sum()
  ),
  "top_d": top_d,
  "veto": lambda: fkl(normalised(T * S)).mean(),
  "top_k_raw": lambda: np.mean(
    [
      sum(S[n][v] * log(S[n][v] / T[n][v]) for v in np.argsort(-S[n])[:2])
      for n in range(N)
    ]
  ),
}
STEPS = {"ps_kd": 5, "sdpg": 1}


def config_of(method: str, **fields):
  name, _, arg = method.partition(":")
  config = importlib.import_module(f"configs.{name}").get_config(arg or None)
  config.update_from_flattened_dict(fields)
  return config


def routes(config) -> dict:
  """The same weight of each response in all terms that are routed."""
  from opsd_jax.registry import bind
  from opsd_jax.rollouts import contexts, routing

  terms = objective.active_terms(config)
  names = set(routing.keys(bind(routing.ALL, config.routing)))
  names |= {name for name, node in terms.items() if node.kind in names}
  if contexts.late_views(config.context):
    names.add("distill")
  return dict.fromkeys(names & set(terms), ROUTED)


@pytest.mark.parametrize("method", EXPECTED)
def test_the_loss_is_the_formulas(method):
  config = config_of(method)
  is_plain = method in ("sdpo", "rlcsd:target=clip", "sd_zero", "caopd")
  routed = {} if is_plain else routes(config)
  got = loss_of(config, STEPS.get(method, 0), routed)
  assert got == pytest.approx(EXPECTED[method](), rel=2e-5, abs=1e-6)
