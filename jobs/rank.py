"""Rank the list of every user: candidates, interactions, neighbours, blend -> recommendations."""

from nightjar.job import main
from nightjar.pipeline import RANK
from nightjar.stages.rank import rank

if __name__ == "__main__":
    main(RANK, rank)
