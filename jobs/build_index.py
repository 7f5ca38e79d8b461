"""Build the index shards: item_vectors -> index_shards."""

from nightjar.job import main
from nightjar.pipeline import BUILD_INDEX
from nightjar.stages.build_index import build_index

if __name__ == "__main__":
    main(BUILD_INDEX, build_index)
