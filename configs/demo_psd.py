"""DemoPSD: less of a demonstration that changes much (2026, arXiv:2607.02502).

SDPO whose target is T^(1 - a) S'^a, T and S' the EMA weights with and without the sibling
and a up to 0.15 by how far they are apart. a = 0 is SDPO with reverse KL.

  python -m experiments.train --config=configs/demo_psd.py --workdir=runs/demo_psd

Transcribed: Qwen3-8B on five sciences, best@16 82.12, SDPO 79.30; mean@16 65.10 and
63.42.
"""

from configs import sdpo


def get_config(arg=None):
  """`arg`: None or "tiny"."""
  config = sdpo.get_config(arg)
  target = config.targets.teacher
  target.name, target.most, target.gain = "demo_gated", 0.15, 50.0
  config.loss.distill.divergence.name = "reverse_kl"
  return config
