r"""VAE, arXiv:1312.6114.

python -m experiments.train --config=configs/vae/vae.py:mnist --workdir=runs/vae
Paper: Figure 2, curves of the bound on MNIST and Frey Face; no number is printed. Ours: RESULTS.md.
Pixels are drawn anew at each step; data.source=binarized:tfds:mnist has them drawn once.
`frey` wants data/frey/train.npz and test.npz with `image`, uint8 [N, 28, 20, 1].
"""

import ml_collections

VARIANTS = ("mnist", "frey", "mnist_quick", "mnist16", "digits", "smoke")


def get_config(variant="mnist"):
  if variant not in VARIANTS:
    raise ValueError(f"variant={variant!r}: expected one of {', '.join(VARIANTS)}")
  c = ml_collections.ConfigDict()
  c.model = "vae.vae"  # jaxgen/models/vae/vae.py
  c.args = dict(  # keywords of its build()
    image_shape=(28, 28, 1),
    decoder="bernoulli",
    z_dim=20,
    width=500,
    tx=dict(
      lr=1e-3,
      b1=0.9,
      b2=0.999,
      eps=1e-8,
      weight_decay=0.0,
      clip=0.0,
      skip=0.0,
      warmup=0,
      decay="",
      final=0.0,
      steps=0,
    ),
    ema=0.0,
  )
  c.init_from = dict()
  c.data = dict(
    source="tfds:mnist", batch_size=100, image_size=0, flip=False, workers=2, timeout=600
  )
  c.train = dict(
    steps=600_000, log_every=500, sample_every=10_000, eval_every=10_000, eval_examples=10_000,
    checkpoint_every=10_000, seed=0, parallel="jit",
  )  # fmt: skip
  if variant == "frey":
    c.args.update(image_shape=(28, 20, 1), decoder="gaussian", width=200)
    c.data.source = "npz:data/frey"
    c.train.steps = 100_000
  elif variant == "mnist_quick":
    c.train.update(steps=20_000, sample_every=5000, eval_every=5000, checkpoint_every=5000)
  elif variant == "mnist16":
    c.args.image_shape = (16, 16, 1)
    c.data.update(image_size=16, workers=0)
    c.train.update(steps=30_000, sample_every=5000, eval_every=5000, checkpoint_every=5000)
  elif variant == "digits":
    c.args.update(image_shape=(8, 8, 1), z_dim=10, width=200)
    c.data.update(source="digits", workers=0)
    c.train.update(steps=10_000, sample_every=5000, eval_every=5000, checkpoint_every=5000)
  elif variant == "smoke":
    c.args.update(image_shape=(8, 8, 1), decoder="gaussian", z_dim=3, width=16)
    c.data.update(source="digits", batch_size=16, workers=0)
    c.train.update(
      steps=4, log_every=2, sample_every=4, eval_every=4, eval_examples=20, checkpoint_every=2
    )
  return c
