r"""EDM, arXiv:2206.00364.

python -m experiments.train --config=configs/diffusion/edm.py:cifar10 --workdir=runs/edm
Paper: FID, Table 2, config F, VP network: CIFAR-10 1.97, with classes 1.79, 35 evaluations; FFHQ at
64x64 2.39, 79 evaluations. ImageNet at 64x64: 1.36, 511 evaluations. Ours: RESULTS.md.
"""

import ml_collections

VARIANTS = ("cifar10", "cifar10_conditional", "ffhq64", "imagenet64", "mnist16", "smoke")


def get_config(variant="cifar10"):
  if variant not in VARIANTS:
    raise ValueError(f"variant={variant!r}: expected one of {', '.join(VARIANTS)}")
  c = ml_collections.ConfigDict()
  c.model = "diffusion.edm"  # jaxgen/models/diffusion/edm.py
  c.args = dict(  # keywords of its build()
    image_shape=(32, 32, 3),
    n_classes=0,
    label_dropout=0.0,
    net="NCSNpp",
    net_args=dict(
      channels=128,
      multipliers=(2, 2, 2),
      n_res_blocks=4,
      attention=(16,),
      embedding="positional",
      noise_multiplier=1,
      encoder="standard",
      decoder="standard",
      resample_filter=(1, 1),
      dropout=0.13,
      augment=9,
      dtype="float32",
    ),
    preconditioning="EDM",
    preconditioning_args=dict(sigma_data=0.5, P_mean=-1.2, P_std=1.2),
    sigma_min=0.002,
    sigma_max=80.0,
    augment=0.12,
    tx=dict(
      lr=1e-3,
      b1=0.9,
      b2=0.999,
      eps=1e-8,
      weight_decay=0.0,
      clip=0.0,
      warmup=19_531,
      decay="",
      steps=0,
    ),
    ema=dict(profile="warmup", decay=0.99929, inv_gamma=13.86, power=1.0),
    sampler=dict(name="edm", steps=18, grid="karras"),
    accumulate=1,
    guidance_weight=0.0,
    ode_steps=50,
  )
  c.init_from = dict()
  c.data = dict(
    source="tfds:cifar10", batch_size=512, image_size=0, flip=False, workers=2, timeout=600
  )
  c.train = dict(
    steps=390_625, log_every=100, sample_every=10_000, eval_every=50_000, eval_examples=1000,
    checkpoint_every=5_000, seed=0, parallel="jit",
  )  # fmt: skip
  if variant == "cifar10":
    return c
  if variant == "cifar10_conditional":
    c.args.n_classes = 10
    return c
  if variant == "ffhq64":  # a folder of images, as the paper's dataset tool makes one
    c.args.image_shape, c.args.augment = (64, 64, 3), 0.15
    c.args.net_args.update(multipliers=(1, 2, 2, 2), dropout=0.05)
    c.args.tx.update(lr=2e-4, warmup=39_062)
    c.args.ema.decay = 0.999645
    c.args.sampler.steps = 40
    c.data.update(source="folder:ffhq", image_size=64, batch_size=256)
    c.train.steps = 781_250
    return c

  c.args.augment = 0.0
  if variant == "imagenet64":
    c.args.update(image_shape=(64, 64, 3), n_classes=1000, net="ADM")
    c.args.net_args = dict(
      channels=192,
      multipliers=(1, 2, 3, 4),
      n_res_blocks=3,
      attention=(32, 16, 8),
      head_channels=64,
      dropout=0.1,
      augment=0,
      dtype="bfloat16",
    )
    c.args.tx.update(lr=1e-4, warmup=2441)
    c.args.ema.decay = 0.9999432
    c.args.sampler.update(steps=256, s_churn=40.0, s_min=0.05, s_max=50.0, s_noise=1.003)
    c.data.update(source="tfds:imagenet2012", image_size=64, batch_size=4096)
    c.train.update(steps=610_352, eval_every=0)  # its test split has no labels
    return c

  c.args.net = "UNet"
  c.args.ema = dict(profile="warmup", decay=0.999)
  c.args.tx.update(warmup=100, clip=1.0)
  c.data.workers = 0
  if variant == "mnist16":  # 0.7M parameters, at the budget of ddpm.py:mnist16
    c.args.image_shape = (16, 16, 1)
    c.args.net_args = dict(
      channels=16, multipliers=(1, 2, 4), n_res_blocks=1, attention=(4,), dropout=0.0
    )
    c.args.ode_steps = 25
    c.data.update(source="tfds:mnist", image_size=16, batch_size=64)
    c.train.update(
      steps=2000, sample_every=500, eval_every=2000, eval_examples=500, checkpoint_every=500
    )
  elif variant == "smoke":
    c.args.update(image_shape=(8, 8, 1), n_classes=10, label_dropout=0.1, ode_steps=2)
    c.args.net_args = dict(channels=8, multipliers=(1, 2), n_res_blocks=1, attention=())
    c.args.sampler.steps, c.args.tx.warmup = 2, 0
    c.data.update(source="digits", batch_size=16)
    c.train.update(
      steps=4, log_every=2, sample_every=4, eval_every=4, eval_examples=20, checkpoint_every=2
    )
  return c
