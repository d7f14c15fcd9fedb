r"""PixelVAE, arXiv:1611.05013.

python -m experiments.train --config=configs/vae/pixel_vae.py:mnist --workdir=runs/pixel_vae
Paper: Sec. 4.1, binarised MNIST, a table of the negative log-likelihood in nats. Ours: RESULTS.md.
"""

import ml_collections

VARIANTS = ("mnist", "mnist16", "smoke")


def get_config(variant="mnist"):
  if variant not in VARIANTS:
    raise ValueError(f"variant={variant!r}: expected one of {', '.join(VARIANTS)}")
  c = ml_collections.ConfigDict()
  c.model = "vae.pixel_vae"  # jaxgen/models/vae/pixel_vae.py
  c.args = dict(  # keywords of its build()
    image_shape=(28, 28, 1),
    levels=2,
    z_dim=64,
    widths=(32, 64, 64),
    pixel_width=32,
    pixel_depth=13,
    kernel=5,
    first_kernel=7,
    kl_warmup=10_000,
    tx=dict(
      lr=1e-3, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.0, clip=0.0, skip=0.0, warmup=0,
      decay="", final=0.0, steps=0,
    ),
    ema=0.0,
  )  # fmt: skip
  c.init_from = dict()
  c.data = dict(
    source="binarized:tfds:mnist", batch_size=100, image_size=0, flip=False, workers=2, timeout=600
  )
  c.train = dict(
    steps=200_000, log_every=500, sample_every=10_000, eval_every=10_000, eval_examples=10_000,
    checkpoint_every=10_000, seed=0, parallel="jit",
  )  # fmt: skip
  if variant == "mnist16":
    c.args.update(
      image_shape=(16, 16, 1), z_dim=16, widths=(16, 32), pixel_width=16, pixel_depth=4, kernel=3,
      first_kernel=5, kl_warmup=500,
    )  # fmt: skip
    c.data.update(source="tfds:mnist", image_size=16, workers=0)
    c.train.update(steps=1500, sample_every=1500, eval_every=1500, checkpoint_every=500)
  elif variant == "smoke":
    c.args.update(
      image_shape=(8, 8, 1), levels=256, z_dim=3, widths=(4,), pixel_width=4, pixel_depth=2,
      kernel=3, first_kernel=3, kl_warmup=2,
    )  # fmt: skip
    c.data.update(source="digits", batch_size=16, workers=0)
    c.train.update(
      steps=4, log_every=2, sample_every=4, eval_every=4, eval_examples=20, checkpoint_every=2
    )
  return c
