"""Training: recipes, data sets and the one loop. torch is imported by `trainer` and while loading data, not here."""
