"""Training: recipes, losses, optimisers, and the loop that runs them."""
