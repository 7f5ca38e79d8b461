"""Learn item vectors and relations: item_text, item_embeddings, interactions -> item_vectors, neighbours."""

from nightjar.job import main
from nightjar.pipeline import LEARN_TASTE
from nightjar.stages.learn_taste import learn_taste

if __name__ == "__main__":
    main(LEARN_TASTE, learn_taste)
