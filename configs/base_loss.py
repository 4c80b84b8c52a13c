"""Every field of the loss, with its unit and meaning: memories, targets and terms.

configs/base.py makes one node of each; `term` and `target` make further ones.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def memory() -> ConfigDict:
  """Whose weights a teacher has."""
  m = ConfigDict()
  m.name = "fixed"  # live, fixed, ema, synced, shuffled
  m.rate = 0.05  # ema: how far towards the student a step
  m.every = 10  # synced: steps
  return m


def target(name: str = "one", view: int = 1, weights: str = "teacher") -> ConfigDict:
  """A target distribution made of the logits of teachers."""
  t = ConfigDict()
  # one; of it and the student anchored, toward, averaged, vetoed, demo_gated, softened;
  # of several extrapolated, residual, contrasted, mean, consensus
  t.name = name
  t.view = view  # which prompt it reads: 0 the student's, 1 the teacher's, ...
  t.weights = weights  # teacher, reference, live, external
  t.temperature = placeholder(float)  # of its logits; None: loss.temperature
  t.anchor_weight = 0.5  # anchored: log-space weight of `weights` beside live
  # toward: of the teacher's logits, the rest are the student's; averaged: of the
  # teacher's probabilities, the rest are those of `base`
  t.teacher_share = 0.5
  t.is_geometric = False  # averaged: in log space
  t.base = ""  # extrapolated, averaged: further weights; "": as `weights`
  t.strength = 1.0  # extrapolated, residual, contrasted, vetoed: 0 is the teacher
  t.bound = 10.0  # residual: nats, of the log-ratio
  t.views = 2  # mean, consensus: of the views view, ..., view + views - 1
  t.also = ()  # mean: further weights that read the same views
  t.k = 100  # contrasted: entries of the vocabulary that are moved
  t.most, t.gain = 0.15, 50.0  # demo_gated: of the student's share, per nat of JSD
  t.low, t.high = 1.1, 1.5  # softened: temperatures
  t.rise, t.pivot = 0.5, 1.2  # softened: nats of entropy
  return t


def term(kind: str, scale: float = 0.0, **fields) -> ConfigDict:
  """A complete node of a term: scale / denominator x the sum over tokens of
  weights x value."""
  t = ConfigDict()
  t.kind = kind  # one of KINDS
  t.scale = scale  # 0: off, nothing of it is computed; below 0 repels
  # by place: uniform, sequence_mean, skip_first, early, later,
  # later_mean; by the teacher:
  # unsure_teacher, unsure_student, disagreement; of whole responses or batches:
  # soft_or, sampled_entropy, confident_mismatch, calm_teacher, most_unsure,
  # least_likely, opener, early_disagreement, explore_then_refine, label_confidence,
  # unlikely_response, response_of_teacher, hinted, not_hinted
  t.token_weight = ConfigDict({"name": "uniform"})
  # of a response's tokens: soft_or, sampled_entropy, most_unsure, least_likely; of its
  # entropy: opener; of the batch: explore_then_refine
  t.token_weight.kept_share = 0.5
  # calm_teacher, unsure_student, unlikely_response, response_of_teacher, hinted
  t.token_weight.sharpness = 1.0
  t.token_weight.count = 3  # tokens: skip_first, early
  t.token_weight.least = 0.1  # weight: early, later
  # of a response's length: later, its sigmoid
  t.token_weight.middle, t.token_weight.width = 0.3, 0.1
  t.token_weight.threshold = 0.5  # nats: unsure_teacher, disagreement, hinted
  t.token_weight.strength = 0.5  # early_disagreement, explore_then_refine, hinted
  # of the global batch: tokens, responses, weighted_tokens (that count in this
  # term), total_weight (of routing and of weights that look at others), active_tokens (of responses with an advantage), budget (responses x
  # rollout.max_new_tokens)
  t.denominator = "tokens"
  # of a token's weight pi_old / pi_sampled for having been drawn from another
  # distribution than the loss's; 0: off
  t.importance_cap = 0.0
  KINDS[kind](t)
  t.update(fields)
  return t


def distill(t: ConfigDict) -> None:
  """A divergence of the student from a target."""
  t.target = "teacher"  # the name of a node of targets
  t.divergence = ConfigDict()
  # forward_kl, reverse_kl, reverse_kl_constant_ratio, jsd, total_variation,
  # squared_hellinger, chi_square, alpha; of the token: sampled_token,
  # squared_log_ratio; with the token as a label: cross_entropy, nkd
  t.divergence.name = "forward_kl"
  t.divergence.beta = 0.5  # jsd: M = beta teacher + (1 - beta) student
  t.divergence.alpha = 0.5  # alpha divergence
  t.divergence.others_weight = 1.5  # nkd
  t.divergence.others_temperature = 1.0  # nkd
  # full, top_k_tail, top_k_renormalised, top_k_raw
  t.divergence.support = "full"
  t.divergence.k = 0  # entries of a top-k support
  t.divergence.support_from = "teacher"  # whose top k: teacher, student
  t.divergence.clip = "none"  # none, signed, generalized, token_sum
  t.divergence.tau = 0.0  # nats, of a clip
  # both sides' logits before they are compared: plain, z_score, softer_where_rare
  t.logits = ConfigDict({"name": "plain"})
  t.logits.tau = 2.0  # z_score: temperature
  t.logits.low, t.logits.high = 1.0, 2.0  # softer_where_rare: temperatures


def policy_gradient(t: ConfigDict) -> None:
  """A surrogate of the expected reward."""
  t.target = "teacher"  # read by some surrogates and credits only
  t.against = "reference"  # a second target, read by hint_contrast and hinted
  t.surrogate = ConfigDict()
  t.surrogate.name = "ppo"  # reinforce, ppo, cispo, trrd, importance_sampled
  t.surrogate.clip_low = 0.2  # the ratio is at least 1 - clip_low
  t.surrogate.clip_high = 0.2  # and at most 1 + clip_high
  t.surrogate.old_share = 0.5  # trrd: S / (old^a T^(1 - a)), a
  t.credit = ConfigDict()  # a response's advantage -> its tokens'
  # with a reward: response, less_kl, plus_log_ratio, evidence, hint_contrast; without:
  # log_ratio, floored_log_ratio, returns, bounded_returns, unsure_is_worse
  t.credit.name = "response"
  # less_kl, plus_log_ratio: of the KL in the reward; evidence: of the teacher;
  # floored_log_ratio: l of the floor log(l) / (1 - l); bounded_returns: the teacher's
  # share; hint_contrast: the largest change
  t.credit.strength = 0.25
  t.credit.sharpness = 50.0  # hint_contrast: per nat
  t.credit.margin = 0.2  # evidence: the ratio is within 1 -+ margin
  t.credit.discount = 0.0  # returns: of a later token's reward
  t.credit.kept_share = 0.2  # unsure_is_worse: of a response's tokens


def kl_penalty(t: ConfigDict) -> None:
  """An estimate of KL(student || target) from the sampled token."""
  t.target = "reference"  # the name of a node of targets
  t.estimator = "k3"  # k1, k2, k3, ratio_k3


def nll(t: ConfigDict) -> None:
  """-log p of the response: supervised fine-tuning."""


def ranking(t: ConfigDict) -> None:
  """A loss of the order of vocabulary entries."""
  t.target = "teacher"  # the name of a node of targets
  # list_mle: of the student's likeliest entries; pld: the token, then the teacher's
  t.ranking = ConfigDict({"name": "list_mle", "k": 10})  # entries compared


def entropy(t: ConfigDict) -> None:
  """The student's entropy; minimised where scale is above 0."""


KINDS = {
  "distill": distill,
  "policy_gradient": policy_gradient,
  "kl_penalty": kl_penalty,
  "nll": nll,
  "ranking": ranking,
  "entropy": entropy,
}
