r"""Flow matching, arXiv:2210.02747.

python -m experiments.train --config=configs/flow_matching/flow_matching.py:cifar10 --workdir=runs
Paper: CIFAR-10, OT path, Table 1: bits/dim 2.99, FID 6.35, 142 evaluations. Ours: RESULTS.md.
"""

import ml_collections

VARIANTS = ("cifar10", "mnist", "mnist16", "mnist16_diffusion", "cifar16", "digits", "smoke")
SMALL = ("mnist16", "mnist16_diffusion", "cifar16")


def get_config(variant="cifar10"):
  if variant not in VARIANTS:
    raise ValueError(f"variant={variant!r}: expected one of {', '.join(VARIANTS)}")
  c = ml_collections.ConfigDict()
  c.model = "flow_matching.flow_matching"  # jaxgen/models/flow_matching/flow_matching.py
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
    path="Linear",
    path_args=dict(sigma_min=0.0),
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
  if variant == "mnist":
    c.args.image_shape = (28, 28, 1)
    c.args.net_args.update(channels=32, multipliers=(1, 2, 2), attention=(7,))
    c.data.source = "tfds:mnist"
    c.train.update(steps=20_000, sample_every=1000, eval_every=5000, checkpoint_every=1000)
  elif variant in SMALL:  # 0.7M parameters: digits are legible after six minutes on two CPU cores
    colour = variant == "cifar16"
    c.args.image_shape = (16, 16, 3 if colour else 1)
    c.args.net_args.update(
      channels=16, multipliers=(1, 2, 4), n_res_blocks=1, attention=(4,), dropout=0.0
    )
    if variant == "mnist16_diffusion":
      c.args.path, c.args.path_args = "VP", dict(beta_min=0.1, beta_max=20.0)
    c.data.update(
      source="tfds:cifar10" if colour else "tfds:mnist", image_size=16, batch_size=64, flip=colour
    )
    c.train.update(
      steps=2000, sample_every=500, eval_every=2000, eval_examples=500, checkpoint_every=500
    )
  elif variant == "digits":
    c.args.update(image_shape=(8, 8, 1), n_classes=10, net="ResidualMLP")
    c.args.net_args = dict(width=256, depth=4, dtype="float32")
    c.data.update(source="digits", batch_size=256)
    c.train.update(steps=3000, sample_every=1000, eval_every=1000, checkpoint_every=1000)
  elif variant == "smoke":
    c.args.update(
      image_shape=(8, 8, 1), n_classes=10, sampler=dict(name="heun", steps=2), ode_steps=2
    )
    c.args.net_args.update(channels=8, multipliers=(1, 2), n_res_blocks=1, attention=())
    c.args.tx.warmup = 0
    c.data.update(source="digits", batch_size=16)
    c.train.update(
      steps=4, log_every=2, sample_every=4, eval_every=4, eval_examples=20, checkpoint_every=2
    )
  return c
