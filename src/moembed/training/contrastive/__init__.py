"""The contrastive task: pairs, GradCache, the loss, and what is looked at on the way."""
