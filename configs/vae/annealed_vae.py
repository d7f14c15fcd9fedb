r"""Capacity-annealed beta-VAE, arXiv:1804.03599.

python -m experiments.train --config=configs/vae/annealed_vae.py:dsprites --workdir=runs/annealed
Paper: reconstructions and traversals of dSprites with C up to 25 nats; no number is printed.
Ours: RESULTS.md.
`olivetti` wants data/olivetti/train.npz and test.npz with `image`, uint8 [N, 64, 64, 1].
"""

import ml_collections

VARIANTS = ("dsprites", "dsprites_quick", "olivetti", "mnist16", "smoke")


def get_config(variant="dsprites"):
  if variant not in VARIANTS:
    raise ValueError(f"variant={variant!r}: expected one of {', '.join(VARIANTS)}")
  c = ml_collections.ConfigDict()
  c.model = "vae.annealed_vae"  # jaxgen/models/vae/annealed_vae.py
  c.args = dict(  # keywords of its build()
    image_shape=(64, 64, 1),
    decoder="bernoulli",
    z_dim=10,
    widths=(32, 32, 32, 32),
    dense=(256, 256),
    gamma=1000.0,
    capacity=25.0,
    capacity_steps=100_000,
    tx=dict(
      lr=5e-4, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.0, clip=0.0, skip=0.0, warmup=0, decay="",
      final=0.0, steps=0,
    ),
    ema=0.0,
  )  # fmt: skip
  c.init_from = dict()
  c.data = dict(source="dsprites", batch_size=64, image_size=0, flip=False, workers=2, timeout=600)
  c.train = dict(
    steps=300_000, log_every=500, sample_every=10_000, eval_every=10_000, eval_examples=10_000,
    checkpoint_every=10_000, seed=0, parallel="jit",
  )  # fmt: skip
  if variant == "dsprites_quick":
    c.args.update(widths=(16, 16, 32, 32), gamma=100.0, capacity_steps=1200)
    c.args.tx.lr = 1e-3
    c.train.update(steps=1500, sample_every=1500, eval_every=1500, checkpoint_every=500)
  elif variant == "olivetti":
    c.args.update(decoder="gaussian", capacity_steps=1500)
    c.data.update(source="npz:data/olivetti", workers=0)
    c.train.update(steps=2000, sample_every=1000, eval_every=1000, checkpoint_every=1000)
  elif variant == "mnist16":
    c.args.update(image_shape=(16, 16, 1), widths=(32, 32), dense=(256,), capacity_steps=6000)
    c.data.update(source="tfds:mnist", image_size=16, workers=0)
    c.train.update(steps=10_000, sample_every=5000, eval_every=5000, checkpoint_every=5000)
  elif variant == "smoke":
    c.args.update(
      image_shape=(8, 8, 1), decoder="gaussian", z_dim=3, widths=(8,), dense=(16,), capacity_steps=2
    )
    c.data.update(source="digits", batch_size=16, workers=0)
    c.train.update(
      steps=4, log_every=2, sample_every=4, eval_every=4, eval_examples=20, checkpoint_every=2
    )
  return c
