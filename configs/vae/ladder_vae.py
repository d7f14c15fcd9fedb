r"""Ladder VAE, arXiv:1602.02282.

python -m experiments.train --config=configs/vae/ladder_vae.py:mnist --workdir=runs/ladder_vae
Paper: binarised MNIST, log-likelihood (bound of 5000 draws) -81.74 nats, after a fine-tuning with
more draws that is not here. Ours: RESULTS.md.
The plain hierarchical VAE that the paper compares with: `--config.args.inference=bottom_up`.
mnist16 and mnist16_bottom_up are for two CPU cores; the second shows groups that collapse.
"""

import ml_collections

VARIANTS = ("mnist", "mnist16", "mnist16_bottom_up", "smoke")


def get_config(variant="mnist"):
  if variant not in VARIANTS:
    raise ValueError(f"variant={variant!r}: expected one of {', '.join(VARIANTS)}")
  c = ml_collections.ConfigDict()
  c.model = "vae.ladder_vae"  # jaxgen/models/vae/ladder_vae.py
  c.args = dict(  # keywords of its build()
    image_shape=(28, 28, 1),
    z_dims=(64, 32, 16, 8, 4),
    widths=(512, 256, 128, 64, 64),
    inference="ladder",
    kl_warmup=47_000,  # 200 epochs
    tx=dict(
      lr=1e-3, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.0, clip=0.0, skip=0.0, warmup=0, decay="",
      final=0.0, steps=0,
    ),
    ema=0.0,
  )  # fmt: skip
  c.init_from = dict()
  c.data = dict(
    source="tfds:mnist", batch_size=256, image_size=0, flip=False, workers=2, timeout=600
  )
  c.train = dict(
    steps=470_000, log_every=500, sample_every=10_000, eval_every=10_000, eval_examples=10_000,
    checkpoint_every=10_000, seed=0, parallel="jit",
  )  # fmt: skip
  if variant in ("mnist16", "mnist16_bottom_up"):
    c.args.update(
      image_shape=(16, 16, 1), z_dims=(32, 16, 8), widths=(256, 128, 64), kl_warmup=2000
    )
    if variant == "mnist16_bottom_up":  # upper groups collapse
      c.args.update(inference="bottom_up", kl_warmup=0)
    c.data.update(image_size=16, batch_size=128, workers=0)
    c.train.update(steps=10_000, sample_every=5000, eval_every=5000, checkpoint_every=5000)
  elif variant == "smoke":
    c.args.update(image_shape=(8, 8, 1), z_dims=(3, 2), widths=(16, 8), kl_warmup=2)
    c.data.update(source="digits", batch_size=16, workers=0)
    c.train.update(
      steps=4, log_every=2, sample_every=4, eval_every=4, eval_examples=20, checkpoint_every=2
    )
  return c
