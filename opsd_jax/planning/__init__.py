"""Whether an experiment fits and how long it takes, before it runs."""
