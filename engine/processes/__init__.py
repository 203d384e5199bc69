"""Several processes that train together: their exchanges, their common steps, the signals that end them."""
