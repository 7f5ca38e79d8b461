"""Encode what users wrote on a pool of Ray actors: query_text -> query_embeddings, queries_quarantine."""

from nightjar.job import main
from nightjar.pipeline import ENCODE_QUERIES
from nightjar.stages.encode_queries import encode_queries

if __name__ == "__main__":
    main(ENCODE_QUERIES, encode_queries)
