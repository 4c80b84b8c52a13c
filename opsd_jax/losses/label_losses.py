"""Losses of a response token `y`, beside the divergences of whole distributions.

  TOKEN     (logp_y, logq_y) -> loss, from the two log-probs of the token
  LABEL     (logp, logq, y, **kw) -> loss, of the vocabulary with the token as label
  RANKINGS  the same signature: of the order of vocabulary entries

`logp` is the student, `logq` the target, a constant; log-probs, float32, nats.
"""

import jax
import jax.numpy as jnp

from opsd_jax.losses.bounds import bounded, clamp, weighted

sg = jax.lax.stop_gradient


# ------------------------------------------------- of the two log-probs of y


def sampled_token(logp_y, logq_y):
  """-A log p(y), A = sg(log q(y) - log p(y)): the policy-gradient form.

  Its expectation over y ~ p has the gradient of reverse KL.
  """
  return -sg(logq_y - logp_y) * logp_y


def squared_log_ratio(logp_y, logq_y):
  """(log p(y) - log q(y))^2 / 2: the label's log-prob is held at the target's (k2 on
  a demonstration's token; CurioSFT, arXiv:2602.02244)."""
  return jnp.square(logp_y - logq_y) / 2


TOKEN = {"sampled_token": sampled_token, "squared_log_ratio": squared_log_ratio}
ON_POLICY = ("sampled_token",)  # means what it says of the student's own draws alone


# ------------------------------------------- of the vocabulary, y as a label


def take(logp, y):
  return jnp.take_along_axis(logp, y[..., None], -1)[..., 0]


def cross_entropy(logp, logq, y):
  """-sum q log p: forward KL plus the target's entropy. With the term nll at scale 1
  - a and this one at a it is the cross-entropy with (1 - a) onehot(y) + a q."""
  return weighted(logq, -logp).sum(-1)


def nkd(logp, logq, y, *, others_weight: float, others_temperature: float):
  """-q(y) log p(y) - g t^2 sum over i != y of N(q)_i log N(p)_i, N the softmax of
  log-probs / t without y: how sure of the label, and apart from that what else
  (Yang et al. 2023, arXiv:2303.13005)."""
  is_y = jnp.arange(logp.shape[-1]) == y[..., None]

  def others(x):
    return jax.nn.log_softmax(jnp.where(is_y, -jnp.inf, x / others_temperature))

  rest = weighted(others(logq), -jnp.where(is_y, 0.0, others(logp))).sum(-1)
  label = -jnp.exp(take(logq, y)) * take(logp, y)
  return label + others_weight * others_temperature**2 * rest


LABEL = {"cross_entropy": cross_entropy, "nkd": nkd}


# ------------------------------------------ of the order of vocabulary entries


def list_mle(logp, logq, y, *, k: int):
  """-log of the Plackett-Luce probability that the student's k likeliest entries
  come in the teacher's order (Xia et al. 2008; in TSD-KD, arXiv:2603.13260, whose
  released code has the order reversed).

  sum over i of logsumexp_{j >= i} s_(j) - s_(i), s_(i) the student's log-prob of
  the entry that the teacher ranks i-th; the choice has no gradient.
  """
  _, ids = jax.lax.top_k(sg(logp), k)
  student, teacher = (jnp.take_along_axis(bounded(x), ids, -1) for x in (logp, logq))
  best_first = jnp.argsort(-teacher, -1)
  s = jnp.take_along_axis(student, best_first, -1)
  broken = jnp.isnan(teacher).any(-1)  # an order hides it
  return jnp.where(broken, jnp.nan, (suffix_logsumexp(s) - s).sum(-1))


def pld(logp, logq, y, *, k: int):
  """sum over i of q_(i) (logsumexp_{j >= i} s_(j) - s_(i)), y first and the teacher's
  k likeliest other entries after it, the rest as one: the confidence in each place
  weighs how well it is kept (Plackett-Luce distillation, arXiv:2506.12542)."""
  is_y = jnp.arange(logp.shape[-1]) == y[..., None]
  k = min(k + 1, logp.shape[-1])
  _, ids = jax.lax.top_k(jnp.where(is_y, jnp.inf, sg(logq)), k)

  def with_rest(x):
    x_K = jnp.take_along_axis(bounded(x), ids, -1)
    mass = clamp(jax.nn.logsumexp(x_K, -1, keepdims=True), high=-1e-7)
    return jnp.concatenate([x_K, jnp.log(-jnp.expm1(mass))], -1)

  s, q = with_rest(logp), jnp.exp(with_rest(logq))
  return (q * (suffix_logsumexp(s) - s)).sum(-1)


def suffix_logsumexp(s):
  """logsumexp over j >= i of s_j."""
  return jax.lax.cumlogsumexp(s, axis=s.ndim - 1, reverse=True)


RANKINGS = {"list_mle": list_mle, "pld": pld}
