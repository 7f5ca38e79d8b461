"""Audit the night and make it live: recommendations, users, items, interactions, events -> metrics."""

from nightjar.job import main
from nightjar.pipeline import PUBLISH
from nightjar.stages.publish import publish

if __name__ == "__main__":
    main(PUBLISH, publish)
