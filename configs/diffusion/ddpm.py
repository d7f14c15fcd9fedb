r"""DDPM, arXiv:2006.11239.

python -m experiments.train --config=configs/diffusion/ddpm.py:cifar10 --workdir=runs/ddpm
DDIM (D03): args.sampler with name="ddim"; classifier-free guidance (D10): n_classes and, as an
option of samples, w.
Paper: CIFAR-10, Table 1: FID 3.17, Inception score 9.46, bits/dim at most 3.75. Ours: RESULTS.md.
"""

import ml_collections

VARIANTS = ("cifar10", "mnist", "mnist16", "digits", "smoke")


def get_config(variant="cifar10"):
  if variant not in VARIANTS:
    raise ValueError(f"variant={variant!r}: expected one of {', '.join(VARIANTS)}")
  c = ml_collections.ConfigDict()
  c.model = "diffusion.ddpm"  # jaxgen/models/diffusion/ddpm.py
  c.args = dict(  # keywords of its build()
    image_shape=(32, 32, 3),
    n_classes=0,
    label_dropout=0.1,
    net="UNet",
    net_args=dict(
      channels=128,
      multipliers=(1, 2, 2, 2),
      n_res_blocks=2,
      attention=(16,),
      dropout=0.1,
      dtype="float32",
    ),
    tx=dict(
      lr=2e-4,
      b1=0.9,
      b2=0.999,
      eps=1e-8,
      weight_decay=0.0,
      clip=1.0,
      warmup=5000,
      decay="",
      steps=0,
    ),
    beta_1=1e-4,
    beta_T=0.02,
    T=1000,
    ema=dict(profile="fixed", decay=0.9999),
    sampler=dict(name="ancestral", steps=1000),
    accumulate=1,
    guidance_weight=0.0,
    bound_terms=1000,
  )
  c.init_from = dict()
  c.data = dict(
    source="tfds:cifar10", batch_size=128, image_size=0, flip=True, workers=2, timeout=600
  )
  c.train = dict(
    steps=800_000, log_every=100, sample_every=10_000, eval_every=50_000, eval_examples=1000,
    checkpoint_every=5_000, seed=0, parallel="jit",
  )  # fmt: skip
  if variant == "cifar10":
    return c

  c.args.ema = dict(profile="warmup", decay=0.999)
  c.args.tx.update(lr=1e-3, warmup=100, decay="", clip=1.0)
  c.args.sampler = dict(name="ddim", steps=50)
  c.args.bound_terms = 50
  c.data.flip, c.data.workers = False, 0
  if variant == "mnist":
    c.args.image_shape = (28, 28, 1)
    c.args.net_args.update(channels=32, multipliers=(1, 2, 2), attention=(7,), dropout=0.0)
    c.data.source = "tfds:mnist"
    c.train.update(steps=20_000, sample_every=1000, eval_every=5000, checkpoint_every=1000)
  elif variant == "mnist16":  # 0.7M parameters: legible after ten minutes on two CPU cores
    c.args.image_shape = (16, 16, 1)
    c.args.net_args.update(
      channels=16, multipliers=(1, 2, 4), n_res_blocks=1, attention=(4,), dropout=0.0
    )
    c.data.update(source="tfds:mnist", image_size=16, batch_size=64)
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
      image_shape=(8, 8, 1), n_classes=10, sampler=dict(name="ancestral", steps=4), bound_terms=2
    )
    c.args.net_args.update(channels=8, multipliers=(1, 2), n_res_blocks=1, attention=())
    c.args.tx.warmup = 0
    c.data.update(source="digits", batch_size=16)
    c.train.update(
      steps=4, log_every=2, sample_every=4, eval_every=4, eval_examples=20, checkpoint_every=2
    )
  return c
