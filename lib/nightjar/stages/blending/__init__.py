"""What `learn_taste`, `fit_blend` and `rank` share: the likes of a log, the recipe, the score."""
