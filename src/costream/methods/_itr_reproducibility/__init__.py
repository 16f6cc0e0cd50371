"""The small model that the factors are varied around, and the experiment."""
