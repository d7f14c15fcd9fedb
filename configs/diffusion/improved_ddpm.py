r"""Improved DDPM, arXiv:2102.09672.

python -m experiments.train --config=configs/diffusion/improved_ddpm.py:cifar10 --workdir=runs/iddpm
Paper: CIFAR-10, cosine, Table 2: L_hybrid, FID 3.19, bits/dim 3.17; L_vlb (cifar10_vlb), FID 11.47,
bits/dim 2.94. ImageNet 64x64, Table 1: L_hybrid, FID 19.2, bits/dim 3.57. Ours: RESULTS.md.
Bits/dim are the whole bound of D01, arXiv:1503.03585: args.bound_terms = args.T.

imagenet64 needs data.source, a folder of train.npz or train.array_record with `image`.
"""

import ml_collections

VARIANTS = ("cifar10", "cifar10_vlb", "imagenet64", "mnist16", "smoke")


def get_config(variant="cifar10"):
  if variant not in VARIANTS:
    raise ValueError(f"variant={variant!r}: expected one of {', '.join(VARIANTS)}")
  c = ml_collections.ConfigDict()
  c.model = "diffusion.improved_ddpm"  # jaxgen/models/diffusion/improved_ddpm.py
  c.args = dict(  # keywords of its build()
    image_shape=(32, 32, 3),
    n_classes=0,
    label_dropout=0.0,
    net="ADM",
    net_args=dict(
      channels=128,
      multipliers=(1, 2, 2, 2),
      n_res_blocks=3,
      attention=(16, 8),
      head_channels=0,
      heads=4,
      scale_shift=True,
      resblock_updown=False,
      dropout=0.3,
      dtype="float32",
    ),
    schedule="cosine",
    T=4000,
    T_net=1000,
    objective="hybrid",
    vlb_weight=1e-3,
    history=10,
    tx=dict(
      lr=1e-4,
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
    sampler=dict(name="ancestral", steps=4000),
    accumulate=1,
    guidance_weight=0.0,
    bound_terms=4000,
  )
  c.init_from = dict()
  c.data = dict(
    source="tfds:cifar10", batch_size=128, image_size=0, flip=True, workers=2, timeout=600
  )
  c.train = dict(
    steps=500_000, log_every=100, sample_every=10_000, eval_every=50_000, eval_examples=1000,
    checkpoint_every=5_000, seed=0, parallel="jit",
  )  # fmt: skip
  if variant == "cifar10":
    return c
  if variant == "cifar10_vlb":
    c.args.objective = "vlb"
    return c
  if variant == "imagenet64":
    c.args.image_shape = (64, 64, 3)
    c.args.net_args.update(multipliers=(1, 2, 3, 4), dropout=0.0)
    c.data.update(source="npz:data/imagenet64", image_size=64)
    c.train.update(steps=1_500_000, eval_every=0)
    return c

  c.args.net = "UNet"
  c.args.net_args = dict(
    channels=16, multipliers=(1, 2, 4), n_res_blocks=1, attention=(4,), dropout=0.0, dtype="float32"
  )
  c.args.T = 1000
  c.args.ema = dict(profile="warmup", decay=0.999)
  c.args.tx.update(lr=1e-3, warmup=100, clip=1.0)
  c.args.sampler = dict(name="ancestral", steps=50)
  c.args.bound_terms = 50
  c.data.update(flip=False, workers=0)
  if variant == "mnist16":  # 0.7M parameters: legible after ten minutes on two CPU cores
    c.args.image_shape = (16, 16, 1)
    c.data.update(source="tfds:mnist", image_size=16, batch_size=64)
    c.train.update(
      steps=2000, sample_every=500, eval_every=2000, eval_examples=500, checkpoint_every=500
    )
  elif variant == "smoke":  # with the memory of the importance sampler, as all that there can be
    c.args.update(image_shape=(8, 8, 1), n_classes=10, objective="vlb")
    c.args.update(sampler=dict(name="ancestral", steps=4), bound_terms=2)
    c.args.net_args.update(channels=8, multipliers=(1, 2), attention=())
    c.args.tx.warmup = 0
    c.data.update(source="digits", batch_size=16)
    c.train.update(
      steps=4, log_every=2, sample_every=4, eval_every=4, eval_examples=20, checkpoint_every=2
    )
  return c
