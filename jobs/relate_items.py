"""Relate items: item_text, interactions -> co_occurrence."""

from nightjar.job import main
from nightjar.pipeline import RELATE_ITEMS
from nightjar.stages.relate_items import relate_items

if __name__ == "__main__":
    main(RELATE_ITEMS, relate_items)
