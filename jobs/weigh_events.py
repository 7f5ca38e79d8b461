"""Weigh events into interactions: events, items, users_raw -> interactions, users, popularity."""

from nightjar.job import main
from nightjar.pipeline import WEIGH_EVENTS
from nightjar.stages.weigh_events import weigh_events

if __name__ == "__main__":
    main(WEIGH_EVENTS, weigh_events)
