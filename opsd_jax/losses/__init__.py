"""From logits and rewards to one number and its gradient."""
