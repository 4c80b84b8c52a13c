"""Reading a reply: what every verifier needs."""

import re

# A sign counts where no word stands before it (not in 10-20); commas where
# three digits follow each of them (not in 12,34).
NUMBER = re.compile(
    r"(?:(?<![\w)])-)?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?"
)


def last_number(text: str) -> str | None:
  """The last number, thousands separators removed: "1,234.5" -> "1234.5"."""
  numbers = NUMBER.findall(text)
  return numbers[-1].replace(",", "") if numbers else None
