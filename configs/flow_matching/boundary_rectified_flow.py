r"""Rectified flow with boundary conditions, arXiv:2506.15864.

python -m experiments.train --config=configs/flow_matching/boundary_rectified_flow.py:cifar10 \
  --workdir=runs
Paper: ImageNet, FID 8.01% below that of rectified flow with an ODE sampler, 8.98% with an SDE.
Ours: RESULTS.md.
"""

import ml_collections

VARIANTS = ("cifar10", "mnist16", "smoke")


def get_config(variant="cifar10"):
  if variant not in VARIANTS:
    raise ValueError(f"variant={variant!r}: expected one of {', '.join(VARIANTS)}")
  c = ml_collections.ConfigDict()
  c.model = "flow_matching.boundary_rectified_flow"
  c.args = dict(  # keywords of its build()
    image_shape=(32, 32, 3),
    n_classes=0,
    label_dropout=0.1,
    net="UNet",
    net_args=dict(
      channels=256,
      multipliers=(1, 2, 2, 2),
      n_res_blocks=2,
      attention=(16,),
      dropout=0.0,
      dtype="float32",
    ),
    boundary="masked",
    power=8.0,
    tx=dict(
      lr=5e-4,
      b1=0.9,
      b2=0.999,
      eps=1e-8,
      weight_decay=0.0,
      clip=0.0,
      warmup=45_000,
      decay="linear",
      steps=391_000,
    ),
    ema=dict(profile="fixed", decay=0.9999),
    sampler=dict(name="euler", steps=100),
    accumulate=1,
    guidance_weight=0.0,
    ode_steps=100,
  )
  c.init_from = dict()
  c.data = dict(
    source="tfds:cifar10", batch_size=256, image_size=0, flip=True, workers=2, timeout=600
  )
  c.train = dict(
    steps=391_000, log_every=100, sample_every=10_000, eval_every=50_000, eval_examples=1000,
    checkpoint_every=5_000, seed=0, parallel="jit",
  )  # fmt: skip
  if variant == "cifar10":
    return c

  c.args.ema = dict(profile="warmup", decay=0.999)
  c.args.tx.update(lr=1e-3, warmup=100, decay="", clip=1.0)
  c.args.sampler = dict(name="heun", steps=25)
  c.args.ode_steps = 50
  c.data.flip, c.data.workers = False, 0
  if variant == "mnist16":  # 0.7M parameters: digits are legible after six minutes on two CPU cores
    c.args.image_shape = (16, 16, 1)
    c.args.net_args.update(channels=16, multipliers=(1, 2, 4), n_res_blocks=1, attention=(4,))
    c.data.update(source="tfds:mnist", image_size=16, batch_size=64)
    c.train.update(
      steps=2000, sample_every=500, eval_every=2000, eval_examples=500, checkpoint_every=500
    )
  elif variant == "smoke":
    c.args.update(
      image_shape=(8, 8, 1), n_classes=10, net="ResidualMLP", sampler=dict(name="heun", steps=2),
      ode_steps=2,
    )  # fmt: skip
    c.args.net_args = dict(width=32, depth=1, dtype="float32")
    c.args.tx.warmup = 0
    c.data.update(source="digits", batch_size=16)
    c.train.update(
      steps=4, log_every=2, sample_every=4, eval_every=4, eval_examples=20, checkpoint_every=2
    )
  return c
