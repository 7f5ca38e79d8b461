"""Fit how much each source of a score counts: interactions, neighbours -> blend, item_signals."""

from nightjar.job import main
from nightjar.pipeline import FIT_BLEND
from nightjar.stages.fit_blend import fit_blend

if __name__ == "__main__":
    main(FIT_BLEND, fit_blend)
