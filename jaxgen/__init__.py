"""jaxgen: generative models of images and video, as the papers write them, in JAX and Flax."""

__version__ = "0.1.0"
