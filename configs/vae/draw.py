r"""DRAW, arXiv:1502.04623.

python -m experiments.train --config=configs/vae/draw.py:mnist --workdir=runs/draw
Paper: Table 2, binarised MNIST, at most 80.97 nats, without attention (`mnist` with
`--config.args.attention=none`) at most 87.40. Ours: RESULTS.md.
`mnist_short` and `mnist16` are for two CPU cores; `--config.data.source=npz:PATH` reads one's own.
"""

import ml_collections

VARIANTS = ("mnist", "mnist_short", "mnist16", "smoke")


def get_config(variant="mnist"):
  if variant not in VARIANTS:
    raise ValueError(f"variant={variant!r}: expected one of {', '.join(VARIANTS)}")
  c = ml_collections.ConfigDict()
  c.model = "vae.draw"  # jaxgen/models/vae/draw.py
  c.args = dict(  # keywords of its build()
    image_shape=(28, 28, 1),
    attention="selective",
    glimpses=64,
    read_size=2,
    write_size=5,
    hidden=256,
    z_dim=100,
    tx=dict(
      lr=1e-3, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.0, clip=5.0, warmup=0, decay="", steps=0
    ),
    ema=0.0,
  )
  c.init_from = dict()
  c.data = dict(
    source="binarized:tfds:mnist", batch_size=128, image_size=0, flip=False, workers=2, timeout=600
  )
  c.train = dict(
    steps=250_000, log_every=500, sample_every=10_000, eval_every=10_000, eval_examples=10_000,
    checkpoint_every=10_000, seed=0, parallel="jit",
  )  # fmt: skip
  if variant == "mnist_short":
    c.args.glimpses = 10
    c.data.workers = 0
    c.train.update(steps=1800, sample_every=600, eval_every=1800, eval_examples=1000)
    c.train.checkpoint_every = 600
  elif variant == "mnist16":
    c.args.update(image_shape=(16, 16, 1), glimpses=8, hidden=128, z_dim=32)
    c.data.update(source="tfds:mnist", image_size=16, workers=0)
    c.train.update(steps=5000, sample_every=2500, eval_every=2500, checkpoint_every=2500)
  elif variant == "smoke":
    c.args.update(image_shape=(8, 8, 1), glimpses=3, write_size=3, hidden=16, z_dim=3)
    c.data.update(source="digits", batch_size=16, workers=0)
    c.train.update(
      steps=4, log_every=2, sample_every=4, eval_every=4, eval_examples=20, checkpoint_every=2
    )
  return c
