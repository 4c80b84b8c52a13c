"""What a step learns from: responses, verdicts, contexts, batches."""
