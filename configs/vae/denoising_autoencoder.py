r"""Denoising autoencoder, doi:10.1145/1390156.1390294, and its chain, arXiv:1305.6663.

python -m experiments.train --config=configs/vae/denoising_autoencoder.py:mnist --workdir=runs/dae
Paper: arXiv:1305.6663, pictures of chains on MNIST with and without walkback. Ours: RESULTS.md.
Where MNIST is at hand as files: --config.data.source=npz:PATH.
"""

import ml_collections

VARIANTS = ("mnist", "mnist16", "smoke")


def get_config(variant="mnist"):
  if variant not in VARIANTS:
    raise ValueError(f"variant={variant!r}: expected one of {', '.join(VARIANTS)}")
  c = ml_collections.ConfigDict()
  c.model = "vae.denoising_autoencoder"  # jaxgen/models/vae/denoising_autoencoder.py
  c.args = dict(  # keywords of its build()
    image_shape=(28, 28, 1),
    decoder="bernoulli",
    corruption="salt_pepper",
    level=0.5,
    width=2000,
    walkback=5,
    steps=100,
    tx=dict(
      lr=1e-3, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.0, clip=0.0, skip=0.0, warmup=0, decay="",
      final=0.0, steps=0,
    ),
    ema=0.0,
  )  # fmt: skip
  c.init_from = dict()
  c.data = dict(
    source="tfds:mnist", batch_size=100, image_size=0, flip=False, workers=2, timeout=600
  )
  c.train = dict(
    steps=100_000,  # 200 epochs of 50,000 images
    log_every=500, sample_every=10_000, eval_every=10_000, eval_examples=10_000,
    checkpoint_every=10_000, seed=0, parallel="jit",
  )  # fmt: skip
  if variant == "mnist16":
    c.args.update(image_shape=(16, 16, 1), level=0.25, width=500)  # at 0.5 little is left
    c.data.update(image_size=16, workers=0)
    c.train.update(steps=20_000, sample_every=5000, eval_every=5000, checkpoint_every=5000)
  elif variant == "smoke":
    c.args.update(
      image_shape=(8, 8, 1), decoder="gaussian", corruption="gaussian", width=16, walkback=2,
      steps=4,
    )  # fmt: skip
    c.data.update(source="digits", batch_size=16, workers=0)
    c.train.update(
      steps=4, log_every=2, sample_every=4, eval_every=4, eval_examples=20, checkpoint_every=2
    )
  return c
