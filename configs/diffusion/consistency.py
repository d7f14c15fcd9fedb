r"""Consistency models, arXiv:2303.01469.

python -m experiments.train --config=configs/diffusion/consistency.py:cifar10 --workdir=runs/cd
    [--config.init_from="{'teacher': 'runs/edm', 'net': 'runs/edm'}"]
Distilled from a run of configs/diffusion/edm.py:cifar10, or in mnist16 from one of
configs/diffusion/progressive_distillation.py:mnist16; the variants _training have no teacher.
Paper: CIFAR-10, Table 1: FID 3.55 and 2.93 with 1 and 2 steps, trained alone 8.70 and 5.83;
ImageNet 64x64, Table 2 (survey Table 7): 6.20 and 4.70, trained alone 13.0 and 11.1, where
progressive distillation has 15.39 and 8.95. Ours: RESULTS.md.
"""

import ml_collections

VARIANTS = ("cifar10", "cifar10_training", "mnist16", "mnist16_training", "smoke")


def get_config(variant="cifar10"):
  if variant not in VARIANTS:
    raise ValueError(f"variant={variant!r}: expected one of {', '.join(VARIANTS)}")
  c = ml_collections.ConfigDict()
  c.model = "diffusion.consistency"  # jaxgen/models/diffusion/consistency.py
  c.args = dict(  # keywords of its build()
    image_shape=(32, 32, 3),
    n_classes=0,
    denoiser=dict(model="diffusion.edm", args=dict()),
    distill=True,
    sigma_min=0.002,
    sigma_max=80.0,
    rho=7.0,
    sigma_data=0.5,
    schedule=dict(profile="fixed", scales=18, mu=0.0),
    metric="l2",
    tx=dict(
      lr=4e-4,
      b1=0.9,
      b2=0.999,
      eps=1e-8,
      weight_decay=0.0,
      clip=0.0,
      warmup=0,
      decay="",
      steps=0,
    ),
    ema=dict(profile="fixed", decay=0.9999),
    accumulate=1,
    levels=(),
    guidance_weight=0.0,
  )
  c.init_from = dict(teacher="runs/edm", net="runs/edm")
  c.data = dict(
    source="tfds:cifar10", batch_size=512, image_size=0, flip=True, workers=2, timeout=600
  )
  c.train = dict(
    steps=800_000, log_every=100, sample_every=10_000, eval_every=0, eval_examples=1000,
    checkpoint_every=5_000, seed=0, parallel="jit",
  )  # fmt: skip
  if not variant.startswith("cifar10"):
    net_args = dict(channels=16, multipliers=(1, 2, 4), n_res_blocks=1, attention=(4,), dropout=0.0)
    args = dict(net="UNet", net_args=net_args)
    c.args.denoiser = dict(model="diffusion.progressive_distillation", args=args)
    c.args.update(image_shape=(16, 16, 1), n_classes=10)
    c.args.schedule.mu = 0.95
    c.args.tx.update(warmup=100, clip=1.0)
    c.args.ema = dict(profile="warmup", decay=0.999)
    c.init_from = dict(teacher="runs/teacher", net="runs/teacher")
    c.data.update(source="tfds:mnist", image_size=16, batch_size=64, flip=False, workers=0)
    c.train.update(steps=1600, sample_every=800, checkpoint_every=400)  # ten minutes on two cores
  if variant == "smoke":
    args = dict(net="ResidualMLP", net_args=dict(width=16, depth=1))
    c.args.denoiser.args = args
    c.args.update(image_shape=(8, 8, 1), levels=(1.0,))
    c.args.schedule = dict(profile="fixed", scales=4, mu=0.5)
    c.args.tx.warmup = 0
    c.init_from = dict()
    c.data.update(source="digits", image_size=0, batch_size=16)
    c.train.update(steps=4, log_every=2, sample_every=4, checkpoint_every=2)

  if variant.endswith("_training"):
    most = 150 if variant == "cifar10_training" else 50
    c.args.update(distill=False)
    c.args.schedule = dict(profile="progressive", s_0=2, s_1=most, mu_0=0.9, steps=c.train.steps)
    c.init_from = dict()
  return c
