"""One meaning a word: identifiers that words once had, and what replaced them."""

import ast
import pathlib

ROOT = pathlib.Path(__file__).parents[1]

# Everywhere.
OLD = {
  "told": "teacher_params, has_teacher, privileged_text, teacher_len, args",
  "judge": "score (a teacher), verify (a verifier), Evaluator",
  "Judge": "Evaluator",
  "judge_base": "evaluate_base",
  "judged": "verified, graded, or a noun",
  "tok": "stats, tokenizer",
  "ask": "make_rows, next_problems, build_prompts",
  "how": "settings, runtime, or a noun",
  "own": "say the noun",
  "here": "say the noun",
  "at": "say the noun",
  "shares": "say the noun",
  "share": "local_shard, or a noun",
  "room": "say the noun",
  "got": "outputs, or a noun",
  "sure": "confidence",
  "lost": "say the noun",
  "right": "correct",
  "right_NxK": "correct_NxK",
  "centred": "mean_baseline",
  "Subject": "EvaluatedModel",
  "How": "EvalSettings",
  "taught": "training_questions",
  "silent": "no_answer",
  "refuse_other": "check_same_config",
  "OBSERVATIONAL": "RESUMABLE_CHANGES",
  "let_in": "prefill_into_slots",
  "Board": "Scheduler",
  "waits": "has_queue",
  "halves": "size_ladder",
  "doubles": "size_ladder",
  "of_prefill": "prefill_batch",
  "Knobs": "SamplingParams",
  "knobs": "sampling_params",
  "lowest_kept": "filter_threshold",
  "own_rows": "to_local",
  "all_rows": "to_replicated",
  "put_rows": "to_global",
  "from_first": "broadcast_from_first",
  "relaid": "reshard",
  "bury": "replace_worker",
  "complaint": "stderr_tail",
  "SWOLLEN": "EXIT_OUT_OF_MEMORY",
  "hand_out": "dispatch",
  "STARTS": "MAX_FAILED_STARTS",
  "unverified": "count_unverifiable",
  "misleading": "count_contradicting_solutions",
  "fit_to": "resolve_attention",
  "how_to_run": "runtime_fields",
  "PerToken": "TokenStats",
  "Token": "ResponseTokens",
  "at_BxT": "predictor_BxT",
  "Unit": "PromptGroup",
  "over_cache": "decode_attention",
  "Where": "Positions",
  "same_text": "normalize_question",
  "Problem": "Prompts",
  "Problems": "Split",
  "Dataset": "Split",
  "Reply": "Completion",
  "max_row": "max_sequence_len",
  "row_tokens": "pack_len",
  "decode_steps": "host_sync_every",
  "pull": "anchor_weight",
  "owner": "support_from",
}
# Only as what a file defines (functions, classes, their fields and parameters):
# elsewhere the word may be the noun.
OLD_IN = {
  "evaluation/harness.py": {"sit": "run_from_flags"},
  "evaluation/summary.py": {
    "columns": "per_problem_metrics",
    "shown": "format_estimate",
  },
  "runtime/workdir.py": {"alone": "exclusive", "claim": "write_config"},
  "sampling/scheduler.py": {
    "reach": "required_length",
    "least": "bucket_for",
    "together": "prefill_batch",
  },
  "sampling/tokens.py": {"pick": "sample_from_blocks", "largest": "bisect_threshold"},
  "runtime/distributed.py": {"leave": "abort"},
  "data/order.py": {"place": "iterator_state"},
  "runtime/checkpoint.py": {"place": "iterator_state"},
  "rollouts/collate.py": {"agree": "all_reduce_max", "up": "round_up"},
  "models/attention.py": {"bar": "unsupported_reason"},
  "models/transformer.py": {
    "turns": "rope_angles",
    "states": "response_states",
    "where": "positions",
  },
  "runtime/sharding_rules.py": {
    "kept": "as_stored",
    "gathered": "gather_fsdp",
    "product": "constrain_decode_output",
    "fitted": "drop_indivisible",
  },
  "losses/policy_gradient.py": {"plain": "reinforce"},
  "losses/teachers.py": {"pull": "anchor_weight"},
}
# Attributes of other libraries' objects, such as x.at[i].set of jax.
FOREIGN = {"at", "owner"}

# Kept: (word, file) where the left word is the right one; a file may end in "/".
KEPT = {
  ("right", "opsd_jax/planning/hlo.py"),  # beside left
  ("Dataset", "experiments/benchmarks/peers.py"),  # of the package datasets
}


def definitions(tree):
  """(line, name) of what a file defines: functions, classes, fields, parameters."""
  for node in ast.walk(tree):
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
      yield node.lineno, node.name
    elif isinstance(node, ast.arg):
      yield node.lineno, node.arg
    elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
      yield node.lineno, node.target.id


def identifiers(tree):
  """(line, word, whether an attribute) of every name in the code."""
  for node in ast.walk(tree):
    if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
      yield node.lineno, node.id, False
    elif isinstance(node, ast.Attribute):
      yield node.lineno, node.attr, True
    elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
      yield node.lineno, node.name, False
    elif isinstance(node, (ast.arg, ast.keyword)) and node.arg:
      yield node.lineno, node.arg, False
    elif isinstance(node, ast.alias):
      yield node.lineno, (node.asname or node.name).rpartition(".")[2], False


def is_kept(word, file):
  return any(
    w == word and (f == file or f[-1] == "/" and file.startswith(f)) for w, f in KEPT
  )


def found(root):
  for top in ("opsd_jax", "configs", "experiments"):
    for path in sorted((root / top).rglob("*.py")):
      file, tree = path.relative_to(root).as_posix(), ast.parse(path.read_text())
      scoped = OLD_IN.get(file.removeprefix("opsd_jax/"), {})
      seen = {
        (n, word): scoped[word] for n, word in definitions(tree) if word in scoped
      }
      for line, word, is_attribute in identifiers(tree):
        if word in OLD and not (is_attribute and word in FOREIGN):
          seen[line, word] = OLD[word]
      for (line, word), use in sorted(seen.items()):
        if not is_kept(word, file):
          yield file, line, word, use


def test_words_have_one_meaning():
  assert [f"{f}:{n}: {w}, say {use}" for f, n, w, use in found(ROOT)] == []


def test_what_is_kept_is_there():
  for word, file in KEPT:
    path = ROOT / file
    words = {w for _, w, _ in identifiers(ast.parse(path.read_text()))}
    assert word in words, f"{word} is no more in {file}: drop it from KEPT"
