"""Tasks that only verify: how each reads a completion and compares its answer."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opsd_jax import tasks
from opsd_jax.structs import Example
from opsd_jax.tasks import competition_math, verify_only
from opsd_jax.tasks.grading import answers


def verify(name, reference, text):
  example = Example("0", "", None, reference)
  return tasks.open_task(name, "answer").verify(example, text)


def score(name, reference, text):
  return verify(name, reference, text).score


marks = st.sampled_from(
  [
    *"0129.,+-/^_(){}[]\\ xiBm%$\"'|!=<>:&",
    *(
      "\\frac",
      "\\sqrt",
      "\\le ",
      "\\cup",
      "\\text{",
      " or ",
      "\\sin",
      "\\ne",
      "\\log_",
    ),
  ]
)


@given(st.lists(marks, max_size=20).map("".join))
def test_any_text_has_a_verdict(text):
  assert answers.compare("7", text) in (True, False, None)
  assert score("gsm8k", "7", text) in (0, 1)
  for reference in (
    "(1,2)",
    "x>7",
    "7\\text{ cm}",
    "y=x+7",
    "\\text{(B) }7",
    "x=7,y=1",
  ):
    assert score("maths", reference, f"\\boxed{{{text}}}") in (0, 1)
  assert score("multiple_choice", "B", text) in (0, 1)
  assert score("exact", "7", text) in (0, 1)


@pytest.mark.parametrize(
  "text,expected",
  [
    (r"\boxed{1} the answer is 2", None),
    ("The answer is 2.", "2"),
    ("the answer is $\\frac12$.", "\\frac12"),
    ("Answer: 3.5 cm. Done.", "3.5 cm"),
    ("the answer is $5$ or $6$", "$5$ or $6$"),
    ("**Answer:** 7\nbye", "7"),
    ("the answer is $5$ million", "$5$ million"),
    ("no idea", None),
    ("The answer is: \\(x = 2\\), as asked", "x = 2"),
  ],
)
def test_the_final_answer_of_competition_maths(text, expected):
  assert competition_math.verify("0", text).answer == expected


@pytest.mark.parametrize(
  "reference,text,expected",
  [
    ("18", "9 * 2 = 18\n#### 18", 1),
    ("18", "#### 19", 0),
    ("18", "#### $18.00", 1),
    ("1,234", "#### 1234", 1),
    ("2,125", "it is 2,125.", 1),
    ("18", "18 and 19", 0),
    ("She has 3.\n#### 18", "#### 18", 1),
    ("18", "\\boxed{18} for 3 days", 1),
    ("18", "#### 18 dollars per day", 1),
    ("18", "#### 2 x 9 = 18", 1),
    ("18", "#### 18 or 19", 0),
    ("2", "the answer is 1/2", 0),
    ("1", "#### 1/2", 0),
    ("5", "#### 5 million", 0),
    ("5", "that is 5 million", 0),
    ("10", "2^10", 0),
    ("10", "so 2^{10}", 0),
    ("5", "it is .5", 0),
    ("0.5", "it is .5", 1),
    ("5", "He lost -$5", 0),
    ("-5", "He lost -$5", 1),
    ("50", "50% of them", 1),
    ("0.5", "50%", 1),
    ("2", "\\frac{1}{2}", 0),
    ("1.5", "3/2", 1),
    ("3", "", 0),
    ("20", "between 10-20", 1),
    ("18", "18!", 1),
    ("5", "#### five", 1),
    ("18", "#### 17\n#### 18", 1),
    ("18", "#### 18\n#### 17", 0),
    ("3", "\\boxed{2}\n#### 3", 1),
    ("1000", "1e3", 0),
    ("5", "2.5", 0),
    ("18", "**18**", 1),
    ("1000", "$1{,}000$", 1),
    ("18", "18.0", 1),
    ("18", "#### \\sqrt{18}", 0),
    ("18", "#### 18k", 0),
    ("18", "it is 18k", 0),
    ("5", "#### - 5", 0),
    ("5", "#### –5", 0),
    ("5", "minus 5", 0),
    ("5", "x = - 5", 0),
    ("5", "#### negative 5", 0),
    ("-5", "#### –5", 1),
    ("5", "5 twelfths", 0),
    ("18", "#### 18cm", 1),
    ("18", "#### \\text{18 dollars}", 1),
    ("10", "5–10", 1),
    ("5", "- 5", 1),
    ("18", "#### 18 eggs a day", 1),
    ("5", "\\boxed{5\\text{ million}}", 0),
    ("5", "\\boxed{5\\text{k}}", 0),
    ("5", "5½", 0),
    ("5", "5²", 0),
    ("5", "√5", 0),
    ("5", "\\boxed{√5}", 0),
    ("5", "±5", 0),
    ("5", "\u20115", 0),
    ("5", "\uff0d5", 0),
    ("5", "-£5", 0),
    ("-5", "\u20115", 1),
    ("5", "costs £5", 1),
    ("5", "the sum —5", 0),
    ("5", "#### 5 and a half", 0),
    ("5", "5 and three quarters", 0),
    ("5", "half of 5", 0),
    ("5", "twice 5", 0),
    ("2", "not 2", 0),
    ("5", "5 K", 0),
    ("5", "5 M", 0),
    ("5", "\\boxed{x+5}", 0),
    ("5", "#### x ≠ 5", 0),
    ("5", "#### > 5", 0),
    ("5", "\\(\\sqrt{5}\\)", 0),
    ("5", "5\\pi", 0),
    ("5", "1E5", 0),
    ("5", "2.5e-5", 0),
    ("0.5", "5 1/2", 0),
    ("5", "5 m", 1),
    ("5", "#### Total: 5", 1),
    ("5", "#### The answer is 5.", 1),
    ("18", "#### Step 1: Count\n#### Step 2: Double it\nSo \\boxed{18}.", 1),
    ("2", "#### Step 1: Count\n#### Step 2: Double it\nSo \\boxed{18}.", 0),
    ("18", "#### Step 2: Double it\n9*2=18\nShe has 18 eggs.", 1),
    ("2", "#### Step 2: Double it\n9*2=18\nShe has 18 eggs.", 0),
    ("18", "#### 18\nThat is all.", 1),
    ("18", "#### 18\nThe answer is 18.", 1),
  ],
)
def test_gsm8k(reference, text, expected):
  assert score("gsm8k", reference, text) == expected


@pytest.mark.parametrize(
  "reference,text,expected",
  [
    ("B", "B", 1),
    ("B", "(B)", 1),
    ("B", "b", 1),
    ("(B)", "B.", 1),
    ("B", "A", 0),
    ("B", "The answer is (B).", 1),
    ("B", "answer is **B**", 1),
    ("B", "#### B", 1),
    ("B", "\\boxed{\\text{B}}", 1),
    ("B", "\\boxed{B. 42}", 1),
    ("B", "B) 42", 1),
    ("B", "The answer is B because A is wrong.", 1),
    ("B", "B or C", 0),
    ("B", "answer is (B) or (C)", 0),
    ("A", "The answer is A dog", 0),
    ("A", "the answer is a dog", 0),
    ("B", "Because of this.", 0),
    ("B", "", 0),
    ("B", "Let me see.\nB", 1),
    ("B", "Option B", 1),
    ("C", "B, C", 0),
    ("B", "The answer is B, C", 0),
    ("D", "Answer: d)", 1),
    ("C", "C is incorrect. It should be D.", 0),
    ("C", "C isn't it", 0),
    ("C", "C is correct", 1),
    ("C", "(C) is not right", 0),
    ("B", "B seems plausible at first.\nHowever C is correct.\n(C)", 0),
    ("C", "B seems plausible at first.\nHowever C is correct.\n(C)", 1),
    ("B", "B can't be right, since it is odd.\nSo I pick C.\nC", 0),
    ("B", "B cannot be right", 0),
    ("C", "C programs are compiled.\nSo: (D)", 0),
    ("B", "\\boxed{B; C}", 0),
    ("B", "B. 42\nbecause it is even", 1),
    ("A", "#### Option A\nThis is wrong.\nThe answer is (C).", 0),
    ("C", "#### Conclusion\nThe answer is (C).", 1),
    ("A", "The answer is A (12)", 1),
    ("A", "The answer is A - Paris", 1),
    ("A", "The answer is A = 12", 1),
    ("A", "The answer is A which is 12", 1),
    ("A", "\\boxed{A \\quad 12}", 1),
    ("A", "\\boxed{A 12}", 1),
    ("B", "B looks tempting but C fits.", 0),
    ("B", "B can be ruled out, so C.", 0),
    ("D", "D would need x > 5, so it must be C", 0),
    ("B", "B seems right, but C fits", 0),
    ("B", "The answer is B is ruled out", 0),
    ("B", "B doesn't hold", 0),
    ("B", "The answer is B plus C", 0),
    ("B", "answer: B as well as C", 0),
    ("B", "\\boxed{B C}", 0),
    ("B", "answer: B - C", 0),
    ("C", "A: 5\nB: 6\nC: 7", 0),
    ("X", "X = 5", 0),
    ("F", "F = ma gives 5 N", 0),
    ("V", "V = 12 cm^3", 0),
    ("C", "**Answer**: C", 1),
    ("C", "**Final Answer**: C", 1),
    ("C", "C!", 1),
    ("C", "The answer is \\(C\\)", 1),
    ("C", "answer: \\(\\text{C}\\)", 1),
    ("C", "The answer is [C]", 1),
    ("C", "The answer is 'C'", 1),
    ("C", "\\boxed{[C]}", 1),
    ("A", "\\boxed{\\mathsf{A}}", 1),
    ("C", "The correct option is C", 1),
    ("C", "So the correct choice is (C).", 1),
    ("C", "The answer should be C.", 1),
    ("C", "Therefore, C.", 1),
    ("C", "It is C.", 1),
    ("C", "C is the answer", 1),
    ("B", "Let me list.\nA. 5\nB. 6\nThe answer is B.", 1),
  ],
)
def test_multiple_choice(reference, text, expected):
  assert score("multiple_choice", reference, text) == expected


@pytest.mark.parametrize(
  "reference,text,expected",
  [
    ("Paris", "paris", 1),
    ("Paris", "The answer is Paris.", 1),
    ("Paris", "Rome", 0),
    ("Paris", "Paris or Rome", 0),
    ("0.5", "1/2", 1),
    ("0.5", "0.51", 0),
    ("the  cat", "The cat", 1),
    ("the cat", "thecat", 0),
    ("12", "#### 12", 1),
    ("12", "\\boxed{12}", 1),
    ("12", "1 2", 0),
    ("a\nb", "a\nb", 1),
    ("x", " ", 0),
    ("True", "answer: true\nbecause", 1),
    ("yes", "no", 0),
    ("18", "#### Step 2\nnow 9*2\n\\boxed{18}", 1),
    ("2", "#### 2\nno, \\boxed{18}", 0),
  ],
)
def test_exact(reference, text, expected):
  assert score("exact", reference, text) == expected


# --------------------------------------------------------------- refusals

ONLY_VERIFY = ("gsm8k", "maths", "multiple_choice", "exact")


@pytest.mark.parametrize("name", ONLY_VERIFY)
def test_a_task_that_only_verifies_says_where_problems_come_from(name):
  with pytest.raises(ValueError, match="set data.train"):
    tasks.open_task(name, "answer").examples("train/0")
  with pytest.raises(ValueError, match="no options"):
    tasks.open_task(f"{name}:x", "answer")
  for missing in (None, "", "  "):
    with pytest.raises(verify_only.NoReference, match="example 0 has no answer"):
      verify(name, missing, "7")
