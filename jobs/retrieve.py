"""Retrieve candidates for every user: user_vectors, interactions, index_shards -> candidates."""

from nightjar.job import main
from nightjar.pipeline import RETRIEVE
from nightjar.stages.retrieve import retrieve

if __name__ == "__main__":
    main(RETRIEVE, retrieve)
