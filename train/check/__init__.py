"""The data doctor: what a recipe's rows hold, and what a model learns from them. See docs/checking.md."""
