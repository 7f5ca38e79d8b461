"""Join item metadata and build texts: items_raw, events -> items, item_text, items_quarantine."""

from nightjar.job import main
from nightjar.pipeline import BUILD_ITEMS
from nightjar.stages.build_items import build_items

if __name__ == "__main__":
    main(BUILD_ITEMS, build_items)
