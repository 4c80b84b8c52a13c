"""Every member of a family with the keywords that configs/base.py gives it, so that a
new one is tested without touching a test."""

from configs import base
from opsd_jax.registry import accepted


def keywords(function, node) -> dict:
  """The fields of a config node that a function takes, at their defaults."""
  return accepted(function, dict(node))


def divergence_keywords(function) -> dict:
  return keywords(function, base.term("distill").divergence)


def token_weight_keywords(function) -> dict:
  return keywords(function, base.term("distill").token_weight)


def surrogate_keywords(function) -> dict:
  return keywords(function, base.term("policy_gradient").surrogate)


def credit_keywords(function) -> dict:
  return keywords(function, base.term("policy_gradient").credit)


def target_keywords(function) -> dict:
  return keywords(function, base.target())


def teacher_keywords(function) -> dict:
  return keywords(function, base.memory())


def routing_keywords(function) -> dict:
  return keywords(function, base.get_config().routing)


def context_keywords(function) -> dict:
  return keywords(function, base.get_config().context)
