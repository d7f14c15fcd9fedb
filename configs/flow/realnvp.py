r"""RealNVP, arXiv:1605.08803.

python -m experiments.train --config=configs/flow/realnvp.py:cifar10 --workdir=runs/realnvp
Paper: CIFAR-10, Table 1: 3.49 bits/dim; it gives no number of steps. Ours: RESULTS.md.
"""

import ml_collections

VARIANTS = ("cifar10", "mnist", "mnist16", "digits", "smoke")


def get_config(variant="cifar10"):
  if variant not in VARIANTS:
    raise ValueError(f"variant={variant!r}: expected one of {', '.join(VARIANTS)}")
  c = ml_collections.ConfigDict()
  c.model = "flow.realnvp"  # jaxgen/models/flow/realnvp.py
  c.args = dict(  # keywords of its build()
    image_shape=(32, 32, 3),
    n_scales=2,
    width=64,
    n_blocks=8,
    alpha=0.05,
    momentum=0.9,
    l2=5e-5,
    dtype="float32",
    tx=dict(
      lr=1e-3,
      b1=0.9,
      b2=0.999,
      eps=1e-8,
      weight_decay=0.0,
      clip=100.0,
      warmup=0,
      decay="",
      steps=0,
    ),
    ema=0.0,
  )
  c.init_from = dict()
  c.data = dict(
    source="tfds:cifar10", batch_size=64, image_size=0, flip=True, workers=2, timeout=600
  )
  c.train = dict(
    steps=400_000, log_every=100, sample_every=10_000, eval_every=20_000, eval_examples=1000,
    checkpoint_every=5_000, seed=0, parallel="jit",
  )  # fmt: skip
  if variant == "cifar10":
    return c

  c.data.flip, c.data.workers = False, 0
  if variant == "mnist":
    c.args.update(image_shape=(28, 28, 1), width=32, n_blocks=2)
    c.data.source = "tfds:mnist"
    c.train.update(steps=20_000, sample_every=1000, eval_every=5000, checkpoint_every=1000)
  elif variant == "mnist16":  # 0.17M parameters: ten minutes on two CPU cores
    c.args.update(image_shape=(16, 16, 1), width=16, n_blocks=1)
    c.data.update(source="tfds:mnist", image_size=16)
    c.train.update(
      steps=2500, sample_every=500, eval_every=500, eval_examples=500, checkpoint_every=500
    )
  elif variant == "digits":
    c.args.update(image_shape=(8, 8, 1), width=16, n_blocks=1)
    c.data.source = "digits"
    c.train.update(steps=3000, sample_every=1000, eval_every=1000, checkpoint_every=1000)
  elif variant == "smoke":
    c.args.update(image_shape=(8, 8, 1), width=4, n_blocks=1)
    c.data.update(source="digits", batch_size=16)
    c.train.update(
      steps=4, log_every=2, sample_every=4, eval_every=4, eval_examples=20, checkpoint_every=2
    )
  return c
