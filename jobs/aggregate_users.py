"""Aggregate user vectors: interactions, users, item_vectors -> user_vectors."""

from nightjar.job import main
from nightjar.pipeline import AGGREGATE_USERS
from nightjar.stages.aggregate_users import aggregate_users

if __name__ == "__main__":
    main(AGGREGATE_USERS, aggregate_users)
