"""Encode item texts on a pool of Ray actors: item_text -> item_embeddings, embeddings_quarantine."""

from nightjar.job import main
from nightjar.pipeline import ENCODE_ITEMS
from nightjar.stages.encode_items import encode_items

if __name__ == "__main__":
    main(ENCODE_ITEMS, encode_items)
