"""Clean the behaviour logs: events_raw -> events, quarantine."""

from nightjar.job import main
from nightjar.pipeline import CLEAN_EVENTS
from nightjar.stages.clean_events import clean_events

if __name__ == "__main__":
    main(CLEAN_EVENTS, clean_events)
