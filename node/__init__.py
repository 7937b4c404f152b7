"""The house that gives agreed bytes their meaning: money, models, attribution."""
