"""Reading a response's answer, and whether two answers are the same."""
