"""What is measured side by side: steps of das_jax and of PyTorch, of the same model on the same text."""
