"""A convolutional network on handwritten digits, in JAX and Flax, done carefully."""

__version__ = "0.1.0"
