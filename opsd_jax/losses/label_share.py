"""How much of a target should be the label: a closed form on held-out text."""

import numpy as np


def best_label_share(of_labels_NxV, of_teacher_NxV, y_N) -> float:
  """a that minimises the squared error of a f_y + (1 - a) f_T to the labels, a = <Y -
  f_T, f_y - f_T> / |f_y - f_T|^2 within [0, 1]: f_y and f_T are the probabilities that
  students of labels alone and of the teacher alone give to held-out text, N x V
  (after Borup & Andersen 2021, arXiv:2102.13088).

  Raises ValueError where both students are the same.
  """
  Y_NxV = np.eye(of_labels_NxV.shape[-1])[np.asarray(y_N)]
  apart = of_labels_NxV - of_teacher_NxV
  if not (size := np.square(apart).sum()):
    raise ValueError("both students say the same: no share is better than another")
  return float(np.clip(((Y_NxV - of_teacher_NxV) * apart).sum() / size, 0, 1))
