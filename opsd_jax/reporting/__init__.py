"""What a person reads: text, pictures, a model card."""
