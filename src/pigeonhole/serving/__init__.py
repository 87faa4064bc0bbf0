"""The HTTP service: edge -> schemas -> batcher -> classifier -> recorder -> answer. No torch, and nothing of training."""
