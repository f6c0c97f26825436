"""Recipes: several stages in a row, each run as a user would run it."""
