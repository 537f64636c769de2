"""Shipped studies: arms, folds, seeds and the comparison asked for."""
